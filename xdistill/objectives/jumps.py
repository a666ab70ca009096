"""One call of a student of masked diffusion: where it starts, and which of its tokens are hidden again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill import rng
from xdistill.models import Cond, TokenModel
from xdistill.objectives.categorical import entropy, kl
from xdistill.objectives.tokens import FewStepTokens, token_sums
from xdistill.process import MaskProcess
from xdistill.process.mask import uniforms
from xdistill.samplers.mask import PLAIN, ancestral
from xdistill.samplers.mask_reveal import reveal
from xdistill.state import Tokens


@dataclass(frozen=True)
class Start:
    """Partly masked sequences z at times s [B], anchors of the student; r [B] is the time of its next call.

    hop: [B, L] bool, the tokens that the call reveals where the order of reveals is planned; None where chance tells.
    """

    z: Tokens
    s: Tensor
    r: Tensor
    hop: Tensor | None = None


def data_start(
    process: MaskProcess, x0: Tokens, times: Tensor, generator: torch.Generator, anchor: int | None = None
) -> Start:
    """Data noised to one anchor of `times` [N + 1], or to all, spread over the batch; at anchor 0 nothing is left."""
    n, calls, times = x0.batch, len(times) - 1, times.to(x0.ids.device)
    place = (rng.rand(1, generator) + torch.arange(n, device=generator.device) / n) % 1
    k = (place * calls).long().clamp(max=calls - 1).to(times.device)
    k = k if anchor is None else torch.full_like(k, anchor)
    places = process.places(x0, generator)
    noised = process.show(x0, places, times[k])
    z = x0.with_ids(torch.where((k == 0)[:, None], process.prior(x0, generator).ids, noised.ids))
    return Start(z, times[k], times[k + 1], planned(process, z, places, times[k + 1]))


def planned(process: MaskProcess, z: Tokens, places: Tensor, r: Tensor) -> Tensor | None:
    """What is revealed next, at r [B], by the places that z was masked by; None of an order by chance."""
    if process.order == "independent":
        return None
    return process.masked(z) & (places < process.keep(r).to(places.device)[:, None])


def rollout_start(
    student: TokenModel, process: MaskProcess, like: Tokens, cond: Cond, times: Tensor, k: int, gen: torch.Generator
) -> Start:
    """What the student's own sampler has made of `like` after k calls; the student comes under no_grad."""
    times, z = times.to(like.ids.device), process.prior(like, gen)
    s, r = times[k].expand(z.batch), times[k + 1].expand(z.batch)
    if process.order == "independent":
        return Start(ancestral(student, process, times[: k + 1], z, cond, gen), s, r)
    calls, places = len(times) - 1, process.places(z, gen)
    step = (places * calls).long()
    plan = torch.where(process.masked(z) & (step < k), step, calls)
    z = reveal(student, z, times[None, :-1], cond, plan, uniforms(z, gen), PLAIN)
    return Start(z, s, r, process.masked(z) & (step == k))


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
    if start.hop is not None:
        shown = uniforms(z, generator) < (visible / process.reveal(start.s, start.r)).to(device)[:, None]
        hidden = own & ~(start.hop & shown)
    drawn, u = own & ~hidden, uniforms(z, generator)
    ids = torch.where(hidden, process.mask_id, z.ids)
    ids[drawn] = PLAIN(log_g.detach()[drawn[own]], u[drawn])
    return Jump(start, log_g, z.with_ids(ids), t)


@dataclass(eq=False, kw_only=True)
class Anchored(FewStepTokens):
    """What keeps a student diverse where a call starts.

    kl, entropy: weights, in the loss of a masked token, of KL(teacher || G) and of the entropy of G.
    """

    kl: float = 0.0
    entropy: float = 0.0

    def anchor(self, start: Start, log_g: Tensor, teacher: TokenModel, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [B], a token of a mean sequence, and what to log."""
        own, spread = self.process.masked(start.z), entropy(log_g)
        token, metrics = -self.entropy * spread, {"entropy": spread.detach().mean()}
        if self.kl:
            gap = kl(teacher(start.z, start.s, cond, at=own), log_g)
            token, metrics["kl"] = token + self.kl * gap, gap.detach().mean()
        return token_sums(token, own) / own.sum(1).to(token).mean().clamp(min=1), metrics
