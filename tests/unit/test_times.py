"""Training times and anchors: supports, moments and the published tables."""

import pytest
import torch

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.times import (
    CleanBeta,
    LinearAnchors,
    LogAnchors,
    LogGrid,
    LogitNormal,
    Uniform,
    anchors,
    shared,
    time_law,
)

N = 40000


def sample(law):
    t = law.sample(N, rng.generator("times"))
    assert t.dtype == torch.float64
    assert t.shape == (N,)
    return t


def test_uniform():
    t = sample(Uniform(0.2, 0.6))
    assert t.min() >= 0.2
    assert t.max() <= 0.6
    assert float(t.mean()) == pytest.approx(0.4, abs=0.003)


def test_shift_moves_the_median():
    """t' = k u / (1 + (k - 1) u) at u = 1/2 is k / (1 + k)."""
    assert float(sample(Uniform(0.0, 1.0, shift=3.0)).median()) == pytest.approx(0.75, abs=0.01)


def test_logit_normal():
    t = sample(LogitNormal(mean=0.8, std=0.5))
    assert float(t.median()) == pytest.approx(torch.sigmoid(torch.tensor(0.8)).item(), abs=0.01)
    assert 0.001 <= t.min() <= t.max() <= 0.999


def test_clean_beta_is_dense_near_the_clean_end():
    """E[1 - t] = 0.02 / 2 + 0.98 a / (a + 1)."""
    t = sample(CleanBeta())
    assert float(1 - t.mean()) == pytest.approx(0.01 + 0.98 * 1.9 / 2.9, abs=0.005)
    assert sample(CleanBeta(low=0.02, high=0.98)).min() == 0.02


def test_log_grid():
    t = sample(LogGrid())
    assert t.min() == 0.02
    assert t.max() == 0.98
    inside = t[(t > 0.02) & (t < 0.98)]
    k = -200 * inside.log10()
    torch.testing.assert_close(k, k.round())
    assert float((t < 0.1).double().mean()) == pytest.approx(200 / 401, abs=0.01)


def test_linear_anchors():
    torch.testing.assert_close(LinearAnchors()(4), torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(LinearAnchors(first=0.6, shift=3.0)(1), torch.tensor([1.8 / 2.2], dtype=torch.float64))


def test_log_anchors():
    """Protein spec 2.4: K = 1 uses k = 40, else k from 30 to 400."""
    assert float(LogAnchors()(1)) == pytest.approx(10 ** (-80 / 400))
    expected = torch.tensor([10 ** (-2 * k / 400) for k in (30, 215, 400)], dtype=torch.float64)
    torch.testing.assert_close(LogAnchors()(3), expected)
    assert (LogAnchors()(16).diff() < 0).all()


def test_shared():
    assert shared(0.3, 4).tolist() == [0.3] * 4


def test_by_name():
    assert time_law("uniform", low=0.1) == Uniform(low=0.1)
    assert anchors("log", k_one=50) == LogAnchors(k_one=50)
    with pytest.raises(UsageError, match="unknown time law 'unifrom'"):
        time_law("unifrom")
    with pytest.raises(UsageError, match="anchors 'linear'"):
        anchors("linear", kappa=3.0)
