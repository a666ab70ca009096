"""What was kept of a user's recordings, what was left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

EXAMPLES = 5
HINTS = {
    "no transcript": "write its words into metadata.csv, a .jsonl or a .txt of the same name",
    "audio not found": "correct the path or id of the transcript",
    "not audio": "convert to WAV or FLAC (ffmpeg)",
    "empty": "record again: the file has no samples",
    "silent": "check the recording: its level is below -80 dB",
    "clipped": "record at a lower level: over 0.1 % of the samples are at full scale",
    "too short": "join it with another sentence",
    "too long": "cut it into sentences",
    "empty text": "write what is said",
    "unknown characters": "spell the text with characters of the vocabulary",
    "bad line": 'give id|text in metadata.csv, {"audio": ..., "text": ...} in .jsonl',
    "not UTF-8": "convert to UTF-8 (iconv -t utf-8)",
    "listed twice": "keep one transcript a recording",
}


@dataclass
class FolderReport:
    """Counts of a folder, and for everything left out its reason, how often, and up to five examples."""

    recordings: int = 0
    seconds: float = 0.0
    held_out: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, example: str) -> None:
        """Count one recording left out for `reason` (a key of HINTS)."""
        self.counts[reason] += 1
        seen = self.examples.setdefault(reason, [])
        if len(seen) < EXAMPLES:
            seen.append(example)

    def nothing(self, name: str) -> str:
        """The message when no recording is left."""
        if not self.counts:
            return f"no usable recording in {name}: its list of transcripts is empty: give id|text lines"
        reason, count = self.counts.most_common(1)[0]
        example = self.examples[reason][0]
        return f"no usable recording in {name}: {reason} {count}x, e.g. {example}: {HINTS[reason]}"

    def table(self) -> Table:
        """A rich table, one row a reason, most frequent first."""
        title = f"{self.recordings:,} recordings ({self.seconds / 60:,.1f} minutes) kept, {self.held_out:,} held out"
        table = Table(title=title)
        for column in ("left out because", "count", "examples", "what to do"):
            table.add_column(column)
        for reason, count in self.counts.most_common():
            table.add_row(reason, str(count), ", ".join(self.examples[reason]), HINTS[reason])
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        skipped = {r: {"count": n, "examples": self.examples[r]} for r, n in self.counts.most_common()}
        kept = {"recordings": self.recordings, "seconds": round(self.seconds, 3), "held_out": self.held_out}
        return {**kept, "skipped": skipped}
