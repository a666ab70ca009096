"""Batches: pure functions of (seed, step, rank, world), little padding, even coverage, uniform rotations."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from xdistill import rng
from xdistill.domains.protein.chains import ChainSet, load_embedded
from xdistill.domains.protein.data import LengthLaw, Schedule, random_rotations, sample_batch, train_batch
from xdistill.errors import XDistillError


@pytest.fixture(scope="module")
def train() -> ChainSet:
    return load_embedded("train")


def test_rotations_are_proper_and_uniform() -> None:
    turns = random_rotations(20_000, rng.generator("rotations")).double()
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).double().expand_as(turns), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.det(turns), torch.ones(20_000).double(), atol=1e-6, rtol=0)
    # Haar measure: E R = 0, E R_ij^2 = 1/3, and the angle has density (1 - cos a) / pi, so E cos a = -1/2
    assert turns.mean(0).abs().max() < 4 / (3 * 20_000) ** 0.5
    assert (turns.square().mean(0) - 1 / 3).abs().max() < 0.01
    cosine = (turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    angle = cosine.clamp(-1, 1).arccos().sort().values
    expected = (angle - angle.sin()) / torch.pi
    ks = (torch.arange(1, 20_001) / 20_000 - expected).abs().max()
    assert ks < 1.63 / 20_000**0.5  # 1 % level
    mixed = random_rotations(1, rng.generator("fixed")).double() @ turns
    assert mixed.mean(0).abs().max() < 4 / (3 * 20_000) ** 0.5  # invariant under a fixed rotation


def test_sample_batch_is_a_padded_rotation_of_the_chains(train: ChainSet) -> None:
    index = torch.tensor([5, 17, 900, 5])
    batch = sample_batch(train, index, rng.generator(1))
    assert batch.coords.shape[1] % 8 == 0
    assert batch.coords.shape[1] - 8 < train.lengths[index].max() <= batch.coords.shape[1]
    assert batch.coords.dtype == torch.float32
    assert torch.equal(batch.index, index)
    assert torch.equal(batch.mask.sum(1), torch.from_numpy(train.lengths[index]))
    assert batch.coords[~batch.mask].abs().max() == 0
    for xyz, mask, label, i in zip(batch.coords, batch.mask, batch.coarse_class, index, strict=True):
        original = torch.tensor(train.coords(int(i)))
        assert label == train.coarse_class(int(i))
        assert xyz[mask].mean(0).abs().max() < 1e-5
        torch.testing.assert_close(
            torch.cdist(xyz[mask], xyz[mask]), torch.cdist(original, original), atol=2e-3, rtol=0
        )
        triple = [torch.linalg.det(x[[3, 15, 30]]) for x in (xyz, original)]
        torch.testing.assert_close(triple[0], triple[1], atol=1e-4, rtol=1e-4)  # a reflection flips the sign
        assert not torch.allclose(xyz[mask], original, atol=0.1)
    assert not torch.allclose(batch.coords[0], batch.coords[3], atol=0.1)  # same chain, own rotation


def test_train_batch_is_a_pure_function(train: ChainSet) -> None:
    a = train_batch(train, 3, 10, 1, 2, 16)
    train_batch(train, 3, 500, 0, 2, 16)
    for x, y in zip(a, train_batch(train, 3, 10, 1, 2, 16), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(a, train_batch(train, 3, 21, 0, 1, 16), strict=True):
        assert torch.equal(x, y)  # rank 1 of 2 at step 10 reads batch 21 of the one sequence
    for other in (train_batch(train, 4, 10, 1, 2, 16), train_batch(train, 3, 10, 0, 2, 16)):
        assert not torch.equal(a.index, other.index)


def test_train_batch_is_the_same_in_another_process(train: ChainSet) -> None:
    code = (
        "from xdistill.domains.protein.chains import load_embedded;"
        "from xdistill.domains.protein.data import train_batch;"
        "b = train_batch(load_embedded('train'), 0, 12345, 1, 4, 8);"
        "print(b.index.tolist(), float(b.coords.double().abs().sum()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    b = train_batch(train, 0, 12345, 1, 4, 8)
    assert out.split("]")[0] + "]" == str(b.index.tolist())
    assert float(out.split("]")[1]) == pytest.approx(float(b.coords.double().abs().sum()), rel=1e-6)


@pytest.mark.parametrize("limits", [(32, None), (None, 4096), (64, 4096)])
def test_padding_is_small_and_every_chain_is_visited_equally_often(train: ChainSet, limits) -> None:
    schedule = Schedule.build(train, *limits)
    visits, tokens, valid, k = np.zeros(len(train)), 0, 0, 0
    while visits.mean() < 10:
        index = schedule.index(0, k).numpy()
        lengths = train.lengths[index]
        padded = len(index) * (-(-lengths.max() // 8) * 8)
        assert limits[0] is None or len(index) <= limits[0]
        assert limits[1] is None or limits[1] - 128 < padded <= limits[1] or len(index) == limits[0]
        np.add.at(visits, index, 1)
        tokens, valid, k = tokens + padded, valid + lengths.sum(), k + 1
    assert 1 - valid / tokens < 0.10
    assert visits.std() / visits.mean() < 0.05
    assert visits.min() >= 6
    assert visits.max() <= 14


def test_schedule_has_no_epochs_and_serves_tiny_sets(train: ChainSet) -> None:
    tiny = train.select([0, 1, 2])
    batches = [train_batch(tiny, 0, step, batch_size=4) for step in range(40)]
    assert all(len(b.index) == 4 for b in batches)
    counts = torch.cat([b.index for b in batches]).bincount(minlength=3)
    assert counts.min() > 0.8 * counts.max()
    far = train_batch(tiny, 0, 10**9, batch_size=4)
    assert len(far.index) == 4


def test_impossible_limits_are_one_line_errors(train: ChainSet) -> None:
    with pytest.raises(XDistillError, match="empty chain set"):
        train_batch(train.select([]), 0, 0)
    with pytest.raises(XDistillError, match="give at least one"):
        train_batch(train, 0, 0, batch_size=None)
    with pytest.raises(XDistillError, match="give at least one"):
        train_batch(train, 0, 0, batch_size=0)
    with pytest.raises(XDistillError, match="use 128 or more"):
        train_batch(train, 0, 0, batch_size=None, max_tokens=100)


def test_length_laws(train: ChainSet) -> None:
    uniform = LengthLaw.uniform(50, 52).sample(3000, rng.generator(0))
    assert sorted(uniform.unique().tolist()) == [50, 51, 52]
    assert uniform.bincount()[50:].min() > 900
    empirical = LengthLaw.empirical(train).sample(5000, rng.generator(0))
    assert set(empirical.tolist()) <= set(train.lengths.tolist())
    assert float(empirical.double().mean()) == pytest.approx(train.lengths.mean(), abs=1.5)
    assert torch.equal(empirical, LengthLaw.empirical(train).sample(5000, rng.generator(0)))
    with pytest.raises(XDistillError, match="1 <= min <= max"):
        LengthLaw.uniform(9, 8)
