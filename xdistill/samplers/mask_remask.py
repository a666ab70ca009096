"""Samplers that may forget: visible tokens are masked again with some probability and revealed anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.draws import PLAIN, TokenDraw, token_uniforms
from xdistill.samplers.mask_reveal import predict, put
from xdistill.state import Tokens

SCHEDULES = ("cap", "rescale", "conf", "loop")

#: (keep_t, keep_r, confidence [B, L], inf where masked) -> probability of masking again, a scalar or [B, L].
Remask = Callable[[Tensor, Tensor, Tensor], Tensor]


def remasking(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    remask: Remask,
    *,
    draw: TokenDraw = PLAIN,
) -> Tokens:
    """From t to r tokens are masked with probability s, masks revealed with (keep_r - (1 - s) keep_t) / (1 - keep_t).

    Every s up to min(1, (1 - keep_r) / keep_t) leaves the marginals of the process unchanged (2503.00307). Only
    what this run has revealed is forgotten. times: [N + 1] decreasing to 0.
    """
    ours = process.masked(z)
    confidence = torch.full(z.ids.shape, float("inf"), device=z.ids.device)
    for t, r in itertools.pairwise(times):
        keep_t, keep_r = (process.keep(s).to(z.ids.device) for s in (t, r))
        move, which = token_uniforms(z, generator, 2)
        s = remask(keep_t, keep_r, confidence)
        masked = process.masked(z)
        at = masked & (move < (keep_r - (1 - s) * keep_t) / (1 - keep_t))
        forget = ours & ~masked & (move < s)
        new, sure = z, confidence
        if bool(at.any()):
            log_p = predict(model, z, t.expand(z.batch), cond, at)
            ids = draw(log_p, which[at])
            new, sure = put(z, at, ids), sure.masked_scatter(at, log_p.gather(1, ids[:, None]).exp().float())
        z = new.with_ids(new.ids.masked_fill(forget, process.mask_id))
        confidence = sure.masked_fill(forget, float("inf"))
    return z


def psi(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    kappa: float = 0.5,
) -> Tokens:
    """kappa posterior(r | z_t, x) + (1 - kappa) forward(r | x) for x ~ p(x0 | z_t) (psi samplers, text spec 3).

    kappa = 1 is ancestral; at 0 every step draws a clean sequence and corrupts it anew. The mixture masks visible
    tokens with probability (1 - kappa)(1 - keep_r), and its masked tokens follow `remasking` with that s.
    Raises UsageError for kappa outside [0, 1].
    """
    if not 0 <= kappa <= 1:
        raise UsageError(f"kappa={kappa}: expected within [0, 1]")
    return remasking(model, process, times, z, cond, generator, lambda _, r, __: (1 - kappa) * (1 - r), draw=draw)


def remdm(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    schedule: str = "cap",
    eta: float = 0.02,
    alpha_on: float = 0.9,
    t_on: float = 0.55,
    t_off: float = 0.05,
) -> Tokens:
    """ReMDM (2503.00307): `remasking` on a schedule; best with top_p = 0.9. m = min(1, (1 - keep_r) / keep_t).

    schedule: `cap` masks with min(eta, m); `rescale` with eta m; `conf` with eta m times each visible token's part in
    softmax(-probability when it was revealed); `loop` goes to keep = alpha_on until t_on, stays there
    with `cap` until t_off, and then finishes. Raises UsageError for another schedule or values out of range.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"schedule={schedule}: expected {', '.join(SCHEDULES)}")
    if not (0 <= eta <= 1 and 0 < alpha_on < 1 and 0 < t_off <= t_on < 1):
        raise UsageError(
            f"eta={eta}, alpha_on={alpha_on}, t_on={t_on}, t_off={t_off}: expected within (0, 1), t_off <= t_on"
        )

    def remask(keep_t: Tensor, keep_r: Tensor, confidence: Tensor) -> Tensor:
        most = ((1 - keep_r) / keep_t).clamp(max=1)
        if schedule == "rescale":
            return eta * most
        if schedule == "conf":
            return eta * most * (-confidence).softmax(1).nan_to_num()  # no visible token: 0 / 0
        return most.clamp(max=eta) if schedule == "cap" or keep_t == keep_r else torch.zeros_like(most)

    if schedule == "loop":
        times = held(times, (1 - alpha_on) / (1 - process.eps), t_on, t_off)
    return remasking(model, process, times, z, cond, generator, remask, draw=draw)


def held(times: Tensor, level: float, t_on: float, t_off: float) -> Tensor:
    """Times bent so that [t_on, 1] goes to [level, 1], [t_off, t_on] to `level` and [0, t_off] to [0, level]."""
    before = level + (1 - level) * (times - t_on) / (1 - t_on)
    return torch.where(times > t_on, before, level * (times / t_off).clamp(max=1))
