"""The folder of a generate request: claimed by one request; a shard is there when its rows are, its files intact."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from xdistill.errors import UsageError, XDistillError
from xdistill.generation import manifest
from xdistill.generation.maker import Made
from xdistill.generation.plan import WorkPlan
from xdistill.generation.shards import replace_file

REQUEST, MANIFEST, TIMINGS, PARTS, LOCK = "request.json", "manifest.parquet", "timings.jsonl", "parts", ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MERGING = 2**40  # the byte of the lock file that whoever merges holds


class DesignFolder:
    """`request.json`, the designs, and `manifest.parquet` with a row each, written when all are there.

    Until then `parts/` holds the rows of each finished shard: the file of a shard's rows is written last, and makes
    the shard count. `timings.jsonl` says how long shards took.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        """Check `path`; raises UsageError, having touched nothing, when it holds anything but this very request."""
        self.path, self.request = path, json.loads(json.dumps(request))
        self._lock: IO[str] | None = None
        self._check()

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file: give a folder as out=")
        if not self.path.exists() or all(p.name.startswith(".") for p in self.path.iterdir()):
            return
        try:
            there = json.loads((self.path / REQUEST).read_text())
        except (OSError, ValueError):
            raise UsageError(f"{self.path} is not empty and was not made by generate: choose another out=") from None
        if there != self.request:
            different = _difference(there, self.request)
            raise UsageError(f"{self.path} holds samples of another request ({different}): choose another out=")

    def lock(self, rank: int | None = None) -> None:
        """Take the folder for this process, or as one rank of several; raises UsageError when it is taken."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / LOCK, "a+")  # noqa: SIM115 - held until `release`
        start, length = (0, 0) if rank is None else (rank, 1)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):
            self._lock.close()
            raise UsageError(f"another run is using {self.path}: choose another out=, or wait for it") from None
        self._check()  # again: whoever had the lock may have written since
        if not (self.path / REQUEST).exists():
            self._write(self.path / REQUEST, (json.dumps(self.request, indent=1) + "\n").encode())

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def finished(self, plan: WorkPlan, numbers: Iterable[int]) -> set[int]:
        """Those of the shards `numbers` that are recorded, complete, and whose files are as they were written."""
        rows, wanted = self._rows(), set(numbers)
        intact: dict[str, bool] = {}
        done = set()
        for number in sorted(wanted & set(rows)):
            part = rows[number]
            files = set(zip(part["file"].to_pylist(), part["sha256"].to_pylist(), strict=True)) - {(None, None)}
            for name, digest in files:
                intact[name] = self._hash(name) == digest
            if part["index"].to_pylist() == plan[number].indices and all(intact[name] for name, _ in files):
                done.add(number)
        return done

    def add(self, made: Made) -> None:
        """Write a shard: its files, then its rows."""
        try:
            for name, data in made.files.items():
                # One file a design need not be synced: after a power cut its hash tells that the shard is not there.
                replace_file(self.path / name, data, durable=len(made.files) == 1)
            replace_file(self._part(made.shard), manifest.encode(manifest.table(made.rows)))
            with open(self.path / TIMINGS, "a") as log:
                seconds = {k: round(v, 4) for k, v in made.timing.items()}
                log.write(json.dumps({"shard": made.shard, "designs": len(made.rows), **seconds}) + "\n")
        except OSError as error:
            raise self._full(error) from error

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Several ranks may come to the end at the same time: one after the other."""
        assert self._lock is not None, "the end needs the lock"
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, MERGING)
        try:
            yield
        except OSError as error:
            raise self._full(error) from error
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, MERGING)

    def merge(self, plan: WorkPlan) -> set[int]:
        """Write the manifest when every shard is recorded; returns the numbers of those that are not."""
        rows = self._rows()
        missing = set(range(plan.shards)) - set(rows)
        if not missing and (self.path / PARTS).is_dir():
            self._write(self.path / MANIFEST, manifest.encode(manifest.merge(rows[n] for n in sorted(rows))))
            shutil.rmtree(self.path / PARTS)
            for left in self.path.rglob(".*.[0-9]*"):  # what a killed process was writing
                left.unlink(missing_ok=True)
        return missing

    def rows(self) -> pa.Table:
        """The manifest, or what there is of it."""
        return manifest.merge(self._rows().values())

    def _rows(self) -> dict[int, pa.Table]:
        """Recorded shards; a newer part replaces what the manifest says."""
        found: dict[int, pa.Table] = {}
        if (self.path / MANIFEST).exists():
            whole = manifest.read(self.path / MANIFEST)
            found = {n: manifest.of_shards(whole, [n]) for n in set(whole["shard"].to_pylist())}
        parts = (manifest.read(path) for path in sorted((self.path / PARTS).glob("[!.]*.parquet")))
        return found | {part["shard"][0].as_py(): part for part in parts}

    def _part(self, shard: int) -> Path:
        return self.path / PARTS / f"{shard:06d}.parquet"

    def _hash(self, name: str) -> str | None:
        try:
            with open(self.path / name, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def _write(self, path: Path, data: bytes) -> None:
        try:
            replace_file(path, data)
        except OSError as error:
            raise self._full(error) from error

    def _full(self, error: OSError) -> XDistillError:
        if error.errno not in FULL:
            return XDistillError(f"could not write to {self.path} ({error}): finished shards are safe")
        free = shutil.disk_usage(self.path).free / 2**20
        return XDistillError(
            f"disk full: could not write to {self.path} ({error.strerror}; {free:.1f} MiB were free): finished shards "
            f"are safe, make room and give the same command again"
        )


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    old = old if isinstance(old, Mapping) else {}
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)} there, {new.get(k)} now" for k in changed)
