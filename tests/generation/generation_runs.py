"""What the tests of generation share: child processes that may be killed, and what a folder finally holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path


def content(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how it was made: all files but the lock and the timings."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "timings.jsonl"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def child(action: Callable[[], object]) -> int:
    """The id of a forked process that runs `action` and ends with 0, or with 1 when it raises."""
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
        os._exit(0)
    finally:
        os._exit(1)


def outcome(pid: int) -> int:
    """How a child ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    """SIGKILL to this very process."""
    os.kill(os.getpid(), signal.SIGKILL)
