"""The small types that domains and the core exchange: metrics, verdicts, sources of data, samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from xdistill.models import Batch
from xdistill.rng import Generator

if TYPE_CHECKING:
    from xdistill.evaluation import Draw


class DataSource(Protocol):
    """Training batches as a pure function of their index: resume and workers need nothing else."""

    def batch(self, index: int, rank: int, world: int) -> Batch:
        """The batch of `rank` at draw `index` of the run."""


@dataclass(frozen=True)
class Metric:
    """A number with its bootstrap 95 % interval and the number of samples behind it.

    better: `high`, `low`, or `none` for a description without a good direction.
    """

    value: float
    low: float
    high: float
    n: int
    better: str = "none"


@dataclass(frozen=True)
class Verdict:
    """What a filter says of one sample, and the numbers it says so for."""

    passed: bool
    values: Mapping[str, float]


class Filter(Protocol):
    """Judges samples by themselves: the verdict on one never depends on the others of its batch.

    columns: the names of the values that every verdict carries.
    """

    @property
    def columns(self) -> Sequence[str]: ...

    def __call__(self, samples: Sequence[Any]) -> list[Verdict]:
        """One verdict a sample, in order."""


#: Builds a filter from its options (keyword arguments with defaults; a dataclass is one).
FilterFactory = Callable[..., Filter]


class Neighbours:
    """Samples collected so far, and whether another one is too similar to any of them."""

    def __init__(self, similarity: Callable[[Any, Any], float], threshold: float) -> None:
        self.similarity, self.threshold = similarity, threshold
        self.samples: list[Any] = []

    def add(self, sample: Any) -> None:
        """Collect one sample."""
        self.samples.append(sample)

    def has_near(self, sample: Any) -> bool:
        """Whether the similarity of `sample` to any collected one exceeds the threshold."""
        return any(self.similarity(sample, other) > self.threshold for other in self.samples)


#: (samples, seed) -> metrics. Of no samples it is a check: it raises UsageError when something is not installed.
ExtraMetrics = Callable[[Sequence[Any], int], dict[str, Metric]]


class ModelMetrics(Protocol):
    """(model, its sampler, number of samples, seed) -> metrics; of no model: what real data scores, if that exists."""

    def __call__(self, model: nn.Module | None, draw: Draw | None, num: int, seed: int) -> dict[str, Metric]: ...


class DataReport(Protocol):
    """What was kept of a user's data, what was skipped, and why."""

    def table(self) -> Any:
        """A rich table."""

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""


class Recorder(Protocol):
    """Joins samples as they come. seconds: that they last when they are played."""

    @property
    def seconds(self) -> float: ...

    def add(self, sample: Any) -> None:
        """Write one more; what is written can be played at once."""

    def close(self) -> None:
        """Write what is left."""


class TeacherSampler(Protocol):
    """A sampler of the teacher at a free number of network calls; it also takes the option that `curve_axes` names."""

    def __call__(self, model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Any: ...
