"""Which design is drawn in which batch, and which batches make a shard: a pure function of the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdistill.domain import Domain

BUCKET = 8  # elements: designs of one padded width are drawn together, so that no design's width depends on its batch
LEAST_ROWS = 4  # of a network call: matrix products of fewer rows run other kernels, which round differently
CHUNK = 256  # designs planned at once for their sizes: plans hold all that networks are shown, prompts for one


@dataclass(frozen=True)
class Shard:
    """A unit of work, written and recorded as one: designs of all sizes, in batches of one padded width each."""

    number: int
    batches: tuple[tuple[int, ...], ...]

    @property
    def indices(self) -> list[int]:
        """The designs it holds, ascending."""
        return sorted(i for batch in self.batches for i in batch)


@dataclass(frozen=True)
class WorkPlan:
    """All designs of a request. sizes: elements of each [num]; batch: most rows of a network call; shard: about how
    many designs a shard holds.

    Designs are sorted by padded width, then by index, and cut into batches within each width; every k-th batch goes to
    the same shard, so that all shards hold the same mixture of sizes and take about the same time. What is drawn with
    what thus depends on the sizes and `batch` alone, not on `shard`.
    """

    sizes: NDArray[np.int64]
    batch: int
    shard: int

    @cached_property
    def batches(self) -> list[NDArray[np.int64]]:
        """Indices of each batch, small designs first."""
        widths = padded(self.sizes)
        order = np.lexsort((np.arange(len(widths)), widths))
        runs = np.split(order, np.flatnonzero(np.diff(widths[order])) + 1)
        return [run[start : start + self.batch] for run in runs for start in range(0, len(run), self.batch)]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return min(-(-len(self.sizes) // self.shard), len(self.batches))

    def __getitem__(self, number: int) -> Shard:
        """One shard."""
        mine = self.batches[number :: self.shards]
        return Shard(number, tuple(tuple(batch.tolist()) for batch in mine))

    def padding(self) -> float:
        """Share of the elements in network calls that are padding, rows that only fill up a small batch included."""
        rows = [(max(len(batch), LEAST_ROWS), padded(self.sizes[batch[:1]])[0]) for batch in self.batches]
        return 1 - self.sizes.sum() / sum(count * width for count, width in rows)


def padded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The width that a design of each size is padded to."""
    return -(-sizes // BUCKET) * BUCKET


def design_sizes(domain: Domain, num: int, seed: int, request: Mapping[str, Any]) -> NDArray[np.int64]:
    """Elements of designs 0..num-1 [num]; raises UsageError when the domain does not take the request."""
    chunks = (range(start, min(start + CHUNK, num)) for start in range(0, num, CHUNK))
    return np.concatenate([domain.plan(chunk, seed, **request).like.elements.numpy() for chunk in chunks]).astype(int)
