"""The filter of texts that `generate filter=quality` runs: no loops, no single word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from xdistill.domain import FilterFactory, Verdict
from xdistill.domains.text.passage import entropy, repetition
from xdistill.errors import UsageError


@dataclass(frozen=True)
class Quality:
    """Texts that do not repeat themselves.

    entropy: least nats of the token histogram; depends on the length: real prose of 128 tokens has 4.3, of 1024 5.4
    (text spec 4). repetition: most share of 4-grams that occurred before.
    """

    entropy: float = 3.5
    repetition: float = 0.2
    columns: ClassVar[Sequence[str]] = ("entropy", "repetition")

    def __post_init__(self) -> None:
        if not self.entropy >= 0:
            raise UsageError(f"filter.quality.entropy={self.entropy:g}: expected nats, at least 0")
        if not 0 <= self.repetition <= 1:
            raise UsageError(f"filter.quality.repetition={self.repetition:g}: expected a share between 0 and 1")

    def __call__(self, samples: Sequence[Any]) -> list[Verdict]:
        """One verdict a passage."""
        return [self._verdict(entropy(s.ids), repetition(s.ids)) for s in samples]

    def _verdict(self, nats: float, repeated: float) -> Verdict:
        passed = nats >= self.entropy and repeated <= self.repetition
        return Verdict(passed, {"entropy": nats, "repetition": repeated})


FILTERS: Mapping[str, FilterFactory] = MappingProxyType({"quality": Quality})
