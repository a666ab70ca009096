"""Quality against diversity: one curve a source, swept over an option of its sampler, and values where they match.

A sampler that trades diversity for quality moves along its own curve, so sources are compared at equal x alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdistill.domain import Metric
from xdistill.intervals import QUANTILES, RESAMPLES, UNDEFINED, bootstrap_sums
from xdistill.rng import derive_seed

if TYPE_CHECKING:
    from rich.table import Table

Array = NDArray[np.float64]
REACH = 0.02  # of x: how far beyond its ends a curve is extended


@dataclass(frozen=True)
class Axes:
    """setting: the sampler option that is swept. x, y: what the axes are called, x as its metric; y is better when low
    or high. settings: values of a short sweep.
    """

    setting: str
    x: str
    y: str
    better: str = "low"
    settings: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """Samples at one setting (None: as they were found). rows: [n, 4] x sum, x count, y sum, y count of each sample.

    calls, seconds: network calls and wall time a sample.
    """

    setting: float | None
    rows: Array
    calls: float | None = None
    seconds: float | None = None

    @property
    def x(self) -> float:
        """Pooled x."""
        return float(_ratio(self.rows.sum(0), 0))

    @property
    def y(self) -> float:
        """Pooled y."""
        return float(_ratio(self.rows.sum(0), 2))


@dataclass(frozen=True)
class Curve:
    """The points of one source. Sample i has the same noise at every setting, so it is resampled with all of them."""

    name: str
    points: tuple[Point, ...]

    def values(self, x: float, seed: int = 0) -> Array:
        """[1 + RESAMPLES] y at x by linear interpolation: the estimate, then bootstrap replicas over samples.

        NaN when x lies more than REACH outside the curve; a curve of one point is constant within REACH.
        """
        points = [p for p in self.points if p.rows[:, 3].sum() > 0]
        xs = np.array([p.x for p in points])
        if not len(points) or not xs.min() * (1 - REACH) <= x <= xs.max() * (1 + REACH):
            return np.full(1 + RESAMPLES, np.nan)
        totals = self._totals(points, seed)
        at_x, at_y = _ratio(totals, 0), _ratio(totals, 2)
        return np.array([_interpolate(x, *pair) for pair in zip(at_x, at_y, strict=True)])

    def at(self, x: float, seed: int = 0) -> Metric:
        """y at x with a bootstrap 95 % interval; undefined outside the curve."""
        return as_metric(self.values(x, seed), min(len(p.rows) for p in self.points))

    def spread(self, seed: int = 0) -> list[tuple[Metric, Metric]]:
        """x and y of each point with their intervals."""
        rng = np.random.default_rng(derive_seed("curve points", seed))
        return [(bootstrap_sums(p.rows[:, :2], rng), bootstrap_sums(p.rows[:, 2:], rng)) for p in self.points]

    def _totals(self, points: Sequence[Point], seed: int) -> Array:
        """[1 + RESAMPLES, points, 4]."""
        rng, drawn, found = np.random.default_rng(derive_seed("curve", self.name, seed)), {}, []
        for p in points:
            n = len(p.rows)
            if n not in drawn:
                drawn[n] = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
            found.append(np.concatenate([p.rows.sum(0)[None], drawn[n] @ p.rows]))
        return np.stack(found, 1)


def as_metric(values: Array, n: int) -> Metric:
    """From an estimate and its replicas, in this order; undefined when the estimate is NaN."""
    if not np.isfinite(values[0]):
        return UNDEFINED
    low, high = np.nanpercentile(values[1:], QUANTILES)
    return Metric(float(values[0]), float(low), float(high), n)


def advantage(student: Curve, other: Curve, x: float, axes: Axes, seed: int = 0) -> Metric:
    """By how much y of `student` is better than that of `other` at x; a student wins when the interval is above 0."""
    sign = 1 if axes.better == "high" else -1
    n = min(len(p.rows) for c in (student, other) for p in c.points)
    return replace(as_metric(sign * (student.values(x, seed) - other.values(x, seed)), n), better="high")


def gap_closed(student: Curve, few: Curve, full: Curve, x: float, seed: int = 0) -> Metric:
    """(few - student) / (few - full) in y at x: 1 where a student is as good as the teacher at its full calls."""
    s, a, b = (c.values(x, seed) for c in (student, few, full))
    n = min(len(p.rows) for c in (student, few, full) for p in c.points)
    return replace(as_metric((a - s) / (a - b), n), better="high")


def sweep(
    name: str, settings: Sequence[float], draw: Callable[[float], Any], rows: Callable[[Sequence[Any]], Array]
) -> Curve:
    """A curve of `draw(setting)` (see `evaluation.Drawn`), measured by `rows(samples)`."""
    points = []
    for setting in settings:
        drawn = draw(setting)
        points.append(Point(setting, rows(drawn.samples), drawn.calls, drawn.seconds))
    return Curve(name, tuple(points))


def as_json(curves: Sequence[Curve], axes: Axes, targets: Mapping[str, float], seed: int = 0) -> dict[str, Any]:
    """Plain values: axes, every point with its cost and intervals, and every curve's y at each target x."""
    return {
        "axes": asdict(axes),
        "targets": dict(targets),
        "curves": [
            {
                "name": c.name,
                "points": [
                    {
                        **{"setting": p.setting, "n": len(p.rows), "calls": p.calls, "seconds": p.seconds},
                        **{"total_seconds": None if p.seconds is None else p.seconds * len(p.rows)},
                        **{"x": asdict(x), "y": asdict(y)},
                    }
                    for p, (x, y) in zip(c.points, c.spread(seed), strict=True)
                ],
                "at": {name: asdict(c.at(x, seed)) for name, x in targets.items()},
            }
            for c in curves
        ],
    }


