"""Tables of a report: that by number of calls fits a terminal and is in order, and undefined numbers are marked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from xdistill.domains.toy import ToyDomain
from xdistill.evaluation import Row, as_json
from xdistill.exchange import Metric
from xdistill.report import by_calls, cell, figure


def row(name: str, calls: int, value: float) -> Row:
    metrics = {"paired": Metric(value, value - 0.01, value + 0.01, 16, better="low")}
    return Row(name, metrics, [None], calls)


def shown(rows: list[Row]) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(by_calls(rows, ["paired", "mcd"]))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_teachers_stand_first_and_calls_fall() -> None:
    rows = [row("student", 1, 0.4), row("teacher", 64, 0.5), row("student", 4, 0.2), row("teacher (pruned)", 8, 0.3)]
    text = shown(rows)
    assert [w for w in text.split() if w.startswith("0.")] == ["0.50", "0.30", "0.20", "0.40"]
    assert "…" not in text


def test_a_metric_that_no_row_has_is_a_dash() -> None:
    assert next(line for line in shown([row("student", 1, 0.4)]).splitlines() if "student" in line).split()[-1] == "-"


def test_an_undefined_number_is_a_dash_and_null() -> None:
    """A metric of no samples: the table shows it like one that is not there, and the JSON stays readable by anyone."""
    nothing = Metric(float("nan"), float("nan"), float("nan"), 0)
    plain = as_json([Row("student", {"paired": nothing}, [], 1)], {})
    assert cell(nothing) == "-"
    assert plain["rows"][0]["metrics"]["paired"]["value"] is None
    json.dumps(plain, allow_nan=False)


def test_a_figure_of_fewer_samples_than_it_has_places(tmp_path: Path) -> None:
    domain = ToyDomain({})
    samples = [np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)]
    figure(domain, [Row("student", domain.metrics(samples), samples, 1, 0.1)], tmp_path)
    assert (tmp_path / "report.png").stat().st_size > 1000
