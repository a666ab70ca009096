"""Documents as one stream of ids, cut into wrapped sequences: [END] chunk [END] (text spec 1.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdistill import rng
from xdistill.models import Batch, NoCond
from xdistill.state import Tokens


@dataclass(frozen=True)
class Packed:
    """ids: all documents one after another, END after each [T]; may be memory-mapped. length: of a sequence L.

    begin_id: begins a sequence, None: `end_id`. wrap: whether sequences begin and end with these ids at all.
    """

    ids: NDArray[np.integer]
    length: int
    end_id: int
    begin_id: int | None = None
    wrap: bool = True

    @property
    def body(self) -> int:
        """Tokens of the corpus in a sequence."""
        return self.length - 2 if self.wrap else self.length

    def __len__(self) -> int:
        """Sequences that every offset offers; one when the corpus has a single body and no room for an offset."""
        return max((len(self.ids) - self.body + 1) // self.body, int(len(self.ids) >= self.body))

    def sequence(self, chunk: int, offset: int = 0) -> Tensor:
        """[L] int64: chunk `chunk` of the stream without its first `offset` < body tokens."""
        start = min(offset + chunk * self.body, len(self.ids) - self.body)
        body = torch.from_numpy(np.asarray(self.ids[start : start + self.body], dtype=np.int64))
        if not self.wrap:
            return body
        begin = self.end_id if self.begin_id is None else self.begin_id
        return torch.cat([torch.tensor([begin]), body, torch.tensor([self.end_id])])


@dataclass(frozen=True)
class MaskedSource:
    """Data-free batches: sequences that are all masked."""

    length: int
    mask_id: int
    batch_size: int

    def batch(self, index: int, rank: int, world: int) -> Batch[Tokens]:
        """The same for every draw."""
        ids = torch.full((self.batch_size, self.length), self.mask_id)
        return Batch(Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), NoCond(), real=False)


@dataclass(frozen=True)
class PackedSource:
    """Batches of sequences in a new order, cut at a new offset, every epoch; draw n is a function of (seed, n)."""

    packed: Packed
    seed: int
    batch_size: int

    def batch(self, index: int, rank: int, world: int) -> Batch[Tokens]:
        """The batch of `rank` at draw `index`: places (index * world + rank) * batch_size and on of the endless run."""
        first, size = (index * world + rank) * self.batch_size, len(self.packed)
        rows = []
        for place in range(first, first + self.batch_size):
            epoch, at = divmod(place, size)
            rows.append(self.packed.sequence(self.order(epoch, at), self.offset(epoch)))
        ids = torch.stack(rows)
        return Batch(Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), NoCond())

    def offset(self, epoch: int) -> int:
        """Where the epoch's chunks begin."""
        return rng.randint(0, self.packed.body, rng.generator("offset", self.seed, epoch)) if epoch else 0

    def order(self, epoch: int, at: int) -> int:
        """Which chunk has place `at`: an affine permutation, so that a huge corpus needs no table."""
        size = len(self.packed)
        gen = rng.generator("order", self.seed, epoch)
        start, step = rng.randint(0, size, gen), rng.randint(1, max(size, 2), gen)
        while np.gcd(step, size) != 1:
            step = step % max(size, 2) + 1
        return (start + at * step) % size
