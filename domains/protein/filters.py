"""Filters of CA traces, cheapest first, and the numbers of one design that its manifest row carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xdistill.domain import Verdict
from xdistill.domains.protein import geometry, mpnn, novelty
from xdistill.domains.protein.codec import NM
from xdistill.domains.protein.metrics import ANGLES, BOND, BOND_TOLERANCE, CLASH, VALID_ANGLES, VALID_BONDS
from xdistill.errors import UsageError

SHORTEST = 4  # residues below which geometry is undefined


@dataclass(frozen=True)
class Geometry:
    """Chains whose CA geometry is that of proteins (the `valid` of the metrics).

    bonds: least share of CA-CA distances within 3.8 +- 0.1 A. angles: least share of virtual angles within 85..146
    degrees. clashes: most pairs |i - j| > 2 closer than 3.5 A.
    """

    bonds: float = VALID_BONDS
    angles: float = VALID_ANGLES
    clashes: int = 0
    columns: ClassVar[Sequence[str]] = ("valid_bonds", "valid_angles", "clashes")

    def __post_init__(self) -> None:
        for key in ("bonds", "angles"):
            _check(f"geometry.{key}", getattr(self, key), 0, 1, "a share between 0 and 1")
        _check("geometry.clashes", self.clashes, 0, np.inf, "a number of pairs")

    def __call__(self, samples: Sequence[ArrayLike]) -> list[Verdict]:
        """Chains with NaN or infinity fall."""
        return [self._verdict(angstrom(sample)) for sample in samples]

    def _verdict(self, x: NDArray[np.float64]) -> Verdict:
        values = local_geometry(x)
        bonds, angles, clashes = (values[c] for c in self.columns)
        passed = usable(x) and bonds >= self.bonds and angles >= self.angles and clashes <= self.clashes
        return Verdict(bool(passed), values)


@dataclass(frozen=True)
class Confidence:
    """Chains that ProteinMPNN finds natural; needs the extra [mpnn]. A proxy: it is no designability.

    entropy: most nats a residue of the unconditional amino-acid distribution (real chains 2.14, with 0.5 A of noise
    2.62; random walks of 3.8 A steps 2.7, but scattered from 1.78 to 2.90, so put `geometry` first).
    """

    entropy: float = 2.5
    columns: ClassVar[Sequence[str]] = ("mpnn",)

    def __post_init__(self) -> None:
        """Raise UsageError, before anything is generated, when the weights are not installed."""
        _check("mpnn.entropy", self.entropy, 0, np.inf, "nats a residue")
        mpnn.weights_path()

    def __call__(self, samples: Sequence[ArrayLike]) -> list[Verdict]:
        """Chains with NaN or infinity fall, unseen by the network."""
        return _at_most("mpnn", self.entropy, samples, mpnn.confidence)


@dataclass(frozen=True)
class Novelty:
    """Chains unlike every chain of the embedded set of real proteins.

    max_tm: most TM-score to the nearest one, normalised by the design's length. top: real chains that each design is
    aligned to, see `novelty.max_tm`.
    """

    max_tm: float = 0.9
    top: int = 50
    columns: ClassVar[Sequence[str]] = ("max_tm",)

    def __post_init__(self) -> None:
        _check("novelty.max_tm", self.max_tm, 0, 1, "a TM-score between 0 and 1")
        _check("novelty.top", self.top, 1, np.inf, "at least 1")

    def __call__(self, samples: Sequence[ArrayLike]) -> list[Verdict]:
        """Chains with NaN or infinity fall, aligned to nothing."""
        return _at_most("max_tm", self.max_tm, samples, lambda chains: novelty.max_tm(chains, top=self.top))


FILTERS = {"geometry": Geometry, "mpnn": Confidence, "novelty": Novelty}
DESIGN_COLUMNS = (
    *("length", "finite", "valid_bonds", "valid_angles", "clashes"),
    *("compactness", "helix", "strand", "handedness"),
)
#: Columns that a shortlist may rank by.
RANKING = {
    **dict.fromkeys(("mpnn", "max_tm", "clashes", "compactness"), "low"),
    **dict.fromkeys(("valid_bonds", "valid_angles", "handedness", "length", "helix", "strand"), "high"),
}


def angstrom(sample: ArrayLike) -> NDArray[np.float64]:
    """A trace [n, 3] in nm -> float64 Angstrom."""
    return np.asarray(sample, np.float64) * NM


def usable(x: NDArray[np.float64]) -> bool:
    """Whether a trace has a geometry: finite and not shorter than 4 residues."""
    return len(x) >= SHORTEST and bool(np.isfinite(x).all())


def local_geometry(x: NDArray[np.float64]) -> dict[str, float]:
    """valid_bonds, valid_angles (shares), clashes (pairs) of a trace [n, 3] in Angstrom; 0, 0, NaN if unusable."""
    if not usable(x):
        return {"valid_bonds": 0.0, "valid_angles": 0.0, "clashes": np.nan}
    angles = geometry.virtual_angles(x)
    return {
        "valid_bonds": float((np.abs(geometry.bond_lengths(x) - BOND) <= BOND_TOLERANCE).mean()),
        "valid_angles": float(((angles >= ANGLES[0]) & (angles <= ANGLES[1])).mean()),
        "clashes": float((geometry.pair_distances(x)[0] < CLASH).sum()),
    }


def design_metrics(sample: ArrayLike) -> dict[str, float | int | bool]:
    """Numbers of one trace [n, 3] in nm: length, finite, `local_geometry`, compactness (Rg over its law), helix and
    strand (shares of residues, P-SEA) and handedness (right / (right + left)); NaN where undefined.
    """
    x = angstrom(sample)
    found: dict[str, float | int | bool] = {"length": len(x), "finite": bool(np.isfinite(x).all()), **local_geometry(x)}
    if not usable(x):
        return found | dict.fromkeys(DESIGN_COLUMNS[5:], float("nan"))
    (right, left), sse = geometry.handed_dihedrals(x), geometry.secondary_structure(x)
    return found | {
        "compactness": geometry.compactness(x),
        "helix": sse.count("a") / len(x),
        "strand": sse.count("b") / len(x),
        "handedness": right / (right + left) if right + left else float("nan"),
    }


def _at_most(
    column: str, limit: float, samples: Sequence[ArrayLike], measure: Callable[[list[NDArray[np.float32]]], ArrayLike]
) -> list[Verdict]:
    """Verdicts `value <= limit`; only usable traces are measured."""
    chains = [np.asarray(s, np.float32) for s in samples]
    good = [i for i, s in enumerate(samples) if usable(angstrom(s))]
    values = np.full(len(chains), np.nan)
    if good:
        values[good] = np.asarray(measure([chains[i] for i in good]), np.float64)
    return [Verdict(bool(v <= limit), {column: float(v)}) for v in values]


def _check(key: str, value: float, low: float, high: float, what: str) -> None:
    if not low <= value <= high:
        raise UsageError(f"filter.{key}={value:g}: expected {what}")
