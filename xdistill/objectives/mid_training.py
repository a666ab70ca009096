"""Consistency mid-training (mf-rae's CMT): average velocities read off stored trajectories of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xdistill import rng
from xdistill.domain import DataSource
from xdistill.errors import UsageError
from xdistill.models import Batch, average_velocity
from xdistill.objectives.base import LossOut, Phase, Setting
from xdistill.objectives.flow_map import FlowMap, mean_loss, whole
from xdistill.objectives.secant import at, rotated
from xdistill.rng import Generator
from xdistill.roles import RoleView
from xdistill.samplers import Plan
from xdistill.sources import Trajectories, teacher_trajectory
from xdistill.state import Field, lerp
from xdistill.times import shifted
from xdistill.trajectories import stored


def secant(x_t: Field, x_r: Field, t: Tensor, r: Tensor) -> Field:
    """(x_t - x_r) / (t - r): the average velocity of a jump whose ends are known; t > r."""
    return lerp([(1 / (t - r), x_t), (-1 / (t - r), x_r)])


@dataclass(eq=False, kw_only=True)
class MidTraining(FlowMap):
    """Fit u(x_t, t, r) to the secant of two states of one teacher trajectory: fixed targets, no data, no derivative.

    points: states of a trajectory, from noise to data, at equal times or, with `shift` kappa, at
    kappa u / (1 + (kappa - 1) u); pairs are told the true times of their states. solver_steps: ODE steps of the teacher
    between neighbouring ones, of Heun if `heun`, else Euler. pairs: jumps a trajectory gives in one update.
    from_noise: share of them that begin at t = 1, whole_jumps: share that go on to t = 0, since samplers of few steps
    use those most; the others are uniform over all pairs. trajectories: how many are stored before training, 0 computes
    fresh ones in every step. store: the folder that keeps them, null is `trajectories` in the run's; a filled one is
    reused and may grow. half: keep them as float16, whose rounding adds noise of about 4e-4 |x| / (t - r) to targets.
    rotate: turn input and target together, for coordinates without a preferred orientation (objectives spec 0.5).
    Options of every flow map: see FlowMap.
    Differences from mf-rae: its uniform time labels of states on a warped grid, and its weight of the fourth power, are
    not copied.
    Oracle: on Gaussian data targets approach the exact flow map's at the solver's order.
    """

    points: int = 16
    shift: float = 1.0
    solver_steps: int = 1
    heun: bool = False
    pairs: int = 1
    from_noise: float = 0.25
    whole_jumps: float = 0.15
    trajectories: int = 2048
    store: str | None = None
    half: bool = False
    rotate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count("points", least=2)
        self.count("solver_steps", "pairs")
        self.count("trajectories", least=0)
        self.share("from_noise", "whole_jumps")
        if self.from_noise + self.whole_jumps > 1:
            raise UsageError("from_noise and whole_jumps are shares of the same pairs: expected a sum of at most 1")
        #: times of the stored states, from the prior to the data
        self.known = shifted(torch.linspace(1, 0, self.points, dtype=torch.float64), self.shift)

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        made = batch.states if isinstance(batch, Trajectories) else self._fresh(batch, net, generator)
        states = [whole(x) for x in (rotated(list(made), generator) if self.rotate else made)]
        draws = [self.draw(batch.like.batch, generator) for _ in range(self.pairs)]
        return mean_loss([self.loss_at(i, j, states, batch, net) for i, j in draws])

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(i [n], j [n]), i < j: which states of a trajectory, those of larger times first."""
        kind, a, b = (rng.rand(n, generator) for _ in range(3))
        last = self.points - 1
        first, other = (a * self.points).long(), (b * last).long()
        other = other + (other >= first)  # uniform over the others
        i, j = torch.minimum(first, other), torch.maximum(first, other)
        noisy, end = kind < self.whole_jumps + self.from_noise, kind < self.whole_jumps
        j = torch.where(noisy, 1 + (b * last).long(), j)
        return torch.where(noisy, 0, i), torch.where(end, last, j)

    def loss_at(self, i: Tensor, j: Tensor, states: Sequence[Field], batch: Batch[Field], net: RoleView) -> LossOut:
        """The loss of the jumps from states i [B] to j [B]."""
        device = batch.like.value.device
        t, r = (self.known[k.cpu()].to(device) for k in (i, j))
        x_t, x_r = (at(list(states), k.to(device)) for k in (i, j))
        u = average_velocity(net.train("student"), self.process, x_t, t, r, batch.cond)
        return self.score(u, secant(x_t, x_r, t, r), torch.ones_like(t))

    def trajectory(self, teacher: Any, batch: Batch[Field], generator: Generator) -> list[Field]:
        """States of one teacher trajectory a sample at `self.known`."""
        plan, steps, like, cond = Plan(self.known), self.solver_steps, batch.like, batch.cond
        return teacher_trajectory(
            teacher, self.process, plan, like, cond, generator, heun=self.heun, solver_steps=steps
        )

    def _fresh(self, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> list[Field]:
        return self.trajectory(net.frozen("teacher"), batch, generator)

    def source(self, source: DataSource, setting: Setting) -> DataSource:
        """The store, filled: ceil(trajectories / batch) shards of one batch each."""
        if not self.trajectories:
            return source
        identity = {"times": self.known.tolist(), "solver": {"steps": self.solver_steps, "heun": self.heun}}
        return stored(
            source,
            setting,
            self.trajectory,
            count=self.trajectories,
            folder=self.store,
            identity=identity,
            half=self.half,
        )
