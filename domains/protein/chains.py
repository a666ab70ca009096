"""In-memory sets of CA chains: compact npz format, embedded PDB set, train/val/test split."""

from __future__ import annotations

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xdistill.errors import XDistillError

Split = Literal["train", "val", "test", "all"]
ASSETS = Path(__file__).with_name("assets")
EMBEDDED = "pdb_chains_40_128.npz"
CLUSTERS = "clusters_30.tsv.xz"
HELIX, STRAND = b"HGI", b"EB"
QUANTUM_NM = 1e-3  # int16 steps of 1/100 Angstrom
_FIELDS = ("ids", "length", "delta", "seq", "dssp")


class ChainSet:
    """An immutable set of CA chains, stored flat.

    Positions live on a grid of 1/100 Angstrom (the npz format stores int16 differences of consecutive
    positions), so that a set is the same before and after `save`.

    Args:
        ids: one name a chain, e.g. `1A62_A`.
        lengths: [B] residues a chain.
        delta: int16 [sum(lengths - 1), 3] differences of consecutive CA positions, 1/100 Angstrom.
        seq: uint8 [sum(lengths)] one-letter ASCII codes.
        dssp: uint8 [sum(lengths)] ASCII secondary structure (DSSP's eight letters, `C` = coil).
    """

    def __init__(
        self,
        ids: Sequence[str],
        lengths: NDArray[np.integer],
        delta: NDArray[np.int16],
        seq: NDArray[np.uint8],
        dssp: NDArray[np.uint8],
    ) -> None:
        self.ids = tuple(str(i) for i in ids)
        self.lengths = _readonly(np.asarray(lengths, np.int64).copy())
        self._delta, self._seq, self._dssp = (_readonly(np.array(a)) for a in (delta, seq, dssp))
        _check_sizes(len(self.ids), self.lengths, self._delta, self._seq, self._dssp)
        self._offset = np.concatenate([[0], np.cumsum(self.lengths)])
        self._coords = _readonly(_decode(self._delta, self.lengths, self._offset))
        self._class = _readonly(self._coarse_classes())

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        low, high = (self.lengths.min(), self.lengths.max()) if len(self) else (0, 0)
        return f"ChainSet({len(self)} chains, {low}..{high} residues)"

    def coords(self, i: int) -> NDArray[np.float32]:
        """CA positions of chain i: float32 [n, 3], nm, centred on the mean; read-only view."""
        return self._coords[self._span(i)]

    def sequence(self, i: int) -> str:
        """One-letter amino-acid sequence of chain i."""
        return self._seq[self._span(i)].tobytes().decode("ascii")

    def dssp(self, i: int) -> str:
        """Secondary structure of chain i, one letter a residue."""
        return self._dssp[self._span(i)].tobytes().decode("ascii")

    def coarse_class(self, i: int) -> int:
        """Fold class from secondary structure: 1 mainly helix, 2 mainly strand, 3 mixed, 4 little of either.

        Helix (H, G, I) >= .15 and strand (E, B) < .10 -> 1; strand >= .15 and helix < .10 -> 2; both >= .10
        -> 3; else 4: the order of CATH's C level. 0 is left free for "no label".
        """
        return int(self._class[i])

    @property
    def coarse_classes(self) -> NDArray[np.int64]:
        """[B] `coarse_class` of every chain."""
        return self._class

    def select(self, index: NDArray[np.integer] | Sequence[int]) -> ChainSet:
        """The subset of chains at `index`, in that order."""
        index = np.asarray(index, np.int64)
        start = np.maximum(self._offset[:-1] - np.arange(len(self)), 0)
        rows = [self._delta[start[i] : start[i] + self.lengths[i] - 1] for i in index]
        spans = [self._span(i) for i in index]
        return ChainSet(
            [self.ids[i] for i in index],
            self.lengths[index],
            np.concatenate([np.zeros((0, 3), np.int16), *rows]),
            np.concatenate([np.zeros(0, np.uint8), *(self._seq[s] for s in spans)]),
            np.concatenate([np.zeros(0, np.uint8), *(self._dssp[s] for s in spans)]),
        )

    @classmethod
    def from_coords(
        cls,
        ids: Sequence[str],
        coords: Sequence[NDArray[np.floating]],
        sequences: Sequence[str],
        dssp: Sequence[str],
    ) -> ChainSet:
        """Build a set from CA positions [n, 3] in nm, rounded to 1/100 Angstrom.

        Raises:
            XDistillError: a coordinate is not finite, or consecutive CA atoms are more than 327 A apart.
        """
        deltas: list[NDArray] = [np.zeros((0, 3))]
        for name, xyz in zip(ids, coords, strict=True):
            if not np.isfinite(xyz).all():
                raise XDistillError(f"chain {name} has NaN or infinite coordinates: remove or repair it")
            deltas.append(np.diff(np.round(np.asarray(xyz, np.float64) / QUANTUM_NM), axis=0))
        delta = np.concatenate(deltas)
        if np.abs(delta).max(initial=0) > np.iinfo(np.int16).max:
            raise XDistillError("consecutive CA atoms are more than 327 A apart: split chains at breaks")
        return cls(
            ids,
            np.array([len(c) for c in coords]),
            delta.astype(np.int16),
            np.frombuffer("".join(sequences).encode("ascii"), np.uint8),
            np.frombuffer("".join(dssp).encode("ascii"), np.uint8),
        )

    def save(self, path: str | Path) -> None:
        """Write the set as a compressed npz with the fields ids, length, delta, seq and dssp."""
        length = self.lengths.astype(np.int16 if self.lengths.max(initial=0) < 2**15 else np.int32)
        ids = np.array(self.ids) if self.ids else np.zeros(0, "U1")
        with open(path, "wb") as handle:
            np.savez_compressed(handle, ids=ids, length=length, delta=self._delta, seq=self._seq, dssp=self._dssp)

    @classmethod
    def load(cls, path: str | Path) -> ChainSet:
        """Read a set written by `save` (never unpickles).

        Raises:
            XDistillError: the file is missing, not an npz, or not of this format.
        """
        try:
            with np.load(path, allow_pickle=False) as z:
                missing = [k for k in _FIELDS if k not in z.files]
                if missing:
                    raise XDistillError(f"{path} is not a chain set: it lacks {missing}, expected {_FIELDS}")
                ids, length, delta, seq, dssp = (z[k] for k in _FIELDS)
        except FileNotFoundError:
            raise XDistillError(f"no chain set at {path}: expected a file of ChainSet.save") from None
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise XDistillError(f"{path} is no npz chain set ({e}): write it with ChainSet.save") from e
        return cls(ids.tolist(), length, delta, seq, dssp)

    def _span(self, i: int) -> slice:
        return slice(self._offset[i], self._offset[i + 1])

    def _coarse_classes(self) -> NDArray[np.int64]:
        return coarse_class(self._fraction(HELIX), self._fraction(STRAND))

    def _fraction(self, letters: bytes) -> NDArray[np.float64]:
        hits = np.concatenate([[0], np.cumsum(np.isin(self._dssp, list(letters)))])
        return (hits[self._offset[1:]] - hits[self._offset[:-1]]) / np.maximum(self.lengths, 1)


