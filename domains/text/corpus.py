"""The embedded corpus: Jane Austen's six novels, public domain (text spec 5.1)."""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path

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
