"""Filters and numbers of toy samples: the smallest example of what a domain offers to generation at scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xdistill.domain import Verdict
from xdistill.errors import UsageError


@dataclass(frozen=True)
class Radius:
    """Sets whose points all lie near the origin. most: largest distance from it."""

    most: float = 2.0
    columns: ClassVar[Sequence[str]] = ("radius",)

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise UsageError(f"filter.radius.most={self.most:g}: expected a positive distance")

    def __call__(self, samples: Sequence[Any]) -> list[Verdict]:
        """NaN falls."""
        values = [radius(sample) for sample in samples]
        return [Verdict(value <= self.most, {"radius": value}) for value in values]


@dataclass(frozen=True)
class Side:
    """Sets whose centre is on one side. axis: coordinate. least: smallest value of the centre in it."""

    axis: int = 0
    least: float = 0.0
    columns: ClassVar[Sequence[str]] = ("side",)

    def __call__(self, samples: Sequence[Any]) -> list[Verdict]:
        """NaN falls."""
        values = [float(sample.mean(0)[self.axis]) for sample in samples]
        return [Verdict(value >= self.least, {"side": value}) for value in values]


def radius(sample: Any) -> float:
    """Largest distance of a set's points [n, D] from the origin."""
    return float(np.linalg.norm(sample, axis=1).max())


def similarity(a: Any, b: Any) -> float:
    """1 / (1 + squared distance of the centres) of two sets [n, D], [m, D]."""
    return float(1 / (1 + ((a.mean(0) - b.mean(0)) ** 2).sum()))
