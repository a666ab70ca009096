"""Consistency distillation, phase by phase: one teacher step apart, the student jumps to the same point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill import rng, sources
from xdistill.errors import UsageError
from xdistill.models import Batch, average_velocity
from xdistill.objectives.base import LossOut, Needs, Phase
from xdistill.objectives.flow_map import FlowMap, Velocity, mean_loss, pick, solver_step, whole
from xdistill.objectives.secant import at
from xdistill.process.schedules import Linear
from xdistill.roles import RoleView
from xdistill.samplers.flow_map import jump
from xdistill.state import Field
from xdistill.times import shifted

#: (x_t, x_r, t, r): states one teacher step apart.
Ends = tuple[Field, Field, Tensor, Tensor]


def rollout(v: Velocity, start: Field, times: Tensor) -> Iterator[tuple[Field, Field]]:
    """(state, velocity there) of the Euler trajectory from `start` over `times` [N + 1, B], at the first N of them."""
    x = start
    for t, r in itertools.pairwise(times):
        after, slope = solver_step(v, x, t, r)
        yield x, slope
        x = after


@dataclass(eq=False, kw_only=True)
class Consistency(FlowMap):
    """Agreement of the jumps F from x_t and from x_r to the end of their phase, x_r one teacher step on.

    F(x_t, t) = x_t - (t - tau) u(x_t, t, tau), on the linear path the DDIM hop to tau of a clean estimate, and the loss
    is |F(x_t, t) - sg F(x_r, r)|^2 with the student itself, without a gradient, as its target. Phases lie between the
    sampler's `times`: steps = 1 is consistency distillation (2303.01469), more are phased (PCM 2405.18407, MLCM
    2406.05768). At r = tau the target is x_r, the teacher's.
    points: cells of the time grid from 1 to 0, equal or, with `shift` kappa, at kappa u / (1 + (kappa - 1) u);
    r is the next point or tau, whichever comes first. heun: a Heun step of the guided teacher, else Euler.
    states: `data` noised at points, or `rollout`: an Euler trajectory of the teacher from noise over times drawn in
    each cell, the first at t = 1 (TBCM 2511.20410); its velocities make x_r, no teacher call is added. pairs: (t, r) of
    a sample in one update; a rollout costs the same for all of them. Options of every flow map: see FlowMap.
    Differences from the papers: the target is the live student, not an average; states of a rollout are those of the
    discrete loss, without the derivative of sCM.
    Oracle: on Gaussian data with exact steps the loss is zero at the flow map, and (1 - tau / t)^2 d^2 where its clean
    estimate is off by d.
    """

    points: int = 32
    shift: float = 1.0
    heun: bool = False
    states: str = "data"
    pairs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count("points", "pairs")
        if self.states not in ("data", "rollout"):
            raise UsageError(f"objective.states={self.states}: choose data or rollout")
        if self.states == "rollout" and self.heun:
            raise UsageError("objective.states=rollout uses the velocities of its Euler steps again: set heun=false")
        self.edges = self.grid(self.steps, self.times)
        self.cells = shifted(torch.linspace(1, 0, self.points + 1, dtype=torch.float64), self.shift)
        if self.states == "data":
            self.needs = Needs(data=True, process=Linear, flow_map=True)

    def phase_end(self, t: Tensor) -> Tensor:
        """tau [B] < t: where the phase that t [B] lies in, or begins, ends."""
        edges = self.edges.to(t.device)
        return torch.where(edges < t[:, None], edges, 0.0).amax(1)

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        made = self._data if self.states == "data" else self._rollout
        return mean_loss([self.loss_at(*ends, batch, net) for ends in made(batch, net, generator)])

    def loss_at(self, x_t: Field, x_r: Field, t: Tensor, r: Tensor, batch: Batch[Field], net: RoleView) -> LossOut:
        """The loss of states one teacher step apart."""
        end = self.phase_end(t)
        u = average_velocity(net.train("student"), self.process, x_t, t, end, batch.cond)
        # At the end of a phase there is nothing to jump, and at r = 0 nothing that a clean estimate says of u.
        target = pick(r == end, x_r, jump(x_r, self.student(net, batch.cond)(x_r, r, end), r, end))
        return self.score(jump(x_t, u, t, end), target.detach(), torch.ones_like(t))

    def _data(self, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> list[Ends]:
        """`pairs` times (x_t, x_r, t, r) from noised data."""
        x0, teacher, out = whole(sources.data(batch)), self.teacher(net, batch.cond), []
        for _ in range(self.pairs):
            k = (rng.rand(x0.batch, generator) * self.points).long().cpu()
            t, r = (self.cells[i].to(x0.value.device) for i in (k, k + 1))
            r = torch.maximum(r, self.phase_end(t))
            x_t, _ = sources.noised(self.process, x0, t, generator)
            out.append((x_t, solver_step(teacher, x_t, t, r, heun=self.heun)[0], t, r))
        return out

    def _rollout(self, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> list[Ends]:
        """`pairs` times (x_t, x_r, t, r) of one teacher trajectory a sample."""
        like = whole(batch.like)
        n, device = like.batch, like.value.device
        times = self.draw_times(n, generator).to(device)
        path = list(rollout(self.teacher(net, batch.cond), self.process.prior(like, generator), times))
        out = []
        for _ in range(self.pairs):
            k = (rng.rand(n, generator) * self.points).long().to(device)
            x_t, v = (at([step[i] for step in path], k) for i in (0, 1))
            t, after = (times.gather(0, i[None])[0] for i in (k, k + 1))
            r = torch.maximum(after, self.phase_end(t))
            out.append((x_t, jump(x_t, v, t, r), t, r))
        return out

    def draw_times(self, n: int, generator: torch.Generator) -> Tensor:
        """[points + 1, n] falling: 1, one time in each further cell, 0."""
        width = -self.cells.diff()[1:, None].to(generator.device)
        u = rng.rand((self.points - 1) * n, generator).view(-1, n)
        inner = self.cells[1:-1, None].to(generator.device) - u * width
        one = torch.ones(1, n, dtype=torch.float64, device=generator.device)
        return torch.cat([one, inner, 0 * one])
