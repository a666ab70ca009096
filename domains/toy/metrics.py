"""Distance of point samples to a known mixture: MMD with closed-form expectations, and mode coverage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from xdistill import rng
from xdistill.domain import Metric

BANDWIDTHS = (0.2, 0.5, 1.0, 2.0)
BOOTSTRAPS = 200


def mmd_terms(x: Tensor, means: Tensor, std: float) -> tuple[Tensor, Tensor, Tensor]:
    """(k(x_i, x_j) [n, n], E_y k(x_i, y) [n], E k(y, y')) for y from the mixture and a mean of RBF kernels.

    Against a Gaussian component N(m, s^2 I) the RBF kernel of bandwidth h integrates to
    (h^2 / (h^2 + s^2))^(D/2) exp(-|x - m|^2 / (2 (h^2 + s^2))): no reference sample, hence no noise of its own.
    """
    d = x.shape[1]

    def expect(a: Tensor, b: Tensor, variance: float) -> Tensor:
        square, scales = torch.cdist(a, b).square(), [h**2 + variance for h in BANDWIDTHS]
        terms = [(h**2 / v) ** (d / 2) * torch.exp(-square / (2 * v)) for h, v in zip(BANDWIDTHS, scales, strict=True)]
        return torch.stack(terms).mean(0)

    own, cross, target = expect(x, x, 0.0), expect(x, means, std**2), expect(means, means, 2 * std**2)
    return own, cross.mean(1), target.mean()


def mmd2(x: Tensor, means: Tensor, std: float, weights: Tensor | None = None) -> Tensor:
    """Unbiased squared MMD of points [n, D] (with optional weights [..., n] that sum to one) to the mixture.

    Gretton et al. 2012, eq. 3 with the mixture's side exact; may be slightly negative at a perfect fit.
    """
    own, cross, target = mmd_terms(x.double(), means, std)
    n = len(x)
    w = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights
    pairs = (w @ own * w).sum(-1) - (w.square() * own.diagonal()).sum(-1)
    return pairs / (1 - w.square().sum(-1)) - 2 * w @ cross + target


def coverage(x: Tensor, means: Tensor, std: float, weights: Tensor | None = None) -> Tensor:
    """Share of modes that hold at least a third of their fair share of points within 3 standard deviations."""
    near = (torch.cdist(x.double(), means) < 3 * std).double()
    w = torch.full((len(x),), 1 / len(x), dtype=torch.float64) if weights is None else weights
    return (w @ near >= 1 / (3 * len(means))).double().mean(-1)


def coherence(sets: Sequence[np.ndarray], means: Tensor) -> Tensor:
    """[n]: 1 where all points of a set are nearest to the same mode."""
    nearest = (torch.cdist(torch.as_tensor(s, dtype=torch.float64), means).argmin(1) for s in sets)
    return torch.stack([(mode == mode[0]).all() for mode in nearest]).double()


def bootstrap(statistic: Callable[[Tensor | None], Tensor], n: int, seed: int, better: str) -> Metric:
    """The statistic with its 95 % bootstrap interval; it maps weights [R, n] (or None: uniform) to values [R]."""
    g = rng.generator("bootstrap", seed)
    picks = torch.randint(n, (BOOTSTRAPS, n), generator=g)
    weights = torch.zeros(BOOTSTRAPS, n, dtype=torch.float64).scatter_add_(
        1, picks, torch.full(picks.shape, 1 / n, dtype=torch.float64)
    )
    # Duplicates within a resample bias pair statistics; recentring on the estimate keeps the spread alone.
    value, replicas = float(statistic(None)), statistic(weights)
    low, high = (replicas - replicas.median() + value).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Metric(value, float(low), float(high), n, better)


def point_metrics(samples: Sequence[np.ndarray], means: Tensor, std: float, seed: int) -> dict[str, Metric]:
    """mmd2 and mode_coverage of the first point of each sample [n_i, D]; coherence of sets; score = -mmd2."""
    first = torch.as_tensor(np.stack([s[0] for s in samples]), dtype=torch.float64)
    n = len(first)
    out = {"mmd2": bootstrap(lambda w: mmd2(first, means, std, w), n, seed, "low")}
    if len(means) > 1:
        out["mode_coverage"] = bootstrap(lambda w: coverage(first, means, std, w), n, seed, "high")
        if any(len(s) > 1 for s in samples):
            whole = coherence(samples, means)
            out["coherence"] = bootstrap(lambda w: whole.mean() if w is None else w @ whole, n, seed, "high")
    m = out["mmd2"]
    return {"score": Metric(-m.value, -m.high, -m.low, n, "high")} | out
