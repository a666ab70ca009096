"""Concrete scores of masked diffusion, and the published fp32 arithmetic of its samplers for replays."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.draws import TokenDraw, race, vocabulary_uniforms
from xdistill.samplers.mask_reveal import chosen_rows
from xdistill.state import Tokens

#: (process, p(x0) [B, L, V], ids [B, L], t, r) -> weights [B, L, V] of the tokens at r, the mask among them.
Weights = Callable[[MaskProcess, Tensor, Tensor, Tensor, Tensor], Tensor]


def ancestral_weights(process: MaskProcess, p: Tensor, ids: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Of masked tokens: (keep_r - keep_t) p(v), and 1 - keep_r to stay masked (text spec 1.8); t, r scalars or [B]."""
    keep_t, keep_r = (process.keep(s).to(p).reshape(-1, 1, 1) for s in (t, r))
    weights = p * (keep_r - keep_t)
    weights[..., process.mask_id] = (1 - keep_r)[..., 0]
    return weights


def analytic_weights(process: MaskProcess, p: Tensor, ids: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """The Tweedie step by the concrete score (SEDD 2310.16834), and to r = 0 the denoising one.

    For masked tokens these are the ancestral weights over 1 - keep_t: e^(sigma_t - sigma_r) - 1 over e^(sigma_t) - 1 is
    (keep_r - keep_t) / (1 - keep_t). The two samplers have one law; tests hold both to it.
    """
    sigma, down = (s.to(p).reshape(-1) for s in (process.sigma(t), process.sigma(t) - process.sigma(r)))
    score = concrete_score(p, ids, sigma, process.mask_id)
    weights = staggered(score, down, process.mask_id) * transition(ids, down, p.shape[-1], process.mask_id)
    if bool((r == 0).all()):
        weights[..., process.mask_id] = 0
    return weights


def concrete_score(p: Tensor, ids: Tensor, sigma: Tensor, mask_id: int) -> Tensor:
    """p_t(v) / p_t(z) for one changed token [B, L, V], from p(x0) [B, L, V] and sigma(t) [B or 1].

    Masked tokens: p(v) / (e^sigma - 1), 1 at the mask. Visible ones: 1 at themselves, e^sigma - 1 at the mask.
    """
    odds = sigma.expm1().view(-1, 1, 1)
    hidden = p / odds
    hidden[..., mask_id] = 1
    seen = F.one_hot(ids, p.shape[-1]).to(p)
    seen[..., mask_id] = odds[..., 0]
    return torch.where((ids == mask_id)[..., None], hidden, seen)


def staggered(score: Tensor, down: Tensor, mask_id: int) -> Tensor:
    """exp of the backward rate over `down` = sigma_t - sigma_r [B or 1], applied to a score [B, L, V]."""
    growth = down.exp().view(-1, 1, 1)
    out = score * growth
    out[..., mask_id] += (1 - growth[..., 0]) * score.sum(-1)
    return out


def transition(ids: Tensor, down: Tensor, vocabulary: int, mask_id: int) -> Tensor:
    """P(ids at t | v at r) for every v, [B, L, V]: kept with e^-down, masked otherwise."""
    stay = (-down).exp().view(-1, 1, 1)
    return stay * F.one_hot(ids, vocabulary).to(stay) + (1 - stay) * (ids == mask_id)[..., None]


def replay(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    weights: Weights,
    draw: TokenDraw,
    last: TokenDraw | None = None,
) -> Tokens:
    """A chain by the fp32 race over the vocabulary [B, L, V], which cuts tails off: for published numbers only.

    The published grid is linspace(1, 1e-5, N + 1) with 0 behind it: N + 1 calls. Networks that see no time are called
    again only for rows that have changed (the published cache asks for a whole batch without a change).
    """
    stale = torch.ones(z.batch, dtype=torch.bool, device=z.ids.device)
    p = torch.zeros(0, device=z.ids.device)
    for k, (t, r) in enumerate(itertools.pairwise(times), 2):
        if not bool(process.masked(z).any()):
            break
        final = last if k == len(times) else None
        if final or getattr(model, "timed", True):
            stale = torch.ones_like(stale)
        if bool(stale.any()):
            rows, asked, tb = chosen_rows(z, t.expand(z.batch), cond, stale)
            log_p = model(asked, tb, cond).float()
            new = with_mask((final or draw).probabilities(log_p), process.mask_id)
            p = new if bool(rows.all()) else p.index_put((rows,), new)
        drawn = race(weights(process, p, z.ids, t, r), vocabulary_uniforms(z, p.shape[-1], generator))
        ids = torch.where(process.masked(z), drawn, z.ids)
        stale, z = (ids != z.ids).any(1), z.with_ids(ids)
    return z


def with_mask(p: Tensor, mask_id: int) -> Tensor:
    """p(x0) [B, L, V] with a column for a mask that lies behind the vocabulary."""
    return F.pad(p, (0, max(0, mask_id + 1 - p.shape[-1])))
