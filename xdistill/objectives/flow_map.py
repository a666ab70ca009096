"""What objectives of average velocities share: jumps (t, r), states on the path, weights, and the sampler of jumps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from xdistill import rng, sources
from xdistill.errors import UsageError
from xdistill.models import Batch, Cond, average_velocity, tell, velocity
from xdistill.objectives.base import LossOut, Needs, Objective, Phase
from xdistill.process import GaussianProcess
from xdistill.process.schedules import Linear
from xdistill.rng import Generator
from xdistill.roles import RoleSpec, RoleView
from xdistill.samplers import Plan
from xdistill.samplers.flow_map import flow_map, jump
from xdistill.state import Field, Padded
from xdistill.times import Pairs, TimeLaw, Uniform

#: (x_t, t, r) -> u: a network's average velocity, its conditioning bound.
Average = Callable[[Field, Tensor, Tensor], Field]
#: (x_t, t) -> v.
Velocity = Callable[[Field, Tensor], Field]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one loss: times t >= r [B] float64, split shares lam [B], the noise e of x_t, and whether
    the condition is dropped.
    """

    t: Tensor
    r: Tensor
    lam: Tensor
    noise: Field
    dropped: bool = False

    @property
    def instant(self) -> Tensor:
        """[B] bool: rows without a jump (r = t), where average and instantaneous velocity are the same."""
        return self.r == self.t


def pick(rows: Tensor, yes: Field, no: Field) -> Field:
    """`yes` in the samples where `rows` [B] is true, `no` elsewhere; a non-finite value not taken does no harm."""
    return Field(torch.where(yes.layout.expand(rows, yes.value), yes.value, no.value), yes.layout)


def adaptive(square: Tensor, power: float, floor: float) -> Tensor:
    """square / sg[(square + floor)^power] (MeanFlow 2505.13447, eq. 22): power 0 is L2, 1 bounds the gradient."""
    return square / (square.detach() + floor) ** power


def whole(x: Field) -> Field:
    """The state with every real element scored: a sampler integrates a prompt's frames too (speech spec 2.7)."""
    layout = x.layout
    return Field(x.value, replace(layout, scored=None)) if isinstance(layout, Padded) else x


@dataclass(eq=False)
class FlowMap(Objective):
    """What every objective that trains average velocities u(x_t, t, r) shares: its sampler of jumps and its error.

    steps: network calls when it generates. times: of the sampler from 1 to 0, steps + 1 of them, as `xdistill
    search-steps` finds; null is equal steps. power, floor: of `adaptive` on the mean square error of a sample.
    """

    needs = Needs(process=Linear, flow_map=True)
    sample_keys = ("steps", "times", "noise_scale", "guidance")
    shown_calls = (1, 2, 4)

    process: GaussianProcess
    _: KW_ONLY
    steps: int = 2
    times: Sequence[float] | None = None
    power: float = 0.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        self.count("steps")
        self.grid(self.steps, self.times)

    def count(self, *names: str, least: int = 1) -> None:
        """Raises UsageError where an option is no whole number of at least `least`."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"objective.{name}={value}: expected a whole number, at least {least}")

    def share(self, *names: str) -> None:
        """Raises UsageError where an option is outside [0, 1]."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"objective.{name}={getattr(self, name)}: expected a share between 0 and 1")

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return RoleSpec("teacher", trainable=False), RoleSpec("student")

    def phases(self, macro_step: int) -> tuple[Phase, ...]:
        return (Phase("student", "student", macro_step=macro_step),)

    def score(self, found: Field, target: Field, jumps: Tensor) -> LossOut:
        """Adaptive mean square error a sample; the raw one is logged, apart for rows with `jumps` [B], since the
        weight hides divergence.
        """
        square = (found - target).mean_square()
        raw, jumps = square.detach(), jumps.to(square)
        metrics = {"error": raw, "error_jump": (raw * jumps).sum() / jumps.sum().clamp(min=1)}
        return LossOut(adaptive(square, self.power, self.floor), {"loss": raw, **metrics})

    def student(self, net: RoleView, cond: Cond) -> Average:
        """The live student without a graph."""
        model = net.frozen("student")
        return lambda x, t, r: average_velocity(model, self.process, x, t, r, cond)

    def teacher(self, net: RoleView, cond: Cond) -> Velocity:
        """The guided teacher."""
        model = net.frozen("teacher")
        return lambda x, t: velocity(model, self.process, x, t, cond)

    def grid(self, steps: int, times: Sequence[float] | None) -> Tensor:
        """Times of a sampler of `steps` calls; raises UsageError when `times` are not steps + 1 from 1 down to 0."""
        if steps < 1:
            raise UsageError(f"steps={steps}: expected a number of network calls, at least 1")
        if times is None:
            return Plan.uniform(steps).times
        try:
            found = torch.tensor([float(t) for t in times], dtype=torch.float64)
        except (TypeError, ValueError):
            found = torch.empty(0)
        if len(found) != steps + 1 or found[0] != 1 or found[-1] != 0 or not bool((found.diff() < 0).all()):
            raise UsageError(f"times={times}: expected {steps + 1} falling numbers from 1 to 0 for steps={steps}")
        return found

    def sample(
        self,
        model: Any,
        like: Field,
        cond: Cond,
        generator: Generator,
        *,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        noise_scale: float = 1.0,
        guidance: float | None = None,
    ) -> Field:
        """`steps` jumps from noise; its own `times` where they are that many, else equal ones.

        guidance: the scale to tell the student; raises UsageError where its network is told none.
        """
        if guidance is not None:
            cond = tell(cond, torch.full((like.batch,), guidance, device=like.value.device))
        calls = steps if steps is not None else len(times) - 1 if times else self.steps
        if times is None and self.times is not None and len(self.times) == calls + 1:
            times = self.times
        start = self.process.prior(like, generator) * noise_scale
        return flow_map(model, self.process, self.grid(calls, times), start, cond)


