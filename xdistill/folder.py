"""A run's folder: one run at a time, nothing overwritten, and the checkpoints it may continue from."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO

from xdistill import checkpoint
from xdistill.errors import UsageError, XDistillError


class RunFolder:
    """`path/checkpoints/step_*`, `config.yaml`, logs and the report of one run."""

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Take the folder for this process; raises UsageError when another run has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise UsageError(
                f"another run (process {holder}) is using {self.path}: choose another out=, or wait for it"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def release(self) -> None:
        """Let other runs have the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def resume_from(self, resume: str) -> checkpoint.Checkpoint | None:
        """The checkpoint to continue from, or None to start afresh.

        resume: `never` refuses a folder that holds a run; `auto` takes the newest checkpoint and fails when it is
        damaged; `previous` then takes the one before. Raises UsageError or XDistillError, one line each.
        """
        found = checkpoint.latest(self.checkpoints)
        used = bool(found) or (self.path / "config.yaml").exists()
        if resume == "never":
            if used:
                raise UsageError(
                    f"{self.path} already holds a run: add resume=auto to continue it, or choose another out="
                )
            return None
        if resume not in ("auto", "previous"):
            raise UsageError(f"resume={resume}: choose never, auto or previous")
        if not found:
            return None
        try:
            return checkpoint.open_checkpoint(found[0])
        except XDistillError as error:
            if resume == "auto":
                before = f", or resume=previous to continue from {found[1].name}" if len(found) > 1 else ""
                raise XDistillError(f"{error}; restore it{before}") from error
        if len(found) < 2:
            raise XDistillError(f"the only checkpoint of {self.path} is damaged: nothing to continue from")
        return checkpoint.open_checkpoint(found[1])

    def prune(self, keep: int) -> None:
        """Delete all but the `keep` newest checkpoints and the best."""
        best = self.best()
        for old in checkpoint.latest(self.checkpoints)[keep:]:
            if old.name != best:
                checkpoint.remove(old)

    def best(self) -> str | None:
        """Name of the checkpoint with the highest score so far."""
        record = self.checkpoints / "best.json"
        return json.loads(record.read_text())["name"] if record.exists() else None

    def record_score(self, name: str, score: float) -> None:
        """Note the score of a checkpoint; it becomes the best when it beats the best so far."""
        record = self.checkpoints / "best.json"
        if record.exists() and json.loads(record.read_text())["score"] >= score:
            return
        part = record.with_suffix(".part")
        part.write_text(json.dumps({"name": name, "score": score}))
        part.rename(record)
