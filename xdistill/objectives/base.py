"""The contract of an objective: roles, phases and per-sample losses; no engine, no modality, no batch mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Batch, Cond
from xdistill.process import GaussianProcess, Process
from xdistill.rng import Generator
from xdistill.roles import RoleSpec, RoleView
from xdistill.samplers import renoise
from xdistill.sources import student_rollout
from xdistill.state import Field
from xdistill.times import Anchors


@dataclass(frozen=True)
class Phase:
    """One kind of update inside a macro-step: `owner` is trained, `repeat` times, each on fresh draws."""

    name: str
    owner: str
    repeat: int = 1


@dataclass(frozen=True)
class LossOut:
    """per_sample [B] carries the graph; metrics are detached scalars or [B] tensors for the logs."""

    per_sample: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What an objective asks of a run; checked once, before it starts."""

    data: bool = False
    process: type[Process[Any]] = GaussianProcess  # type: ignore[type-abstract]
    derivative: bool = False
    features: bool = False


def spread(x_hat: Field) -> Tensor:
    """Root mean square of a student's samples, [B]: what shrinks first when it collapses."""
    return x_hat.detach().mean_square().sqrt()


class Objective(ABC):
    """A distillation method: pure mathematics over roles, a process and explicit generators."""

    needs: Needs = Needs()

    @property
    @abstractmethod
    def roles(self) -> tuple[RoleSpec, ...]:
        """The networks this objective needs."""

    @abstractmethod
    def phases(self, macro_step: int) -> Sequence[Phase]:
        """The updates of one macro-step, in order."""

    @abstractmethod
    def loss(self, phase: Phase, batch: Batch, net: RoleView, generator: torch.Generator) -> LossOut:
        """Per-sample loss of the phase's owner; the engine averages it over samples, micro-batches and ranks."""

    @abstractmethod
    def sample(self, model: Any, like: Any, cond: Cond, generator: Generator, *args: Any, **options: Any) -> Any:
        """Draw samples with the sampler this objective trains for."""


class FewStep(Objective):
    """What few-step objectives over Gaussian processes share: a process, anchors and the re-noising sampler.

    first_step: training draws a step k of the chain uniformly from first_step to steps - 1. The student's steps share
    one critic, which matches their mixture: a first step that cannot be good yet pushes the later ones off.
    """

    def __init__(self, process: GaussianProcess, anchors: Anchors, steps: int, first_step: int = 0) -> None:
        if not 0 <= first_step < steps:
            raise UsageError(f"first_step={first_step}: expected 0 to steps - 1 = {steps - 1}")
        self.process, self.anchors, self.steps, self.first_step = process, anchors, steps, first_step

    def rollout(self, batch: Batch[Field], net: RoleView, generator: torch.Generator, *, grad: bool) -> Field:
        """The student's clean estimate at a random trained step of its own chain."""
        times = self.anchors(self.steps)
        return student_rollout(net, self.process, times, batch, generator, grad=grad, first=self.first_step)

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
        """`steps` calls (default: as trained) of the re-noising sampler."""
        times = self.anchors(steps or self.steps)
        return renoise(model, self.process, times, like, cond, generator, noise_scale=noise_scale)
