"""One call of a student of masked diffusion: where it starts, and which of its tokens are hidden again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill import rng
from xdistill.models import Cond, TokenModel
from xdistill.process import MaskProcess
from xdistill.process.mask import uniforms
from xdistill.samplers.mask import PLAIN, ancestral
from xdistill.state import Tokens


@dataclass(frozen=True)
class Start:
    """Partly masked sequences z at times s [B], anchors of the student; r [B] is the time of its next call."""

    z: Tokens
    s: Tensor
    r: Tensor


def data_start(process: MaskProcess, x0: Tokens, times: Tensor, generator: torch.Generator) -> Start:
    """Data noised to anchors of `times` [N + 1], spread evenly over the batch; at the first anchor nothing is left."""
    n, calls, times = x0.batch, len(times) - 1, times.to(x0.ids.device)
    place = (rng.rand(1, generator) + torch.arange(n, device=generator.device) / n) % 1
    k = (place * calls).long().clamp(max=calls - 1).to(x0.ids.device)
    noised = process.corrupt(x0, times[k], generator)
    ids = torch.where((k == 0)[:, None], process.prior(x0, generator).ids, noised.ids)
    return Start(x0.with_ids(ids), times[k], times[k + 1])


def rollout_start(
    student: TokenModel, process: MaskProcess, like: Tokens, cond: Cond, times: Tensor, k: int, gen: torch.Generator
) -> Start:
    """What the student's own sampler has made of `like` after k calls; the student comes under no_grad."""
    times = times.to(like.ids.device)
    z = ancestral(student, process, times[: k + 1], process.prior(like, gen), cond, gen)
    return Start(z, times[k].expand(z.batch), times[k + 1].expand(z.batch))


@dataclass(frozen=True)
class Jump:
    """One call of the student. log_g: its log-probabilities [N, V] at the masked positions of start.z.

    z_t: the sequence with the student's tokens of which some, at time t [B], are hidden again.
    """

    start: Start
    log_g: Tensor
    z_t: Tokens
    t: Tensor


def jump(
    process: MaskProcess, start: Start, log_g: Tensor, t: Tensor, generator: torch.Generator, *, all_tokens: bool
) -> Jump:
    """Draw the student's tokens, then hide some of them: those that are still hidden at t < s in its own chain.

    all_tokens: hide with probability 1 - keep(t) all that is free, the visible tokens of `start` too. A hidden token is
    not drawn: nothing depends on it.
    """
    z, device = start.z, start.z.ids.device
    own = process.masked(z)
    visible = process.keep(t) if all_tokens else process.reveal(start.s, t)
    hidden = (z.free if all_tokens else own) & (uniforms(z, generator) >= visible.to(device)[:, None])
    drawn, u = own & ~hidden, uniforms(z, generator)
    ids = torch.where(hidden, process.mask_id, z.ids)
    ids[drawn] = PLAIN(log_g.detach()[drawn[own]], u[drawn])
    return Jump(start, log_g, z.with_ids(ids), t)


def per_row(at: Tensor, values: Tensor) -> Tensor:
    """Sums [B] of `values` [N] over the True positions of `at` [B, L], in the order of `at.nonzero()`."""
    return torch.zeros(len(at), device=values.device, dtype=values.dtype).index_add(0, at.nonzero()[:, 0], values)


def entropy(log_p: Tensor) -> Tensor:
    """Entropies in nats of the rows of log_p [N, V]; a token of probability zero counts nothing."""
    return torch.special.entr(log_p.exp()).sum(1)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of the rows, [N]; what p never says counts nothing."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(1)
