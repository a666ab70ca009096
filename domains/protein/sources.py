"""Training batches of the protein domain, as pure functions of (seed, index, rank)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xdistill import rng
from xdistill.domains.protein.chains import ChainSet
from xdistill.domains.protein.data import LengthLaw, train_batch
from xdistill.domains.protein.flow import ProteinCond
from xdistill.domains.protein.labels import ClassMap, LabelLaw
from xdistill.models import Batch
from xdistill.state import Field, Padded


@dataclass(frozen=True)
class ChainSource:
    """Real chains under random rotations, bucketed by length; fold labels are dropped with `label_dropout`."""

    chains: ChainSet
    seed: int
    batch_size: int | None
    max_tokens: int | None = None
    classes: ClassMap | None = None
    label_dropout: float = 0.5

    def batch(self, index: int, rank: int, world: int) -> Batch:
        """Chains in nm, zero centre of mass, with their coarse fold class when the network has such labels."""
        b = train_batch(self.chains, self.seed, index, rank, world, self.batch_size, self.max_tokens)
        state = Field(b.coords, Padded(b.mask, zero_com=True))
        if self.classes is None:
            return Batch(state, ProteinCond())
        gen = rng.generator("labels", self.seed, index, rank)
        keep = torch.rand(len(b.index), generator=gen) >= self.label_dropout
        labels = torch.where(keep[:, None], self.classes.from_coarse(b.coarse_class), self.classes.null(len(b.index)))
        return Batch(state, ProteinCond(labels))


@dataclass(frozen=True)
class LengthSource:
    """Data-free batches: lengths, and fold labels if there is a law of them. Lengths of a batch share a range.

    A batch takes its lengths from one of `strata` equal slices of the law's quantiles, so that the padding of
    a batch is small while lengths over many batches follow the law. Labels are drawn given the length, and dropped
    with `label_dropout`.
    """

    lengths: LengthLaw
    seed: int
    batch_size: int
    strata: int = 4
    labels: LabelLaw | None = None
    classes: ClassMap | None = None
    label_dropout: float = 0.5

    def batch(self, index: int, rank: int, world: int) -> Batch:
        """An empty state [b, n, 3] with drawn lengths and labels."""
        gen = rng.generator("lengths", self.seed, index, rank)
        values = self.lengths.lengths.sort().values
        stratum = rng.randint(0, self.strata, rng.generator("stratum", self.seed, index))
        low = stratum * len(values) // self.strata
        high = max((stratum + 1) * len(values) // self.strata, low + 1)
        n = values[torch.randint(low, high, (self.batch_size,), generator=gen)]
        layout = Padded.from_lengths(n, -(-int(n.max()) // 8) * 8, zero_com=True)
        cond = ProteinCond(self._rows(n, index, rank))
        return Batch(Field(torch.zeros(*layout.mask.shape, 3), layout), cond, real=False)

    def _rows(self, n: torch.Tensor, index: int, rank: int) -> torch.Tensor | None:
        """[b, 3] rows of the fold tables for chains of n [b] residues."""
        if self.labels is None or self.classes is None:
            return None
        gen = rng.generator("labels", self.seed, index, rank)
        shown = torch.rand(len(n), generator=gen) >= self.label_dropout
        drawn = self.classes.encode([self.labels.draw(int(k), gen) for k in n])
        return torch.where(shown[:, None], drawn, self.classes.null(len(n)))