def coarse_class(helix: ArrayLike, strand: ArrayLike) -> NDArray[np.int64]:
    """Fold classes 1..4 from fractions of helix and strand residues; the rule of `ChainSet.coarse_class`."""
    helix, strand = np.asarray(helix), np.asarray(strand)
    rules = [
        (helix >= 0.15) & (strand < 0.10),
        (strand >= 0.15) & (helix < 0.10),
        (helix >= 0.10) & (strand >= 0.10),
    ]
    return np.select(rules, [1, 2, 3], default=4).astype(np.int64)


def split_of(representative: str) -> Split:
    """The split of a 30 % identity cluster: about 90/5/5 by a hash of its representative's chain id."""
    bucket = int.from_bytes(hashlib.sha256(representative.encode()).digest()[:8], "big") % 100
    return "train" if bucket < 90 else "val" if bucket < 95 else "test"


def load_clusters() -> dict[str, str]:
    """Chain id -> representative of its cluster at 30 % sequence identity, for the embedded set."""
    text = lzma.decompress((ASSETS / CLUSTERS).read_bytes()).decode("ascii")
    return dict(line.split("\t") for line in text.splitlines())


@lru_cache(maxsize=4)
def load_embedded(split: Split = "train") -> ChainSet:
    """The embedded set of 4 587 compact PDB chains of 40..128 residues, or one split of it.

    No 30 % identity cluster is in two splits. Provenance: `assets/README.md`.
    """
    if split not in ("train", "val", "test", "all"):
        raise XDistillError(f"unknown split {split!r}: expected train, val, test or all")
    chains = ChainSet.load(ASSETS / EMBEDDED)
    if split == "all":
        return chains
    clusters = load_clusters()
    return chains.select([i for i, name in enumerate(chains.ids) if split_of(clusters[name]) == split])


def _decode(delta: NDArray, lengths: NDArray, offset: NDArray) -> NDArray[np.float32]:
    """Integrate the differences of all chains and centre each: [sum(lengths), 3] float32 nm."""
    steps = np.zeros((int(offset[-1]), 3), np.int64)
    interior = np.ones(len(steps), bool)
    interior[offset[:-1]] = False
    steps[interior] = delta
    position = np.cumsum(steps, axis=0)  # integers: exact, whatever the number of chains before
    chain = np.repeat(np.arange(len(lengths)), lengths)
    position -= position[offset[:-1]][chain]
    total = np.stack([np.bincount(chain, position[:, k], len(lengths)) for k in range(3)], axis=1)
    return ((position - (total / lengths[:, None])[chain]) * QUANTUM_NM).astype(np.float32)


def _check_sizes(n: int, lengths: NDArray, delta: NDArray, seq: NDArray, dssp: NDArray) -> None:
    total = int(lengths.sum())
    ok = (
        lengths.shape == (n,)
        and (lengths >= 1).all()
        and delta.shape == (total - n, 3)
        and delta.dtype == np.int16
        and seq.shape == dssp.shape == (total,)
        and seq.dtype == dssp.dtype == np.uint8
    )
    if not ok:
        raise XDistillError(
            f"chain set is inconsistent: {n} ids, {lengths.shape} lengths of sum {total}, delta {delta.dtype}"
            f"{delta.shape}, seq {seq.dtype}{seq.shape}, dssp {dssp.dtype}{dssp.shape}; "
            f"expected delta int16({total - n}, 3), seq and dssp uint8({total},)"
        )


def _readonly(a: NDArray) -> NDArray:
    a.flags.writeable = False
    return a
