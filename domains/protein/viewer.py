"""Chains as PDB text for a 3D viewer: full backbones, turned to face the reader, with their secondary structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xdistill.domains.protein import geometry
from xdistill.domains.protein.backbone import place_backbones
from xdistill.domains.protein.codec import NM

Array = NDArray[np.float64]
ATOMS = ("N", "CA", "C", "O")
FARTHEST = 999.0  # A from the centre: what goes beyond is no structure to look at


def pdb_models(traces: Sequence[ArrayLike]) -> list[str]:
    """PDB text of each CA trace [n, 3] (nm); "" for one that is not finite, too short or too wide to draw.

    N, C and O are placed by `place_backbones`, so that a viewer draws ribbons; secondary structure is P-SEA's.
    """
    chains = [np.asarray(x, np.float64) for x in traces]
    shown = [i for i, x in enumerate(chains) if len(x) >= 4 and np.isfinite(x).all() and _spread(x) < FARTHEST]
    out = [""] * len(chains)
    faced = [principal_axes(chains[i]) for i in shown]
    for i, x, backbone in zip(shown, faced, place_backbones(faced), strict=True):
        out[i] = _text(x * NM, backbone.atoms[:, : len(ATOMS)])
    return out


def principal_axes(x: Array) -> Array:
    """The chain moved to its centroid and turned (never mirrored): widest along the first axis, flattest along z."""
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    axes[2] *= np.sign(np.linalg.det(axes))
    return x @ axes.T


def _spread(x: Array) -> float:
    return float(np.abs(x - x.mean(0)).max() * NM)


def _text(ca: Array, atoms: NDArray[np.float32]) -> str:
    """No END record: 3Dmol.js 2.5 forgets the secondary structure there."""
    sse = geometry.secondary_structure(ca)
    helix, strand = (sse.count(letter) / len(ca) for letter in "ab")
    title = f"{len(ca)} residues, {helix:.0%} helix, {strand:.0%} strand, Rg {geometry.radius_of_gyration(ca):.1f} Å"
    body = [
        f"ATOM  {4 * i + k + 1:5d}  {name:<3} ALA A{i + 1:4d}    {p[0]:8.3f}{p[1]:8.3f}{p[2]:8.3f}"
        for i, residue in enumerate(atoms)
        for k, (name, p) in enumerate(zip(ATOMS, residue, strict=True))
    ]
    return "\n".join([f"TITLE     {title}", *_secondary_records(sse), *body, ""])


def _secondary_records(sse: str) -> Iterator[str]:
    start = 0
    for letter, run in groupby(sse):
        stop = start + len(list(run))
        if letter == "a":
            yield f"HELIX    1   1 ALA A {start + 1:4d}  ALA A {stop:4d}"
        elif letter == "b":
            yield f"SHEET    1   1 1 ALA A{start + 1:4d}  ALA A{stop:4d}"
        start = stop