@dataclass(eq=False)
class DataFlowMap(FlowMap):
    """Options of flow maps that train on noised data.

    instant: the share of a batch with r = t, rounded at random. time_law: of t and r, drawn twice and sorted.
    whole_jumps: share of the other rows that go from 1 to 0. drop: share of micro-batches without condition.
    Options of every flow map: see FlowMap.
    """

    needs = Needs(data=True, process=Linear, flow_map=True)

    _: KW_ONLY
    instant: float = 0.5
    time_law: TimeLaw = field(default_factory=lambda: Uniform(0.0, 1.0))
    whole_jumps: float = 0.15
    drop: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.share("instant", "whole_jumps", "drop")

    def draw(self, x0: Field, phase: Phase, generator: torch.Generator) -> Draws:
        """The random numbers of a loss; the first rows of a batch are those without a jump."""
        n, device = x0.batch, x0.value.device
        t, r = Pairs(self.time_law, self.whole_jumps).sample(n, generator)
        still = int(self.instant * n + float(rng.rand(1, generator)))
        r = torch.where(torch.arange(n, device=r.device) < still, t, r)
        lam = self.draw_lam(n, phase, generator)
        return Draws(t.to(device), r.to(device), lam.to(device), x0.randn(generator))

    def draw_lam(self, n: int, phase: Phase, generator: torch.Generator) -> Tensor:
        """Split shares [n]; objectives without a split draw none."""
        return torch.zeros(n, dtype=torch.float64, device=generator.device)

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        x0 = whole(sources.data(batch))
        # Shared by all ranks, like every draw that changes which networks are called.
        dropped = bool(self.drop) and float(rng.rand(1, net.shared)) < self.drop
        return self.loss_at(replace(self.draw(x0, phase, generator), dropped=dropped), x0, batch.cond, net)

    def loss_at(self, draws: Draws, x0: Field, cond: Cond, net: RoleView) -> LossOut:
        """The loss with its random numbers given: what recorded fixtures replay."""
        cond = cond.drop() if draws.dropped else cond
        x_t = self.process.corrupt(x0, draws.t, torch.Generator(), draws.noise)
        target = self.target(draws, x_t, draws.noise - x0, cond, net).detach()
        u = average_velocity(net.train("student"), self.process, x_t, draws.t, draws.r, cond)
        return self.score(u, target, ~draws.instant)

    @abstractmethod
    def target(self, draws: Draws, x_t: Field, v: Field, cond: Cond, net: RoleView) -> Field:
        """What u(x_t, t, r) regresses on, without a graph; v = e - x0 is the velocity of the data pair."""


def mean_loss(losses: Sequence[LossOut]) -> LossOut:
    """The mean of several losses of the same samples, metrics too."""
    metrics = {k: torch.stack([out.metrics[k] for out in losses]).mean(0) for k in losses[0].metrics}
    return LossOut(torch.stack([out.per_sample for out in losses]).mean(0), metrics)


def displacement(v: Velocity, x_t: Field, t: Tensor, r: Tensor, steps: int, *, heun: bool = False) -> Field:
    """(x_t - x_r) / (t - r) by `steps` Euler or Heun steps of v along the ODE; v itself in rows with r = t.

    The mean of the steps' velocities is the same and divides by no t - r.
    """
    x, size, total = x_t, (t - r) / steps, x_t.zeros()
    for k in range(steps):
        x, slope = solver_step(v, x, t - k * size, t - (k + 1) * size, heun=heun)
        total = total + slope
    return total * (1 / steps)


def solver_step(v: Velocity, x_t: Field, t: Tensor, r: Tensor, *, heun: bool = False) -> tuple[Field, Field]:
    """(x_r, the slope that leads there): one Euler or Heun step of the ODE from t [B] to r [B].

    At r = 0, where a clean estimate says nothing of the velocity, Heun's is an Euler step, as in `samplers.ode`.
    """
    slope = v(x_t, t)
    if heun:
        slope = pick(r == 0, slope, (slope + v(jump(x_t, slope, t, r), r)) * 0.5)
    return jump(x_t, slope, t, r), slope
