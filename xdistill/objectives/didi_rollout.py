"""Two jumps of a student, all-masked -> z_tau -> sequence, with the log-probabilities of what each of them revealed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Batch, Cond, NoCond, TokenModel
from xdistill.objectives.didi_losses import floored, revealed_log_prob
from xdistill.process import MaskProcess
from xdistill.process.mask import uniforms
from xdistill.rng import Generator
from xdistill.samplers.draws import PLAIN, race, vocabulary_uniforms
from xdistill.state import Tokens


@dataclass(frozen=True)
class Jump:
    """One jump of B sequences, of which U distinct ones went through the network.

    before, after: [B, L]. inputs: what the network saw (U sequences, times [U], conditioning). at: [U, L], the
    positions it predicted. log_p: [N, V], with the graph. index: [B, L], the row of log_p of each position.
    """

    before: Tokens
    after: Tokens
    inputs: tuple[Tokens, Tensor, Cond]
    at: Tensor
    log_p: Tensor
    index: Tensor

    def floored(self) -> Jump:
        """The same with probabilities of at least 1e-10."""
        return replace(self, log_p=floored(self.log_p))

    def log_prob(self) -> Tensor:
        """log p of each token that was revealed, [B, L], 0 elsewhere; the schedule's factors carry no parameters."""
        return revealed_log_prob(self.log_p, self.index, self.after.ids, self.before.ids != self.after.ids)


Jumps = tuple[Jump, Jump]


def jump(
    model: TokenModel,
    process: MaskProcess,
    z: Tokens,
    t: Tensor,
    s: Tensor,
    cond: Cond,
    generator: Generator,
    *,
    repeats: int = 1,
    every: bool = True,
    drawer: TokenModel | None = None,
    race: bool = False,
) -> Jump:
    """From z at t [B] to s [B] by the rule of ancestral sampling (2406.07524 eq. 7).

    Args:
        cond: of the distinct sequences.
        repeats: z is made of sequences repeated so many times; the network sees each once.
        every: predict all masked positions, not only those that are revealed.
        drawer: draw the tokens from another network than `model`.
        race: draw as the published code, token and mask at once, by an fp32 race of uniforms [B, L, V].
    """
    masked = process.masked(z)
    reveal = masked if race else masked & (uniforms(z, generator) < process.reveal(t, s).to(z.ids.device)[:, None])
    few = slice(None, None, repeats)
    at = (masked if every or repeats > 1 else reveal)[few]
    inputs = (pick(z, few), t[few], cond)
    log_p = model(*inputs, at=at)
    rows = torch.arange(len(log_p), device=at.device)
    index = torch.zeros_like(at, dtype=torch.long).masked_scatter(at, rows).repeat_interleave(repeats, 0)
    law = (log_p.detach() if drawer is None else drawer(*inputs, at=at))[index[reveal]]
    drawn = raced(law, process, t, s, z, reveal, generator) if race else PLAIN(law, uniforms(z, generator)[reveal])
    return Jump(z, z.with_ids(z.ids.masked_scatter(reveal, drawn)), inputs, at, log_p, index)


def raced(
    log_p: Tensor, process: MaskProcess, t: Tensor, s: Tensor, z: Tokens, at: Tensor, generator: Generator
) -> Tensor:
    """[N] ids, the mask among them, at positions `at` by the fp32 exponential race of the MDLM code (text spec 1.8)."""
    row = at.nonzero()[:, 0]
    keep_t, keep_s = (process.keep(x).float()[row] for x in (t, s))
    p = F.pad(log_p.float().exp(), (0, max(0, process.mask_id + 1 - log_p.shape[1])))
    q = p * (keep_s - keep_t)[:, None]
    q[:, process.mask_id] = 1 - keep_s
    return race(q, vocabulary_uniforms(z, q.shape[1], generator)[at])


def two_jumps(
    model: TokenModel,
    process: MaskProcess,
    batch: Batch[Tokens],
    tau: Tensor,
    generator: Generator,
    *,
    end: float = 0.0,
    **options: Any,
) -> Jumps:
    """1 -> tau -> end of each sequence of the batch, repeated so often that there are as many as times tau [B].

    options: `every`, `drawer` and `race` of `jump`.
    """
    group = len(tau) // batch.like.batch
    z = process.prior(repeat(batch.like, group), generator)
    alike = isinstance(batch.cond, NoCond) and bool((z.ids == z.ids[:1]).all() & (z.mask == z.mask[:1]).all())
    start, last, repeats = torch.ones_like(tau), torch.full_like(tau, end), len(tau) if alike else group
    first = jump(model, process, z, start, tau, batch.cond, generator, repeats=repeats, **options)
    cond = repeat_cond(batch.cond, group)
    return first, jump(model, process, first.after, tau, last, cond, generator, **options)


def pick(z: Tokens, rows: slice) -> Tokens:
    """Some of the sequences."""
    return Tokens(z.ids[rows], z.mask[rows], None if z.given is None else z.given[rows])


def repeat(z: Tokens, n: int) -> Tokens:
    """Every sequence n times, one after the other."""
    given = None if z.given is None else z.given.repeat_interleave(n, 0)
    return Tokens(z.ids.repeat_interleave(n, 0), z.mask.repeat_interleave(n, 0), given)


def repeat_cond(cond: Cond, n: int) -> Cond:
    """The conditioning of `repeat`; raises UsageError for one that has no `repeat(n)`."""
    if isinstance(cond, NoCond) or n == 1:
        return cond
    if not hasattr(cond, "repeat"):
        raise UsageError(f"{type(cond).__name__} has no repeat(n): this objective draws several samples a condition")
    return cond.repeat(n)
