"""Numbers with bootstrap 95 % intervals over independent units (chains, texts, images)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from xdistill.domain import Metric

Array = NDArray[np.float64]
RESAMPLES = 1000
QUANTILES = (2.5, 97.5)
UNDEFINED = Metric(np.nan, np.nan, np.nan, 0)


def bootstrap_sums(table: Array, rng: np.random.Generator) -> Metric:
    """Pooled mean or standard deviation with a percentile interval over rows.

    Args:
        table: [n, 2] rows (sum, count) -> pooled mean; [n, 3] rows (sum, count, sum of squares) -> pooled standard
            deviation. Rows with count 0 do not take part.
    """
    table = table[table[:, 1] > 0] if len(table) else table
    return bootstrap_totals(table, _pooled, rng)


def bootstrap_totals(table: Array, statistic: Callable[[Array], Array], rng: np.random.Generator) -> Metric:
    """A statistic of column totals, [..., k] -> [...], of table [n, k], with a percentile interval over rows."""
    if len(table) == 0:
        return UNDEFINED
    low, high = np.percentile(statistic(_multiplicities(len(table), rng) @ table), QUANTILES)
    return Metric(float(statistic(table.sum(0))), float(low), float(high), len(table))


def bootstrap_pairs(values: Array, pairs: NDArray[np.bool_], rng: np.random.Generator) -> Metric:
    """Mean of values [n, n] over the off-diagonal `pairs` [n, n], resampling the n units, not the pairs."""
    used = pairs.any(0)
    if not used.any():
        return UNDEFINED
    values, pairs = np.where(pairs, values, 0.0)[used][:, used], pairs[used][:, used]
    weight = _multiplicities(len(values), rng)
    total, count = (((weight @ m) * weight).sum(1) for m in (values, pairs.astype(np.float64)))
    low, high = np.percentile(total[count > 0] / count[count > 0], QUANTILES)
    return Metric(float(values.sum() / pairs.sum()), float(low), float(high), len(values))


def bootstrap_rows(
    rows: Array, statistic: Callable[[Array], float], rng: np.random.Generator, resamples: int = 200
) -> Metric:
    """`statistic` of rows [n, k] >= 0 with a normal interval, value +- 1.96 bootstrap standard errors.

    For statistics that resampling biases upwards (distances): a percentile interval would miss the value.
    """
    if len(rows) < 2:
        return UNDEFINED
    value = statistic(rows)
    spread = np.std([statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)])
    return Metric(value, max(value - 1.96 * float(spread), 0.0), value + 1.96 * float(spread), len(rows))


def _multiplicities(n: int, rng: np.random.Generator) -> Array:
    """[RESAMPLES, n] how often each unit is drawn in each resample."""
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def _pooled(sums: Array) -> Array:
    mean = sums[..., 0] / sums[..., 1]
    if sums.shape[-1] == 2:
        return mean
    return np.sqrt(np.maximum(sums[..., 2] / sums[..., 1] - mean**2, 0))
