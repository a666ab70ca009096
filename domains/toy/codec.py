"""Point sets and token strings in files: .npz (written and read) and .csv (read and written)."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from xdistill.errors import XDistillError

SUFFIXES = (".npz", ".csv")
PACKED_SUFFIX = ".pack.npz"


def write_array(array: np.ndarray, path: Path) -> Path:
    """Write one sample atomically; `.npz` unless the path says `.csv`. Returns the final path."""
    if path.suffix not in SUFFIXES:
        path = path.with_name(path.name + ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(encode_array(array, path.suffix))
    os.replace(partial, path)
    return path


def encode_array(array: np.ndarray, suffix: str) -> bytes:
    """What `write_array` writes to a path with this suffix."""
    file = BytesIO()
    if suffix == ".npz":
        np.savez(file, sample=array)
    else:
        np.savetxt(file, np.atleast_2d(array), delimiter=",", fmt="%.9g")
    return file.getvalue()


def read_array(path: Path) -> np.ndarray:
    """One sample; never unpickles. Raises XDistillError naming the file when it holds something else."""
    try:
        if path.suffix == ".csv":
            return np.loadtxt(path, delimiter=",", ndmin=2)
        with np.load(path, allow_pickle=False) as archive:
            return archive["sample"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise XDistillError(f"{path}: expected one array 'sample' (.npz) or rows of numbers (.csv): {error}") from error


def pack_arrays(arrays: Sequence[np.ndarray], indices: Sequence[int]) -> bytes:
    """Samples [n, ...] of equal trailing shape as one compressed npz."""
    file = BytesIO()
    rows = np.array([len(a) for a in arrays])
    np.savez_compressed(file, index=np.asarray(indices), rows=rows, values=np.concatenate(list(arrays)))
    return file.getvalue()


def unpack_arrays(data: bytes) -> dict[int, np.ndarray]:
    """Index -> sample of `pack_arrays`; raises XDistillError for anything else."""
    try:
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            index, rows, values = (archive[k] for k in ("index", "rows", "values"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise XDistillError(f"damaged packed file ({error})") from error
    return dict(zip(index.tolist(), np.split(values, np.cumsum(rows)[:-1]), strict=True))


def read_folder(folder: Path) -> list[np.ndarray]:
    """Samples of a folder in the order of their names."""
    paths = sorted(
        p
        for p in folder.iterdir()
        if p.suffix in SUFFIXES and not p.name.startswith(".") and not p.name.endswith(PACKED_SUFFIX)
    )
    if not paths:
        raise XDistillError(f"{folder}: no {' or '.join(SUFFIXES)} files to read")
    return [read_array(p) for p in paths]
