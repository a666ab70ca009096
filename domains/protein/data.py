"""Batches of CA chains as pure functions of (seed, step, rank, world): an endless bucketed schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdistill import rng
from xdistill.domains.protein.chains import ChainSet
from xdistill.errors import UsageError, XDistillError

N = TypeVar("N", int, NDArray[np.int64])
MULTIPLE = 8  # padded lengths: few shapes to compile, aligned tensor-core tiles
MERGE_RATIO = 1.25  # longest over shortest padded length of merged buckets
MIN_CYCLE = 256  # batches in a schedule cycle: rounds a bucket's share by a few percent at most


class ProteinBatch(NamedTuple):
    """coords [b, n, 3] float32 nm, centred, padding zero; mask [b, n] bool; coarse_class, index [b] int64."""

    coords: Tensor
    mask: Tensor
    coarse_class: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """n rotation matrices [n, 3, 3] uniform on SO(3) (float32): normalised Gaussian quaternions."""
    q = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1).float()


def sample_batch(chains: ChainSet, index: Tensor, generator: torch.Generator) -> ProteinBatch:
    """Gather the chains at `index` [b] int64, each under its own uniform random rotation.

    Returns:
        ProteinBatch padded to the longest chain, rounded up to a multiple of 8.
    """
    lengths = torch.from_numpy(chains.lengths[index.numpy()])
    n = _round_up(int(lengths.max()))
    coords = torch.zeros(len(index), n, 3)
    for row, i in zip(coords, index.tolist(), strict=True):
        row[: chains.lengths[i]] = torch.tensor(chains.coords(i))
    coords = coords @ random_rotations(len(index), generator).mT
    mask = torch.arange(n) < lengths[:, None]
    return ProteinBatch(coords, mask, torch.from_numpy(chains.coarse_classes[index.numpy()]), index)


@dataclass(frozen=True)
class Bucket:
    """Chains of one padded length: `members` [m] are their indices, `size` of them make a batch."""

    members: Tensor
    size: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """An infinite deterministic sequence of index batches over length buckets.

    Bucket b with m_b chains and s_b chains a batch gets a share m_b / s_b of the batches, and walks through
    endless reshuffles of its members; its batches are spread over the sequence by stratified draws. So chains
    are visited equally often, up to the rounding of shares to a cycle. A bucket smaller than its batch is merged
    with a neighbour of similar length, else it repeats members, each under its own rotation. Ranks read
    different buckets in one step, so a global batch mixes lengths.
    """

    buckets: tuple[Bucket, ...]
    visits: tuple[int, ...]  # batches of each bucket in a cycle

    @classmethod
    def build(cls, chains: ChainSet, batch_size: int | None, max_tokens: int | None = None) -> Schedule:
        """Bucket `chains` by padded length; batches of `batch_size` chains, or as many as fit in `max_tokens`
        padded residues, whichever is smaller.

        Raises:
            XDistillError: empty set, neither limit given, or `max_tokens` below the longest padded chain.
        """
        if len(chains) == 0:
            raise XDistillError("cannot batch an empty chain set: check the split and length limits")
        if min((limit for limit in (batch_size, max_tokens) if limit is not None), default=0) < 1:
            raise XDistillError(f"got {batch_size=}, {max_tokens=}: give at least one of them, 1 or more")
        padded = _round_up(chains.lengths)
        if max_tokens is not None and max_tokens < padded.max():
            raise XDistillError(f"{max_tokens=} is below the longest padded chain: use {padded.max()} or more")
        buckets = _buckets(padded, batch_size, max_tokens)
        share = np.array([len(b.members) / b.size for b in buckets])
        share /= share.sum()
        cycle = min(max(MIN_CYCLE, int(np.ceil(32 / share.min()))), 2**16)
        visits = np.maximum(np.round(share * cycle), 1).astype(int)
        return cls(tuple(buckets), tuple(visits.tolist()))

    def index(self, seed: int, k: int) -> Tensor:
        """Chain indices [b] int64 of the k-th batch (k >= 0)."""
        order, occurrence = _cycle(self.visits, seed, k // sum(self.visits))
        slot = k % sum(self.visits)
        b = int(order[slot])
        bucket, m = self.buckets[b], len(self.buckets[b].members)
        visit = (k // sum(self.visits)) * self.visits[b] + int(occurrence[slot])
        first, last = visit * bucket.size, (visit + 1) * bucket.size
        laps = range(first // m, (last - 1) // m + 1)
        shuffles = [torch.randperm(m, generator=rng.generator("lap", seed, b, lap)) for lap in laps]
        walk = torch.cat(shuffles)[first % m : first % m + bucket.size]
        return bucket.members[walk]


def train_batch(
    chains: ChainSet,
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    batch_size: int | None = 32,
    max_tokens: int | None = None,
) -> ProteinBatch:
    """The batch of `rank` among `world` at macro-step `step`: equal arguments, equal batch, in any process.

    Args:
        batch_size: chains a batch; None with `max_tokens` alone.
        max_tokens: limit on padded residues a batch (b * n), since cost grows with n.
    """
    k = step * world + rank
    return sample_batch(
        chains, _schedule(chains, batch_size, max_tokens).index(seed, k), rng.generator("rotation", seed, k)
    )


@dataclass(frozen=True)
class LengthLaw:
    """A distribution of chain lengths: `lengths` [m] int64 are equally likely."""

    lengths: Tensor

    @classmethod
    def uniform(cls, low: int, high: int) -> LengthLaw:
        """Uniform over the integers low..high, both included."""
        if not 1 <= low <= high:
            raise XDistillError(f"length range {low}..{high} is empty: expected 1 <= min <= max")
        return cls(torch.arange(low, high + 1))

    @classmethod
    def empirical(cls, chains: ChainSet) -> LengthLaw:
        """The lengths of a chain set, as often as they occur."""
        if len(chains) == 0:
            raise XDistillError("cannot take lengths from an empty chain set")
        return cls(torch.tensor(chains.lengths))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n lengths [n] int64."""
        return self.lengths[torch.randint(len(self.lengths), (n,), generator=generator)]