def table(curves: Sequence[Curve], axes: Axes, targets: Mapping[str, float], seed: int = 0) -> Table:
    """A line a point, and a line a target: y where x is equal, which is where sources may be compared."""
    from rich.table import Table

    from xdistill.report import cell

    shown = Table(title=f"{axes.y} ({axes.better} is better) against {axes.x}")
    for name in ("", axes.setting, axes.x, axes.y, "samples", "calls", "wall time"):
        shown.add_column(name, justify="right" if name else "left")
    for c in curves:
        for p, pair in zip(c.points, c.spread(seed), strict=True):
            cost = ["" if v is None else f"{v:g}" for v in (p.setting, p.calls)]
            seconds = "" if p.seconds is None else f"{p.seconds * len(p.rows):.1f} s"
            shown.add_row(c.name, cost[0], *map(cell, pair), str(len(p.rows)), cost[1], seconds)
        shown.add_section()
    for name, x in targets.items():
        for c in curves:
            found = c.at(x, seed)
            shown.add_row(c.name, f"at {name}", f"{x:.2f}", cell(found) if found.n else "out of reach", "", "", "")
        shown.add_section()
    return shown


def draw_curves(
    ax: Any, curves: Sequence[Curve], axes: Axes, targets: Mapping[str, float], colours: Sequence[str], seed: int = 0
) -> None:
    """Curves with their intervals, and the targets as vertical lines, into matplotlib axes."""
    for c, colour in zip(curves, colours, strict=True):
        points = sorted(zip(c.spread(seed), c.points, strict=True), key=lambda pair: pair[0][0].value)
        xs, ys = ([pair[0][k] for pair in points] for k in (0, 1))
        error = [[[m.value - m.low for m in ms], [m.high - m.value for m in ms]] for ms in (xs, ys)]
        ax.errorbar(
            [m.value for m in xs], [m.value for m in ys], xerr=error[0], yerr=error[1], marker="o", ms=4, lw=1.2,
            elinewidth=0.7, color=colour, label=c.name,
        )  # fmt: skip
        for pair, p in points:
            if p.setting is not None:
                place = pair[0].value, pair[1].value
                ax.annotate(f"{p.setting:g}", place, (3, 3), textcoords="offset points", fontsize=6)
    for name, x in targets.items():
        ax.axvline(x, color="black", ls=":", lw=0.8)
        ax.annotate(
            name, (x, 0), (2, 3), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7,
            rotation=90, va="bottom",
        )  # fmt: skip
    ax.set_xlabel(axes.x)
    ax.set_ylabel(axes.y)
    ax.legend(fontsize=7, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)


def plot(curves: Sequence[Curve], axes: Axes, targets: Mapping[str, float], path: Path, seed: int = 0) -> Path:
    """The figure of `draw_curves` as a file, its format by the suffix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    draw_curves(ax, curves, axes, targets, [cycle[i % len(cycle)] for i in range(len(curves))], seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    plt.close(fig)
    return path


def _ratio(totals: Array, column: int) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[..., column] / totals[..., column + 1]


def _interpolate(x: float, xs: Array, ys: Array) -> float:
    """Linear between points, and on along the first and last segment."""
    if len(xs) == 1:
        return float(ys[0])
    order = np.argsort(xs)
    xs, ys = xs[order], ys[order]
    i = int(np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2))
    span = xs[i + 1] - xs[i]
    return float(ys[i] if span < 1e-9 else ys[i] + (ys[i + 1] - ys[i]) * (x - xs[i]) / span)
