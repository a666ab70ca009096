"""What was kept of a user's text, what was left out and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

EXAMPLES = 5
KEPT = ("files", "documents", "characters", "held_out")

HINTS = {
    "not UTF-8": "convert to UTF-8 (iconv -t utf-8)",
    "unreadable file": "check that the files are complete",
    "not JSON": "give one JSON object a line",
    "no text": "name the key or column that holds the text: domain.text_key=",
    "empty document": "give documents with text",
    "other format": "give .txt, .md, .jsonl or .parquet",
}


@dataclass
class TextReport:
    """Counts of a corpus, and for everything left out its reason, how often, and up to five examples.

    held_out: documents of the validation split, 0 when it is the end of the stream of tokens instead.
    """

    files: int = 0
    documents: int = 0
    characters: int = 0
    held_out: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, example: str) -> None:
        """Count one document or file left out for `reason` (a key of HINTS)."""
        self.counts[reason] += 1
        seen = self.examples.setdefault(reason, [])
        if len(seen) < EXAMPLES:
            seen.append(example)

    def nothing(self, name: str) -> str:
        """The message when no document of the corpus `name` is left."""
        if not self.counts:
            return f"no usable document in {name}: {HINTS['empty document']}"
        reason = max(self.counts, key=lambda r: (r != "other format", self.counts[r]))
        count, example = self.counts[reason], self.examples[reason][0]
        return f"no usable document in {name}: {reason} {count}x, e.g. {example}: {HINTS[reason]}"

    def table(self) -> Table:
        """A rich table, one row a reason, most frequent first."""
        title = f"{self.documents:,} documents ({self.characters:,} characters) kept from {self.files:,} files"
        table = Table(title=f"{title}, {self.held_out:,} held out" if self.held_out else title)
        for column in ("left out because", "count", "examples", "what to do"):
            table.add_column(column)
        for reason, count in self.counts.most_common():
            table.add_row(reason, str(count), ", ".join(self.examples[reason]), HINTS[reason])
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores the report."""
        skipped = {r: {"count": n, "examples": self.examples[r]} for r, n in self.counts.most_common()}
        return {**{k: getattr(self, k) for k in KEPT}, "skipped": skipped}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextReport:
        """The report that `to_dict` described."""
        skipped = values["skipped"]
        counts = Counter({reason: s["count"] for reason, s in skipped.items()})
        examples = {reason: list(s["examples"]) for reason, s in skipped.items()}
        return cls(**{k: values[k] for k in KEPT}, counts=counts, examples=examples)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
