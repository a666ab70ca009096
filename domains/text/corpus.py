"""The embedded corpus: Jane Austen's six novels, public domain (text spec 5.1, assets/SOURCES.md)."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from xdistill.domains.text.documents import Piece
from xdistill.domains.text.text_report import TextReport

ASSETS = Path(__file__).parent / "assets"
AUSTEN = ASSETS / "austen_clean.txt.xz"
TITLES = ("EMMA", "MANSFIELD PARK", "NORTHANGER ABBEY", "Persuasion", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY")
VALIDATION = "Persuasion"


@cache
def novels() -> dict[str, str]:
    """Title -> text, one paragraph a line."""
    lines = lzma.decompress(AUSTEN.read_bytes()).decode("utf-8").splitlines()
    starts = [lines.index(title) for title in TITLES] + [len(lines)]
    note = lines.index("A NOTE ON THE TEXT")  # of an editor, between two novels
    bodies = {t: lines[a + 1 : b] for t, a, b in zip(TITLES, starts, starts[1:], strict=False)}
    bodies["NORTHANGER ABBEY"] = lines[starts[2] + 2 : note]
    bodies["SENSE AND SENSIBILITY"] = lines[starts[5] + 2 :]
    return {title: "\n".join(body) for title, body in bodies.items()}


def split(name: str) -> list[str]:
    """The documents of `train` or `validation`: Persuasion is held out whole, so nothing leaks."""
    return [text for title, text in novels().items() if (title == VALIDATION) == (name == "validation")]


@dataclass(frozen=True)
class Austen:
    """The novels as `Documents`, split as `split` does."""

    name: str = "the embedded corpus"
    holdout: float | None = None

    @property
    def size(self) -> int:
        return sum(map(len, novels().values()))

    def identity(self) -> dict[str, Any]:
        return {"sha256": sha256(AUSTEN.read_bytes()).hexdigest(), "validation": VALIDATION}

    def pieces(self, report: TextReport) -> Iterator[Piece]:
        report.files += 1
        for name in ("train", "validation"):
            for text in split(name):
                report.documents += 1
                report.characters += len(text)
                report.held_out += name == "validation"
                yield Piece(text, name, last=True)
