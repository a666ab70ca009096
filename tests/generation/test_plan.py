"""The plan of work: little padding, every design once, and batches that know nothing of shards."""

from __future__ import annotations

import numpy as np
import pytest

from xdistill.domains.protein import ProteinDomain
from xdistill.generation.plan import BUCKET, LEAST_ROWS, WorkPlan, design_sizes, padded


@pytest.fixture(scope="module")
def sizes() -> np.ndarray:
    return design_sizes(ProteinDomain({}), 3000, 0, {"length": "60-128"})


def test_sizes_are_those_of_the_domain_and_do_not_depend_on_num(sizes: np.ndarray) -> None:
    domain = ProteinDomain({})
    assert sizes.min() >= 60
    assert sizes.max() <= 128
    np.testing.assert_array_equal(design_sizes(domain, 50, 0, {"length": "60-128"}), sizes[:50])
    one = domain.plan([2999], 0, length="60-128").like.elements
    assert one.tolist() == [sizes[2999]]


@pytest.mark.parametrize("length", ["60-128", "40-128"])
@pytest.mark.parametrize("batch", [8, 32])
def test_padding_wastes_less_than_a_tenth(length: str, batch: int) -> None:
    plan = WorkPlan(design_sizes(ProteinDomain({}), 3000, 1, {"length": length}), batch, 1024)
    rows = [(max(len(b), LEAST_ROWS), -(-plan.sizes[b].max() // BUCKET) * BUCKET) for b in plan.batches]
    assert plan.padding() == pytest.approx(1 - plan.sizes.sum() / sum(n * w for n, w in rows))
    assert plan.padding() < 0.1


@pytest.mark.parametrize(("batch", "shard"), [(32, 1024), (32, 100), (7, 1), (1, 1), (5000, 10)])
def test_every_design_once_and_one_width_a_batch(sizes: np.ndarray, batch: int, shard: int) -> None:
    plan = WorkPlan(sizes, batch, shard)
    shards = [plan[n] for n in range(plan.shards)]
    assert sorted(i for s in shards for i in s.indices) == list(range(len(sizes)))
    for s in shards:
        assert s.indices == sorted(s.indices)
        for indices in s.batches:
            assert 1 <= len(indices) <= batch
            assert len(set(padded(sizes[list(indices)]).tolist())) == 1


def test_batches_do_not_depend_on_shards(sizes: np.ndarray) -> None:
    def batches(shard: int) -> set[tuple[int, ...]]:
        plan = WorkPlan(sizes, 32, shard)
        return {batch for n in range(plan.shards) for batch in plan[n].batches}

    assert batches(32) == batches(1000) == batches(10**6)


def test_shards_are_alike(sizes: np.ndarray) -> None:
    """An interrupted night leaves designs of all lengths, and no worker gets all the long ones."""
    plan = WorkPlan(sizes, 16, 500)
    work = [sizes[plan[n].indices] for n in range(plan.shards)]
    assert len(work) == 6
    assert all(450 <= len(w) <= 550 for w in work)
    assert all(abs(w.mean() - sizes.mean()) < 4 for w in work)
