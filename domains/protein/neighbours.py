"""Designs of the same fold: TM-scores of one chain with many, most of them ruled out without an alignment."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xdistill.domain import Neighbours
from xdistill.domains.protein.alignment import structural_tm
from xdistill.domains.protein.novelty import TOLERANCE, signatures

CHUNKS = (1, 4, 16, 64)  # chains aligned at once: the likeliest first, as one hit is enough
FLOOR = 0.5  # of `likeness`, see `FoldNeighbours`


def tm(a: ArrayLike, b: ArrayLike) -> float:
    """TM-score of two CA traces in nm under the best sequential alignment, normalised by the longer; symmetric."""
    return float(structural_tm([_ordered(np.asarray(a, np.float32), np.asarray(b, np.float32))])[0])


class FoldNeighbours(Neighbours):
    """CA traces [n, 3] in nm of different folds.

    Pairs are aligned in the order of the likeness of their distance matrices, until one exceeds the threshold. Ruled
    out without alignment are lengths whose ratio does not exceed the threshold (a bound of the score), and pairs
    of a likeness below `FLOOR` times the threshold. That is no bound: of 3 972 pairs of real chains,
    the 81 above TM 0.45, the 53 above 0.5 and the 34 above 0.6 had a likeness of at least 0.56 of that score. An
    alignment takes 15-20 ms of one core.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__(tm, threshold)
        self._signatures: list[NDArray[np.float32]] = []
        self._lengths: list[int] = []

    def add(self, sample: ArrayLike) -> None:
        x = np.asarray(sample, np.float32)
        self.samples.append(x)
        self._signatures.append(_signature(x))
        self._lengths.append(len(x))

    def has_near(self, sample: ArrayLike) -> bool:
        if not self.samples:
            return False
        x = np.asarray(sample, np.float32)
        lengths = np.array(self._lengths)
        alike = likeness(np.stack(self._signatures), _signature(x))
        bound = np.minimum(lengths, len(x)) / np.maximum(lengths, len(x))
        order = np.argsort(-alike, kind="stable")
        order = order[(bound[order] > self.threshold) & (alike[order] >= FLOOR * self.threshold)]
        start = 0
        for size in (*CHUNKS, *[CHUNKS[-1]] * (len(order) // CHUNKS[-1])):
            pairs = [_ordered(x, self.samples[i]) for i in order[start : start + size]]
            if pairs and bool((structural_tm(pairs) > self.threshold).any()):
                return True
            start += size
        return False


def likeness(many: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float64]:
    """[k] mean 1 / (1 + (difference of distances / 0.3 nm)^2) of signatures [k, 171] with one [171]."""
    return (1 / (1 + ((many - one) / TOLERANCE) ** 2)).mean(1).astype(np.float64)


def _signature(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return signatures(x, np.zeros(1), len(x))[0]


def _ordered(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same pair for (a, b) and (b, a): the search for an alignment is not symmetric."""
    return (a, b) if (len(a), a.tobytes()) <= (len(b), b.tobytes()) else (b, a)
