"""SDTT: the student says in one call what a teacher says in several steps from the same partly masked sequence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill.models import Batch, Cond, TokenModel
from xdistill.objectives.base import LossOut, Phase
from xdistill.objectives.mdlm import clean
from xdistill.objectives.rounds import Rounds
from xdistill.objectives.tokens import token_sums
from xdistill.process import MaskProcess
from xdistill.process.mask import uniforms
from xdistill.rng import Generator
from xdistill.roles import RoleView
from xdistill.samplers.mask import PLAIN
from xdistill.state import Tokens


@torch.no_grad()
def revealing_targets(
    teacher: TokenModel,
    process: MaskProcess,
    times: Sequence[Tensor],
    z: Tokens,
    places: Tensor,
    cond: Cond,
    generator: Generator,
) -> Tensor:
    """Log-probabilities [N, V] of the N masked positions of z, each as the teacher saw it when it revealed it.

    times: k + 1 of [B], decreasing from that of z: k teacher steps, k calls. places: which z was masked by. What the
    last step leaves masked takes the last log-probabilities too, so that step needs no draw; all steps together send
    each position through the vocabulary head once.
    """
    at, said = process.masked(z), []
    for t, r in itertools.pairwise(times[:-1]):
        now = process.masked(z) & (places < process.keep(r).to(places.device)[:, None])
        u = uniforms(z, generator)[now]
        if now.any():
            log_p = teacher(z, t, cond, at=now)
            said.append((now, log_p))
            ids = z.ids.clone()
            ids[now] = PLAIN(log_p, u)
            z = z.with_ids(ids)
    left = process.masked(z)
    log_p = teacher(z, times[-2], cond, at=left)
    target = log_p.new_empty(int(at.sum()), log_p.shape[1])
    for where, values in (*said, (left, log_p)):
        target[where[at]] = values
    return target


@dataclass(eq=False, kw_only=True)
class SDTT(Rounds):
    """Self-distillation through time (2410.21035): the student at (z_t, t) against `substeps` ancestral teacher steps.

    substeps: teacher steps in one step of the student.

    With rounds > 1 the first round teaches a student of steps x substeps^(rounds - 1) calls, the last one of `steps`.
    Differences from the paper: times evenly spaced (text spec 3), a choice of anchors as times, of any number of
    substeps, and of a single round, which distils a frozen teacher of steps x substeps calls at once.
    Oracle: with forward KL the optimum is the law of each token under the teacher's steps from z_t; for an exact
    posterior that is the posterior itself, so what sharpens a student is the reverse KL.
    """

    substeps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one("substeps")

    @property
    def growth(self) -> int:
        return self.substeps

    def loss(self, phase: Phase, batch: Batch[Tokens], net: RoleView, generator: torch.Generator) -> LossOut:
        x0, calls = clean(batch), self.calls(phase)
        t = self.draw_times(x0, calls, net.shared)
        places = self.process.places(x0, generator)
        z_t = self.process.show(x0, places, t)
        times = [t - j / (calls * self.substeps) for j in range(self.substeps + 1)]
        target = revealing_targets(self.frozen(phase, net), self.process, times, z_t, places, batch.cond, generator)
        at = self.process.masked(z_t)
        gap = self.gap(net.train("student")(z_t, t, batch.cond, at=at), target)
        per_sample = token_sums(gap, at) / self.masked_tokens(x0, calls)
        return LossOut(per_sample, {"loss": per_sample.detach()})
