"""What was kept of a user's data, what was left out, how often and why: the table and the JSON of every such report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.markup import escape
from rich.table import Table
from rich.text import Text

EXAMPLES = 5


@dataclass
class SkipReport:
    """For everything left out its reason, how often, and up to five examples.

    hints: reason -> what a user can do about it. kept: the fields that say what was kept, in the order of the JSON.
    """

    counts: Counter[str] = field(default_factory=Counter, kw_only=True)
    examples: dict[str, list[str]] = field(default_factory=dict, kw_only=True)

    hints: ClassVar[Mapping[str, str]] = {}
    kept: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """What was kept, in one line."""
        raise NotImplementedError

    def skip(self, reason: str, example: str) -> None:
        """Count one item left out for `reason` (a key of `hints`)."""
        self.counts[reason] += 1
        seen = self.examples.setdefault(reason, [])
        if len(seen) < EXAMPLES:
            seen.append(example)

    def why(self, reason: str) -> str:
        """One reason with its count, an example and its hint."""
        return f"{reason} {self.counts[reason]}x, e.g. {self.examples[reason][0]}: {self.hints[reason]}"

    def table(self) -> Table | Text:
        """A rich table, one row a reason, most frequent first; its title alone when nothing was left out."""
        if not self.counts:
            return Text(f"{self.title}, nothing left out")
        table = Table(title=escape(self.title))
        for column in ("left out because", "count", "examples", "what to do"):
            table.add_column(column)
        for reason, count in self.counts.most_common():
            table.add_row(reason, str(count), escape(", ".join(self.examples[reason])), escape(self.hints[reason]))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores the report."""
        skipped = {r: {"count": n, "examples": self.examples[r]} for r, n in self.counts.most_common()}
        return {**{k: getattr(self, k) for k in self.kept}, "skipped": skipped}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The report that `to_dict` described."""
        skipped = values["skipped"]
        counts = Counter({reason: s["count"] for reason, s in skipped.items()})
        examples = {reason: list(s["examples"]) for reason, s in skipped.items()}
        return cls(**{k: values[k] for k in cls.kept}, counts=counts, examples=examples)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
