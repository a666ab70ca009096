"""Curves: interpolation, values at equal x, reach, intervals, and what a student closes of a gap."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xdistill.curves import Axes, Curve, Point, advantage, as_json, gap_closed, plot, sweep, table

AXES = Axes("temperature", "entropy", "log perplexity")


def point(setting: float, x: float, y: float, n: int = 200, noise: float = 0.0, seed: int = 0) -> Point:
    draws = np.random.default_rng(seed).normal(size=(n, 2)) * noise
    draws -= draws.mean(0)
    rows = np.column_stack([x + draws[:, 0], np.ones(n), 50 * (y + draws[:, 1]), np.full(n, 50.0)])
    return Point(setting, rows, 8.0, 0.5)


def curve(name: str, shift: float, noise: float = 0.0) -> Curve:
    """y = 2 x + shift at x = 3.8, 4.0, 4.2."""
    return Curve(name, tuple(point(1 - i / 10, x, 2 * x + shift, noise=noise) for i, x in enumerate((4.2, 3.8, 4.0))))


def test_values_at_equal_x_are_interpolated() -> None:
    assert curve("a", 1).at(3.9).value == pytest.approx(8.8)
    assert curve("a", 1).at(4.2).value == pytest.approx(9.4)


def test_a_curve_reaches_two_percent_beyond_its_ends_and_no_further() -> None:
    assert curve("a", 1).at(4.25).value == pytest.approx(9.5)
    assert curve("a", 1).at(4.3).n == 0
    assert curve("a", 1).at(3.6).n == 0


def test_one_point_stands_for_its_neighbourhood() -> None:
    lone = Curve("a", (point(1.0, 4.0, 9.0),))
    assert lone.at(4.05).value == pytest.approx(9)
    assert lone.at(4.2).n == 0


def test_pooled_over_tokens_not_texts() -> None:
    rows = np.array([[4.0, 1, 10.0, 10], [4.0, 1, 90.0, 30]])
    assert Curve("a", (Point(1.0, rows),)).at(4.0).value == pytest.approx(2.5)


def test_a_lower_x_alone_does_not_win() -> None:
    """Colder samples of the same curve have a lower y, and no advantage."""
    teacher = curve("teacher", 0, noise=0.3)
    cold = Curve("student", tuple(point(0.5, x, 2 * x, noise=0.3, seed=1) for x in (3.5, 3.7, 3.9)))
    assert min(p.y for p in cold.points) < min(p.y for p in teacher.points)
    found = advantage(cold, teacher, 3.85, AXES)
    assert found.value == pytest.approx(0)
    assert found.low < 0 < found.high
    better = advantage(curve("student", -0.5, noise=0.3), teacher, 4.0, AXES)
    assert better.value == pytest.approx(0.5)
    assert better.low > 0


def test_intervals_are_of_the_mean_of_the_samples() -> None:
    noisy = Curve("a", (point(1.0, 4.0, 9.0, noise=0.4), point(0.8, 3.0, 7.0, noise=0.4)))
    m = noisy.at(4.0)
    # y and x of a sample both vary: the error of y at fixed x is that of y - slope x
    expected = 2 * 1.96 * 0.4 * np.sqrt(1 + 2**2) / np.sqrt(200)
    assert m.high - m.low == pytest.approx(expected, rel=0.15)
    between = noisy.at(3.5)  # the same samples at both ends: they err together
    assert between.high - between.low == pytest.approx(expected, rel=0.15)
    assert m.low < m.value < m.high
    assert noisy.at(4.0, seed=1) != m
    assert noisy.at(4.0) == m


def test_gap_closed() -> None:
    few, full, student = curve("few", 1.0), curve("full", 0.0), curve("student", 0.25)
    assert gap_closed(student, few, full, 4.0).value == pytest.approx(0.75)
    assert gap_closed(full, few, full, 4.0).value == pytest.approx(1)
    assert gap_closed(student, few, full, 5.0).n == 0


def test_samples_without_a_token_leave_the_curve() -> None:
    empty = Point(0.1, np.array([[1.0, 1, 0, 0]] * 5))
    assert Curve("a", (*curve("a", 1).points, empty)).at(3.9).value == pytest.approx(8.8)
    assert Curve("a", (empty,)).at(1.0).n == 0


def test_sweep_table_json_and_plot(tmp_path: Path) -> None:
    drawn = lambda setting: SimpleNamespace(samples=[setting] * 6, calls=8.0, seconds=0.25)  # noqa: E731
    rows = lambda samples: np.array([[4 * s, 1, 30 * s, 10] for s in samples])  # noqa: E731
    curves = [sweep("student", (0.8, 0.9, 1.0), drawn, rows), Curve("dir", (point(1.0, 9.0, 9.0),))]
    assert [p.x for p in curves[0].points] == pytest.approx([3.2, 3.6, 4.0])
    targets = {"the teacher's": 3.6}
    found = json.loads(json.dumps(as_json(curves, AXES, targets), allow_nan=True))
    assert found["curves"][0]["at"]["the teacher's"]["value"] == pytest.approx(2.7)
    assert found["curves"][0]["points"][0]["total_seconds"] == pytest.approx(1.5)
    assert len(found["curves"][0]["points"]) == 3
    from rich.console import Console

    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(curves, AXES, targets))
    text = console.export_text()
    assert "2.70 [2.70,2.70]" in text
    assert "out of reach" in text
    assert plot(curves, AXES, targets, tmp_path / "curves.png").stat().st_size > 5000
