"""What the command line's tests share: quick settings, a command's outcome, the state of a folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

QUICK = ("eval=none", "logger=none", "data.batch=8", "strategy.accelerator=cpu")


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


def snapshot(folder: Path) -> dict[str, str]:
    """Hashes of all files below a folder; lock files, which hold no data, left out."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
