"""Point sets and token strings in files: .npz (written and read) and .csv (read and written)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from xdistill.errors import XDistillError

SUFFIXES = (".npz", ".csv")


def write_array(array: np.ndarray, path: Path) -> Path:
    """Write one sample atomically; `.npz` unless the path says `.csv`. Returns the final path."""
    if path.suffix not in SUFFIXES:
        path = path.with_name(path.name + ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        if path.suffix == ".npz":
            np.savez(file, sample=array)
        else:
            np.savetxt(file, np.atleast_2d(array), delimiter=",", fmt="%.9g")
    os.replace(partial, path)
    return path


def read_array(path: Path) -> np.ndarray:
    """One sample; never unpickles. Raises XDistillError naming the file when it holds something else."""
    try:
        if path.suffix == ".csv":
            return np.loadtxt(path, delimiter=",", ndmin=2)
        with np.load(path, allow_pickle=False) as archive:
            return archive["sample"]
    except (OSError, ValueError, KeyError) as error:
        raise XDistillError(f"{path}: expected one array 'sample' (.npz) or rows of numbers (.csv): {error}") from error


def read_folder(folder: Path) -> list[np.ndarray]:
    """Samples of a folder in the order of their names."""
    paths = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise XDistillError(f"{folder}: no {' or '.join(SUFFIXES)} files to read")
    return [read_array(p) for p in paths]
