"""States: layouts agree with each other, padding and gauge change nothing."""

import pytest
import torch

from xdistill import rng
from xdistill.state import Dense, Field, Padded, Ragged, lerp

F64 = torch.float64
LENGTHS = [3, 1, 4]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=rng.generator("state", seed), dtype=F64)


def padded(width=4, junk=0.0, seed=0, zero_com=False):
    """Three samples of 3, 1 and 4 elements with `junk` where no element is."""
    rows = draw(sum(LENGTHS), 2, seed=seed)
    layout = Padded.from_lengths(LENGTHS, width, zero_com=zero_com)
    value = torch.full((3, width, 2), junk, dtype=F64)
    value[layout.mask] = rows
    return Field(value, layout)


def ragged(seed=0):
    index = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
    return Field(draw(sum(LENGTHS), 2, seed=seed), Ragged(index, 3))


@pytest.mark.parametrize("other", [padded(7, 37.0), padded(7, float("nan")), ragged()], ids=["wide", "nan", "ragged"])
def test_layouts_agree(other):
    x, a = padded(), torch.tensor([0.5, -1.0, 2.0], dtype=F64)
    torch.testing.assert_close(x.mean_square(), other.mean_square())
    torch.testing.assert_close(x.mean_abs(), other.mean_abs())
    torch.testing.assert_close(x.scale(a).dot(x), other.scale(a).dot(other))
    torch.testing.assert_close(lerp([(a, x), (a, x)]).mean_dot(x), (2 * other.scale(a)).mean_dot(other))
    assert x.dims.tolist() == other.dims.tolist() == [6, 2, 8]
    assert x.elements.tolist() == other.elements.tolist() == LENGTHS


def test_means_are_over_valid_entries():
    """By hand, sample by sample."""
    x = padded(9, 37.0)
    rows = draw(sum(LENGTHS), 2).split(LENGTHS)
    torch.testing.assert_close(x.mean_square(), torch.stack([r.square().mean() for r in rows]))
    torch.testing.assert_close(x.mean_abs(), torch.stack([r.abs().mean() for r in rows]))


def test_one_generator_gives_every_layout_the_same_noise():
    narrow, wide, flat = (s.randn(rng.generator(1)) for s in (padded(), padded(9), ragged()))
    mask = padded(9).layout.mask
    assert torch.equal(narrow.value, wide.value[:, :4])
    assert torch.equal(flat.value, wide.value[mask])
    assert not wide.value[~mask].any()


def test_per_sample_noise_does_not_depend_on_the_batch():
    draws = padded(9).randn(rng.per_sample(0, [10, 11, 12]))
    alone = Field(torch.zeros(1, 4, 2, dtype=F64), Padded.from_lengths([4])).randn(rng.per_sample(0, [12]))
    assert torch.equal(draws.value[2, :4], alone.value[0])
    flat = ragged().randn(rng.per_sample(0, [10, 11, 12]))
    assert torch.equal(flat.value, draws.value[padded(9).layout.mask])
    dense = Field(torch.zeros(2, 3, dtype=F64), Dense(2)).randn(rng.per_sample(0, [12, 10]))
    assert torch.equal(
        dense.value[1], Field(torch.zeros(1, 3, dtype=F64), Dense(1)).randn(rng.per_sample(0, [10])).value[0]
    )


@pytest.mark.parametrize("zero_com", [False, True])
def test_project_is_idempotent_and_ignores_padding(zero_com):
    x = padded(9, float("nan"), zero_com=zero_com).project()
    torch.testing.assert_close(x.value, x.project().value, rtol=0, atol=1e-15)
    assert not x.value[~x.layout.mask].any()
    torch.testing.assert_close(x.value[:, :4], padded(zero_com=zero_com).project().value)
    centre = x.value.sum(1)
    assert (centre.abs().max() < 1e-12) == zero_com


def test_zero_com_removes_any_offset():
    x = padded(zero_com=True)
    moved = Field(x.value + draw(3, 1, 2, seed=9), x.layout)
    torch.testing.assert_close(x.project().value, moved.project().value)
    noise = x.randn(rng.generator(5))
    assert noise.value.sum(1).abs().max() < 1e-12


def test_zero_com_noise_is_white_in_its_subspace():
    """n elements have n - 1 degrees of freedom a coordinate."""
    like = Field(torch.zeros(20000, 4, 1, dtype=F64), Padded.from_lengths([4] * 20000, zero_com=True))
    assert float(like.randn(rng.generator(0)).dot(like.randn(rng.generator(0))).mean()) == pytest.approx(3, rel=0.03)


def test_coefficients_are_cast_last():
    """float64 coefficients do not promote a float32 state."""
    x = Field(torch.ones(2, 3), Dense(2)).scale(torch.tensor([1.0, 2.0], dtype=F64))
    assert x.value.dtype == torch.float32
    assert x.value[1].tolist() == [2.0, 2.0, 2.0]


def test_sums_are_wide():
    """Half-precision states accumulate in float32."""
    x = Field(torch.full((1, 70000), 1.0, dtype=torch.float16), Dense(1))
    assert x.dot(x).item() == 70000


def test_seeds_are_stable():
    """A change here would silently change every run."""
    assert rng.derive_seed("loss", 0, 1, 2) == 6888779280738275435
    a, b = rng.generator("x", 1), rng.generator("x", 1)
    assert torch.equal(rng.rand(4, a), rng.rand(4, b))
    assert not torch.equal(rng.rand(4, rng.generator("x", 2)), rng.rand(4, rng.generator("x", 1)))
