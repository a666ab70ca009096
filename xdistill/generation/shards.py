"""Packed shards on disk: written atomically, read whole, and any of their designs as single files again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from xdistill.domain import Domain
from xdistill.errors import UsageError, XDistillError

PACKED = "packed"  # what `format=` calls it
CACHED = 128  # shards that `Designs` keeps unpacked


def shard_name(domain: Domain, number: int) -> str:
    """`shard_000017` with the suffix of the domain's packed files; raises UsageError when it packs none."""
    if not domain.packed_suffix:
        raise UsageError(f"domain '{domain.name}' packs no samples: choose one of format={', '.join(domain.formats)}")
    return f"shard_{number:06d}{domain.packed_suffix}"


def write_shard(path: Path, domain: Domain, samples: Sequence[Any], indices: Sequence[int]) -> str:
    """Write decoded samples as one packed file, atomically and durably; returns its sha256 (hexadecimal)."""
    data = domain.pack(samples, indices)
    replace_file(path, data)
    return hashlib.sha256(data).hexdigest()


def read_shard(path: Path, domain: Domain) -> dict[int, Any]:
    """Index -> sample, in the packed order; raises XDistillError naming the file when it is missing or damaged."""
    try:
        return domain.unpack(path.read_bytes())
    except FileNotFoundError:
        raise XDistillError(f"no shard {path}: the same generate command makes it again") from None
    except XDistillError as error:
        if isinstance(error, UsageError):
            raise
        raise XDistillError(f"{path}: {error}; delete it, the same generate command makes it again") from error


def find_shards(folder: Path, domain: Domain) -> list[Path]:
    """Packed shards below `folder`, sorted; raises UsageError when there is none."""
    pattern = shard_name(domain, 0).replace("000000", "*")
    found = sorted(p for p in folder.rglob(pattern) if p.is_file() and not p.name.startswith("."))
    if not found:
        raise UsageError(f"no packed shard ({pattern}) below {folder}: give a folder of generate format={PACKED}")
    return found


class Designs:
    """Designs of a folder by index, whatever it holds: packed shards (read once, a few kept) or one file a design."""

    def __init__(self, domain: Domain, files: Mapping[int, Path]) -> None:
        """files: index -> its packed shard or its own file."""
        self.domain, self.files = domain, files
        self._shard = lru_cache(CACHED)(lambda path: read_shard(path, domain))

    def among(self, indices: Sequence[int]) -> dict[int, Any]:
        """Samples of `indices`, each shard read once; raises XDistillError when a file lacks what it should hold."""
        found: dict[int, Any] = {}
        for index in sorted(indices, key=lambda i: str(self.files[i])):
            found[index] = self._one(index)
        return {i: found[i] for i in indices}

    def _one(self, index: int) -> Any:
        path = self.files[index]
        if not (self.domain.packed_suffix and path.name.endswith(self.domain.packed_suffix)):
            return self.domain.load(path)
        shard = self._shard(path)
        if index not in shard:
            raise XDistillError(f"{path} does not hold sample {index}: the manifest is of another run")
        return shard[index]


def write_design(folder: Path, domain: Domain, index: int, sample: Any, format: str) -> Path:
    """`folder/sample_<index>.<format>`, the file that generate writes for this design with that format."""
    path = folder / f"sample_{index:06d}.{format}"
    replace_file(path, domain.encode(sample, format), durable=False)
    return path


def parse_indices(text: str) -> set[int]:
    """`3,17,100-120` -> the indices, ends included; raises UsageError for anything else."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(
                f"index={text}: cannot read '{part.strip()}', expected numbers and ranges as in 3,17,100-120"
            )
        chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return chosen


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `path` atomically: readers see the old file or the whole new one, also after a crash when `durable`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