def parse_length(text: Any, default: tuple[int, int]) -> tuple[int, int]:
    """`64-128` or `80` -> (low, high); raises UsageError otherwise."""
    if text is None:
        return default
    try:
        low, _, high = str(text).partition("-")
        return int(low), int(high or low)
    except ValueError:
        raise UsageError(f"length={text}: expected a number or a range such as 64-128") from None


def _buckets(padded: NDArray[np.int64], batch_size: int | None, max_tokens: int | None) -> list[Bucket]:
    """Chains of equal padded length; neighbours are merged while one does not fill a batch and padding allows."""

    def size(length: int) -> int:
        return min(s for s in (batch_size, max_tokens and max_tokens // length) if s)

    spans: list[tuple[int, int, int]] = []  # shortest, longest, chains
    for length, count in zip(*(a.tolist() for a in np.unique(padded, return_counts=True)), strict=True):
        if spans and length <= MERGE_RATIO * spans[-1][0]:
            shortest, longest, before = spans[-1]
            if before < size(longest) or count < size(length):
                spans[-1] = (shortest, length, before + count)
                continue
        spans.append((length, length, count))
    inside = ((padded >= low) & (padded <= high) for low, high, _ in spans)
    members = [torch.from_numpy(np.flatnonzero(m)) for m in inside]
    return [Bucket(m, size(high)) for m, (_, high, _) in zip(members, spans, strict=True)]


@lru_cache(maxsize=8)
def _schedule(chains: ChainSet, batch_size: int | None, max_tokens: int | None) -> Schedule:
    return Schedule.build(chains, batch_size, max_tokens)


@lru_cache(maxsize=8)
def _cycle(visits: tuple[int, ...], seed: int, cycle: int) -> tuple[Tensor, Tensor]:
    """Bucket of each batch of a cycle, and how many batches of that bucket came before it in the cycle."""
    counts = torch.tensor(visits)
    bucket = torch.repeat_interleave(torch.arange(len(visits)), counts)
    occurrence = torch.cat([torch.arange(v) for v in visits])
    jitter = torch.rand(len(bucket), generator=rng.generator("cycle", seed, cycle), dtype=torch.float64)
    order = ((occurrence + jitter) / counts[bucket]).argsort(stable=True)
    return bucket[order], occurrence[order]


def _round_up(n: N) -> N:
    return -(-n // MULTIPLE) * MULTIPLE
