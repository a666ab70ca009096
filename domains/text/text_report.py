"""What was kept of a user's text, what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from xdistill.data_report import SkipReport


@dataclass
class TextReport(SkipReport):
    """Counts of a corpus and of what was left out.

    held_out: documents of the validation split, 0 when it is the end of the stream of tokens instead.
    """

    files: int = 0
    documents: int = 0
    characters: int = 0
    held_out: int = 0

    kept = ("files", "documents", "characters", "held_out")
    hints = MappingProxyType(
        {
            "not UTF-8": "convert to UTF-8 (iconv -t utf-8)",
            "unreadable file": "check that the files are complete",
            "not JSON": "give one JSON object a line",
            "no text": "name the key or column that holds the text: domain.text_key=",
            "empty document": "give documents with text",
            "other format": "give .txt, .md, .jsonl or .parquet",
        }
    )

    @property
    def title(self) -> str:
        title = f"{self.documents:,} documents ({self.characters:,} characters) kept from {self.files:,} files"
        return f"{title}, {self.held_out:,} held out" if self.held_out else title

    def nothing(self, name: str) -> str:
        """The message when no document of the corpus `name` is left."""
        if not self.counts:
            return f"no usable document in {name}: {self.hints['empty document']}"
        reason = max(self.counts, key=lambda r: (r != "other format", self.counts[r]))
        return f"no usable document in {name}: {self.why(reason)}"
