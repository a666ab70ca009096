"""Where the text domain keeps what it can make again: token streams and trained tokenizers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from xdistill.errors import XDistillError


def cache_folder(kind: str) -> Path:
    """`$XDISTILL_CACHE/kind`, by default below the user's cache folder; made when missing. Safe to delete."""
    named = os.environ.get("XDISTILL_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xdistill"
    folder = (Path(named).expanduser() if named else base) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XDistillError(f"cannot make {folder} ({error}): set XDISTILL_CACHE to a folder to write to") from error
    return folder


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`: other processes of this machine wait; a killed one lets go of it."""
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(f"waiting for another process that makes {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
