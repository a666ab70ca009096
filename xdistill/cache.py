"""Where domains keep what they can make again: token streams, trained tokenizers, mels of a user's recordings."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

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


def digest(values: Any) -> str:
    """The name of what is made of these JSON values."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def remembered(kind: str, made_of: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """JSON values that depend on `made_of` alone: read again where they were made before, else made and written.

    Raises XDistillError when the cache folder cannot be written to.
    """
    path = cache_folder(kind) / f"{digest(made_of)[:24]}.json"
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # not made yet, or damaged: make it
        values = make()
    with writing(path) as part:
        part.write_text(json.dumps(values))
    return values


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` if all goes well; raises XDistillError when it cannot."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise XDistillError(
            f"could not write {path} ({error}): make room there, or set XDISTILL_CACHE to another folder"
        ) from error
    finally:
        part.unlink(missing_ok=True)
