"""A student that is told how strongly to imitate guidance: exact where velocities are known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from flow_map_cases import F64, PROCESS, N, draw, gap, view
from scipy.stats import kstest
from torch import Tensor, nn

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.guidance import Guided, ToldSource
from xdistill.models import Batch, NoCond, tell, told
from xdistill.objectives import Setting
from xdistill.objectives.flow_map import Draws
from xdistill.objectives.improved_meanflow import ImprovedMeanFlow
from xdistill.objectives.interval import Interval
from xdistill.objectives.mid_training import MidTraining
from xdistill.process import Kind
from xdistill.state import Dense, Field
from xdistill.times import ConstantLam

SCALES = torch.linspace(1, 6, N, dtype=F64)


@dataclass(frozen=True)
class Asked:
    """A condition that is there or not, and a scale."""

    given: bool = True
    guidance: Tensor | None = None

    def drop(self) -> Asked:
        return replace(self, given=False)

    def with_guidance(self, scale: Tensor | None) -> Asked:
        return replace(self, guidance=scale)

    def to(self, device: torch.device) -> Asked:
        return self


def known(x: Field, given: bool) -> Field:
    """A velocity with the condition, and another without."""
    return Field((1.7 if given else -0.4) * x.value + 0.3 * given, x.layout)


class Plain(nn.Module):
    """A teacher that must not be told a scale."""

    kind = Kind.VELOCITY

    def forward(self, x_t: Field, t: Tensor, cond: Asked) -> Field:
        assert told(cond) is None
        return known(x_t, cond.given)


class Exact(nn.Module):
    """The guided velocity of every scale, without the condition that of none: what a student should become."""

    kind, flow_map, time_scale = Kind.VELOCITY, True, 1.0

    def forward(self, x_t: Field, t: Tensor, cond: Asked, *, r: Tensor | None = None) -> Field:
        assert cond.guidance is not None
        if not cond.given:
            return known(x_t, False)
        return Guided(Plain(), 1.0)(x_t, t, cond)


def instants(objective):
    """The objective's target where r = t, with the conditional velocity for the data's: (target, exact)."""
    x, t, _, lam = draw()
    cond, student = Asked(guidance=SCALES), Exact()
    draws = Draws(t, t, lam, x)
    found = objective.target(draws, x, known(x, True), cond, view(student, Guided(Plain(), 2.0)))
    return found, student(x, t, cond)


@pytest.mark.parametrize(
    "objective",
    [
        Interval(PROCESS),
        ImprovedMeanFlow(PROCESS, velocity="teacher"),
        ImprovedMeanFlow(PROCESS, velocity="data"),
        Interval(PROCESS, velocity="data", leg="velocity", lam=ConstantLam(0.0)),
        Interval(PROCESS, velocity="data", leg="velocity", lam=ConstantLam(0.0), kappa=0.6),
    ],
    ids=["split", "improved of a teacher", "improved of data", "meanflow", "meanflow, kappa 0.6"],
)
def test_the_guided_velocity_of_every_scale_is_the_fixed_point(objective) -> None:
    target, exact = instants(objective)
    assert gap(target, exact) < 1e-12


def test_without_a_condition_data_are_not_guided() -> None:
    x, t, _, lam = draw()
    for objective in (
        ImprovedMeanFlow(PROCESS, velocity="data"),
        Interval(PROCESS, velocity="data", leg="velocity", lam=ConstantLam(0.0)),
    ):
        v, cond = known(x, False), Asked(guidance=SCALES).drop()
        target = objective.target(Draws(t, t, lam, x, dropped=True), x, v, cond, view(Exact()))
        assert gap(target, v) == 0


class Fixed:
    """Batches of N conditions."""

    def batch(self, index: int, rank: int, world: int) -> Batch[Field]:
        return Batch(Field(torch.zeros(N, 2), Dense(N)), Asked())


def test_scales_are_drawn_with_density_one_over_w() -> None:
    source = ToldSource(Fixed(), 1.0, 8.0, 3)
    drawn = torch.stack([told(source.batch(i, rank, 2).cond) for i in range(30) for rank in (0, 1)])
    assert torch.equal(told(source.batch(7, 1, 2).cond), drawn[15])
    assert len(drawn.unique()) == drawn.numel()
    u = (drawn.double().log() / torch.log(torch.tensor(8.0))).flatten()
    assert kstest(u.numpy(), "uniform").pvalue > 0.01


def test_a_sampler_tells_its_scale_to_every_call() -> None:
    like, heard = Field(torch.zeros(3, 2, dtype=F64), Dense(3)), []

    class Listening(Exact):
        def forward(self, x_t: Field, t: Tensor, cond: Asked, *, r: Tensor | None = None) -> Field:
            heard.append(cond.guidance)
            return x_t

    objective = Interval(PROCESS)
    for scale in (None, 2.5):
        objective.sample(Listening(), like, Asked(), rng.generator("told"), steps=2, guidance=scale)
    assert heard[:2] == [None, None]
    assert all(torch.equal(h, torch.full((3,), 2.5)) for h in heard[2:])
    with pytest.raises(UsageError, match="tell a network no guidance scale"):
        tell(NoCond(), torch.ones(3))


def test_stored_trajectories_are_of_the_scale_that_comes_with_them(tmp_path) -> None:
    objective = MidTraining(PROCESS, points=3, trajectories=2 * N, solver_steps=1)
    setting = Setting(Guided(Plain(), 2.0), tmp_path, {"seed": 0}, torch.device("cpu"), True)
    batch = objective.source(ToldSource(Fixed(), 1.0, 6.0, 3), setting).batch(0, 0, 1)
    x, _, last = batch.states
    for a, b in itertools.pairwise(objective.known.tolist()):
        velocity = Guided(Plain(), 1.0)(x, torch.full((N,), a, dtype=F64), batch.cond)
        x = x + (b - a) * velocity
    assert len(told(batch.cond).unique()) == N
    assert gap(x, last) < 1e-4
