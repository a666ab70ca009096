"""Regression of a few-step student on the teacher's own ODE trajectories: AccVideo's secants, or their ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xdistill import rng
from xdistill.domain import DataSource
from xdistill.errors import UsageError
from xdistill.models import Batch, Cond, denoise
from xdistill.objectives.base import FewStep, LossOut, Phase, Setting, spread
from xdistill.objectives.flow_matching import FLOOR
from xdistill.process import GaussianProcess
from xdistill.rng import Generator
from xdistill.roles import RoleSpec, RoleView
from xdistill.samplers import Plan
from xdistill.samplers.hops import to_zero
from xdistill.sources import Trajectories, teacher_trajectory
from xdistill.state import Field, Ragged, lerp
from xdistill.times import shared
from xdistill.trajectories import stored


def hop_target(process: GaussianProcess, x_t: Field, x_r: Field, t: Tensor, r: Tensor) -> Field:
    """The clean estimate whose DDIM hop takes x_t to x_r: (s_t x_r - s_r x_t) / (s_t a_r - s_r a_t) (spec 0.4)."""
    a, b = process.coeffs(t), process.coeffs(r)
    det = a.sigma * b.alpha - b.sigma * a.alpha
    return lerp([(a.sigma / det, x_r), (-b.sigma / det, x_t)])


def rotated(states: list[Field], generator: torch.Generator) -> list[Field]:
    """All states of a sample turned by one uniform rotation of their last axis, drawn for each sample."""
    value = states[0].value
    n, d = states[0].batch, value.shape[-1]
    q, r = torch.linalg.qr(torch.randn(n, d, d, generator=generator, device=generator.device, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # makes QR unique, hence q uniform on O(d)
    q[:, 0] = q[:, 0] * torch.linalg.det(q).sign()[:, None]
    q = q.to(value)
    layout = states[0].layout
    if isinstance(layout, Ragged):
        return [Field(torch.einsum("mc,mcd->md", x.value, q[layout.index]), x.layout) for x in states]
    return [Field(torch.einsum("b...c,bcd->b...d", x.value, q), x.layout) for x in states]


def at(states: list[Field], index: Tensor) -> Field:
    """Sample b of states[index[b]], in any layout."""
    return lerp([((index == i).double(), x) for i, x in enumerate(states)])


@dataclass(eq=False, kw_only=True)
class Secant(FewStep):
    """Fit the student's hops to stored ODE trajectories of the teacher: a plain regression, no critic.

    From the state x_t at anchor t the student's clean estimate D is regressed to the one whose hop meets the
    trajectory again at r, with weight W^2 / sigma^2: on the linear path this is AccVideo's
    |u - (x_r - x_t) / (r - t)|^2 (2503.19462). target: `next` takes r to be the next anchor, the sampler hops
    (DDIM), and the student starts TDM, which hops too; `clean` takes r = 0 (knowledge distillation): every D is a
    sample of its own, as SiD and DMD score and re-noise them, so this one starts those. The first anchor's
    input is signal-free, as in the sampler.
    trajectories: how many are stored before training, 0 computes fresh ones in every step. store: the folder that keeps
    them, null is `trajectories` in the run's; a filled one is reused and may grow, never mixed with another
    teacher's. solver_steps: ODE steps of the teacher between neighbouring stored times, of Heun if `heun`, else Euler.
    rotate: turn input and target together, for coordinates without a preferred orientation and networks that know of
    none (objectives spec 0.5). huber: as in TDM. Options of every few-step objective: see FewStep.
    Differences from AccVideo: no adversarial term; the move is a DDIM hop on paths that are not straight.
    Oracle: on Gaussian data the optimum is the flow map, where the loss is zero.
    """

    target: str = "next"
    trajectories: int = 2048
    store: str | None = None
    solver_steps: int = 8
    heun: bool = True
    rotate: bool = False
    huber: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in ("next", "clean"):
            raise UsageError(f"unknown target '{self.target}' of secant: choose next or clean")
        if self.trajectories < 0 or self.solver_steps < 1:
            raise UsageError("secant needs trajectories >= 0 and solver_steps >= 1")
        anchors = torch.cat([self.anchors(k) for k in self.counts])
        #: times of the stored states, from the prior to the data
        self.grid = torch.cat([torch.ones(1, dtype=torch.float64), to_zero(anchors)]).unique().flip(0)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return RoleSpec("teacher", trainable=False), RoleSpec("student")

    def phases(self, macro_step: int) -> tuple[Phase, ...]:
        return (Phase("student", "student"),)

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        steps, told = self.start(batch, net)
        states = self._states(batch, net, generator)
        times, n, device = to_zero(self.anchors(steps)), batch.like.batch, batch.like.value.device
        k = (self.first(steps) + (steps - self.first(steps)) * rng.rand(n, generator)).long().cpu()
        end = k + 1 if self.target == "next" else torch.full_like(k, steps)
        t, r = times[k].to(device), times[end].to(device)
        x_t = at(states, torch.searchsorted(-self.grid, -times[k]).to(device))
        x_r = at(states, torch.searchsorted(-self.grid, -times[end]).to(device))
        # The sampler starts at its first anchor without a signal: there the input is the trajectory's own noise.
        start, one = (k == 0).double().to(device), shared(1.0, n, device)
        ratio = self.process.coeffs(t).sigma / self.process.coeffs(one).sigma
        x_t = lerp([(start * ratio, states[0]), (1 - start, x_t)])
        x_hat = denoise(net.train("student"), self.process, x_t, t, told.cond)
        c = self.process.coeffs(t)
        weight = c.wronskian**2 / (c.sigma**2 + FLOOR)
        square = weight.to(x_t.value) * (x_hat - hop_target(self.process, x_t, x_r, t, r)).mean_square()
        per_sample = (square + self.huber**2).sqrt() - self.huber if self.huber else square
        return LossOut(per_sample, {"loss": per_sample.detach(), "spread": spread(x_hat)})

    def _states(self, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> list[Field]:
        if isinstance(batch, Trajectories):
            states = list(batch.states)
        else:
            states = self.trajectory(net.frozen("teacher"), batch, generator)
        return rotated(states, generator) if self.rotate else states

    def trajectory(self, teacher: Any, batch: Batch[Field], generator: Generator) -> list[Field]:
        """States of one teacher trajectory a sample at `self.grid`."""
        plan, steps, like, cond = Plan(self.grid), self.solver_steps, batch.like, batch.cond
        return teacher_trajectory(
            teacher, self.process, plan, like, cond, generator, heun=self.heun, solver_steps=steps
        )

    def source(self, source: DataSource, setting: Setting) -> DataSource:
        """The store, filled: ceil(trajectories / batch) shards of one batch each."""
        if not self.trajectories:
            return source
        identity = {"times": self.grid.tolist(), "solver": {"steps": self.solver_steps, "heun": self.heun}}
        count, folder = self.trajectories, self.store
        return stored(source, setting, self.trajectory, count=count, folder=folder, identity=identity)

    def sample(
        self,
        model: Any,
        like: Field,
        cond: Cond,
        generator: Generator,
        *,
        steps: int | None = None,
        noise_scale: float = 1.0,
    ) -> Field:
        """`steps` calls (default: the most it was trained for): hops after `next`, re-noising after `clean`."""
        if self.target == "clean":
            return super().sample(model, like, cond, generator, steps=steps, noise_scale=noise_scale)
        return self.sample_hops(model, like, cond, generator, steps, noise_scale)
