"""The folder of a generate request: claimed by one request, its manifest complete after every batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xdistill.errors import UsageError

MANIFEST = "manifest.json"


class SampleFolder:
    """`out/sample_<index>.<format>` and `out/manifest.json`: the request, and one record a finished sample."""

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        """Claim `path`; raises UsageError, having touched nothing, when it holds anything but this very request."""
        self.path, self.request = path, json.loads(json.dumps(request))
        self.records = {r["index"]: r for r in self._claimed() if self._intact(r)}

    def _claimed(self) -> list[dict[str, Any]]:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file: give a folder as out=")
        if not self.path.exists() or not any(p.name != ".lock" for p in self.path.iterdir()):
            return []
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
        except (OSError, ValueError):
            raise UsageError(f"{self.path} is not empty and was not made by generate: choose another out=") from None
        if manifest.get("request") != self.request:
            different = _difference(manifest.get("request"), self.request)
            raise UsageError(f"{self.path} holds samples of another request ({different}): choose another out=")
        return manifest["samples"]

    def _intact(self, record: Mapping[str, Any]) -> bool:
        file = self.path / record["file"]
        return file.is_file() and file_hash(file) == record["sha256"]

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Note finished samples; the manifest on disk is replaced atomically."""
        self.records |= {r["index"]: dict(r) for r in records}
        done = [self.records[i] for i in sorted(self.records)]
        manifest = {"request": self.request, "complete": len(done) == self.request["num"], "samples": done}
        part = self.path / f".{MANIFEST}.part"
        with open(part, "w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.path / MANIFEST)


def file_hash(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    old = old if isinstance(old, Mapping) else {}
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)} there, {new.get(k)} now" for k in changed)
