"""The contract of an objective: roles, phases and per-sample losses; no engine, no modality, no batch mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xdistill import rng
from xdistill.domain import DataSource
from xdistill.errors import UsageError
from xdistill.models import Batch, Cond
from xdistill.process import GaussianProcess, Process
from xdistill.rng import Generator
from xdistill.roles import RoleSpec, RoleView
from xdistill.samplers import renoise
from xdistill.samplers.hops import first_input, hops, to_zero
from xdistill.state import Field
from xdistill.times import Anchors, LinearAnchors

LINEAR = LinearAnchors()


@dataclass(frozen=True)
class Phase:
    """One kind of update inside a macro-step: `owner` is trained, `repeat` times, each on fresh draws.

    macro_step: the one it belongs to, for curricula.
    """

    name: str
    owner: str
    repeat: int = 1
    macro_step: int = 0


@dataclass(frozen=True)
class LossOut:
    """per_sample [B] carries the graph; metrics are detached scalars or [B] tensors for the logs."""

    per_sample: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What an objective asks of a run; checked once, before it starts.

    blocks: networks that take the conditioning of `xdistill.blocks`. flow_map: a student with a second time input.
    """

    data: bool = False
    process: type[Process[Any]] = GaussianProcess  # type: ignore[type-abstract]
    derivative: bool = False
    features: bool = False
    blocks: bool = False
    flow_map: bool = False


@dataclass(frozen=True)
class Setting:
    """What an objective may prepare its data with: the teacher, where the run keeps its files, and what it is.

    teacher: the guided network, None without one. folder: of the run. identity: what of the configuration says which
    teacher and data these are, `seed` included. device: where the networks will run. main: whether this process makes
    what all share; the others wait for it.
    """

    teacher: Any
    folder: Path
    identity: Mapping[str, Any]
    device: torch.device
    main: bool = True


def spread(x_hat: Field) -> Tensor:
    """Root mean square of a student's samples, [B]: what shrinks first when it collapses."""
    return x_hat.detach().mean_square().sqrt()


class Objective(ABC):
    """A distillation method: pure mathematics over roles, a process and explicit generators."""

    needs: Needs = Needs()
    #: Keys of the configuration's `sampler` section that `sample` takes.
    sample_keys: Sequence[str] = ("steps", "noise_scale")
    #: Numbers of calls at which the report of a run shows teacher and student beside the student's own.
    shown_calls: Sequence[int] = ()
    #: Whether samples may be longer than what the network was trained on.
    any_length: bool = False

    @property
    @abstractmethod
    def roles(self) -> tuple[RoleSpec, ...]:
        """The networks this objective needs."""

    @abstractmethod
    def phases(self, macro_step: int) -> Sequence[Phase]:
        """The updates of one macro-step, in order."""

    #: Trainable roles that may start again during a run; a copy of their initial weights is kept for it.
    resettable: Sequence[str] = ()

    def resets(self, macro_step: int) -> Sequence[str]:
        """Those of `resettable` that start again, with their initial weights and a fresh optimizer, at `macro_step`."""
        return ()

    #: Frozen roles that start as copies of the student and are replaced during a run; checkpoints keep them.
    promoted: Sequence[str] = ()

    def promotions(self, macro_step: int) -> Mapping[str, str]:
        """Those of `promoted` that take weights at `macro_step`, before it trains, and whose: student, student_ema."""
        return {}

    @abstractmethod
    def loss(self, phase: Phase, batch: Batch, net: RoleView, generator: torch.Generator) -> LossOut:
        """Per-sample loss of the phase's owner; the engine averages it over samples, micro-batches and ranks."""

    def source(self, source: DataSource, setting: Setting) -> DataSource:
        """The data this objective trains on, made from the domain's before the run starts."""
        return source

    @abstractmethod
    def sample(self, model: Any, like: Any, cond: Cond, generator: Generator, *args: Any, **options: Any) -> Any:
        """Draw samples with the sampler this objective trains for."""


@dataclass(eq=False)
class FewStep(Objective):
    """What few-step objectives over Gaussian processes share: a process, anchors, and how many steps are taken.

    steps: the student's network calls. A list makes one student for several counts: every draw takes one of them
    (the same on all ranks) and tells it to the networks whose conditioning has `with_steps(K)` (2503.06674,
    steps-aware student); samples take the largest by default. anchors: the times of those calls.
    first_step: training draws a step k of the chain uniformly from first_step to steps - 1; of a list it counts in the
    largest, and the others start in proportion, at about the same noise level. The student's steps share one
    critic, which matches their mixture: a first step that cannot be good yet pushes the later ones off.
    """

    process: GaussianProcess
    _: KW_ONLY
    steps: int | Sequence[int] = 4
    first_step: int = 0
    anchors: Anchors = LINEAR

    def __post_init__(self) -> None:
        given = [self.steps] if isinstance(self.steps, int) else list(self.steps)
        if not given or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in given):
            raise UsageError(f"steps={self.steps}: expected a number of network calls, or a list such as [1,4,8]")
        self.counts = tuple(sorted(set(given)))
        if not 0 <= self.first_step < self.counts[-1]:
            raise UsageError(f"first_step={self.first_step}: expected 0 to steps - 1 = {self.counts[-1] - 1}")

    def draw_steps(self, shared: torch.Generator) -> int:
        """The student's steps in this draw; a single count takes nothing from the generator."""
        return self.counts[0] if len(self.counts) == 1 else self.counts[rng.randint(0, len(self.counts), shared)]

    def first(self, steps: int) -> int:
        """The first trained step of a chain of `steps`."""
        return self.first_step * steps // self.counts[-1]

    def told(self, cond: Cond, steps: int) -> Cond:
        """The conditioning that says how many steps are taken, where there is a choice and a place to say it."""
        if len(self.counts) == 1 or not hasattr(cond, "with_steps"):
            return cond
        return cond.with_steps(steps)

    def start(self, batch: Batch[Field], net: RoleView) -> tuple[int, Batch[Field]]:
        """(steps of this draw, the batch as the student is told it)."""
        steps = self.draw_steps(net.shared)
        return steps, replace(batch, cond=self.told(batch.cond, steps))

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
        """`steps` calls (default: the most it was trained for) of the re-noising sampler."""
        steps = steps or self.counts[-1]
        cond, times = self.told(cond, steps), self.anchors(steps)
        return renoise(model, self.process, times, like, cond, generator, noise_scale=noise_scale)

    def sample_hops(
        self,
        model: Any,
        like: Field,
        cond: Cond,
        generator: Generator,
        steps: int | None,
        noise_scale: float,
        eta: float = 0.0,
    ) -> Field:
        """As `sample`, by DDIM hops between anchors, as TDM and secants train. noise_scale: of the prior."""
        steps = steps or self.counts[-1]
        times = self.anchors(steps)
        x = first_input(self.process, float(times[0]), like, generator, noise_scale)
        return hops(model, self.process, to_zero(times), x, self.told(cond, steps), generator, eta=eta)
