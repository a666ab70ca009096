"""Filters of speech that `generate filter=` runs: sound where there should be sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from xdistill.domain import FilterFactory, Verdict
from xdistill.domains.speech.spoken import Spoken, design_metrics
from xdistill.errors import UsageError


@dataclass(frozen=True)
class Audible:
    """Utterances that are neither silent nor broken.

    silence: most share of silent frames. level: least `level_db` (see `design_metrics`).
    """

    silence: float = 0.6
    level: float = -30.0
    columns: ClassVar[Sequence[str]] = ("silence", "level_db")

    def __post_init__(self) -> None:
        if not 0 <= self.silence <= 1:
            raise UsageError(f"filter.audible.silence={self.silence:g}: expected a share between 0 and 1")

    def __call__(self, samples: Sequence[Spoken]) -> list[Verdict]:
        """NaN falls."""
        return [self._verdict(s) for s in samples]

    def _verdict(self, sample: Spoken) -> Verdict:
        found = design_metrics(sample)
        values = {name: float(found[name]) for name in self.columns}
        fits = values["silence"] <= self.silence and values["level_db"] >= self.level
        return Verdict(fits and bool(np.isfinite(sample.mel).all()), values)


FILTERS: Mapping[str, FilterFactory] = MappingProxyType({"audible": Audible})
