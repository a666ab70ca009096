"""The results tools' common part: rows are filled in, kept beside those of others, made again and compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from results_table import Record, Rows, Table, cell, grouped, inside, markdown

made: list[tuple[str, int, tuple[int, ...], str]] = []


def make(method: str, seed: int, calls: Sequence[int], record: Record, runs: Path) -> Rows:
    made.append((method, seed, tuple(calls), runs.name))
    place = "teacher: ode/-" if method == "teacher" else f"{method}/{seed}"
    return {f"{place}/{k}": {"value": float(k + seed)} for k in calls}


def agree(recorded: Rows, again: Rows) -> bool:
    return all([inside(key, {**recorded[key], "low": 0.9, "high": 8.5}, row["value"]) for key, row in again.items()])


def text(record: Record) -> str:
    return markdown(["method", "mean"], [(m, cell([r["value"] for r in rows])) for (m, _), rows in grouped(record)])


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made.clear()
    return Table(
        path=tmp_path / "t.json", runs=tmp_path / "runs", settings={"n": 1}, methods=("a", "b"), seeds=(0, 1),
        calls=(1, 8), make=make, check=agree, text=text,
    )  # fmt: skip


def run(table: Table, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["tool", *options])
    table.main("What it does.")


def test_what_is_missing_is_made_once(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    run(table, monkeypatch, "--method", "a", "--seed", "1", "--calls", "8")
    table.add({"b/0/1": {"value": 5.0}})  # another process
    run(table, monkeypatch)
    assert made == [
        *[("a", 1, (8,), "runs"), ("teacher", 0, (1, 8), "runs"), ("a", 0, (1, 8), "runs")],
        *[("a", 1, (1,), "runs"), ("b", 0, (8,), "runs"), ("b", 1, (1, 8), "runs")],
    ]
    run(table, monkeypatch)
    assert len(made) == 6
    record = json.loads(table.path.read_text())
    assert record["rows"]["b/0/1"] == {"value": 5.0}
    assert len(record["rows"]) == 10
    lines = table.path.with_suffix(".md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        f"| {m}" for m in ("teacher: ode",) * 2 + ("a",) * 2 + ("b",) * 2
    ]
    assert lines[4] == "| a | 1.500 [1.000, 2.000] |"


def test_check_makes_rows_again_elsewhere(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    run(table, monkeypatch)
    made.clear()
    run(table, monkeypatch, "--method", "a", "--seed", "0", "--check")
    assert made == [("a", 0, (1, 8), "runs_check")]
    with pytest.raises(SystemExit, match="1"):
        run(table, monkeypatch, "--method", "a", "--seed", "1", "--check")  # 9 is outside of [0.9, 8.5]


def test_other_settings_are_another_table(table: Table) -> None:
    table.add({})
    with pytest.raises(SystemExit, match="other settings"):
        replace(table, settings={"n": 2}).load()


def test_cells() -> None:
    assert cell([]) == cell([float("nan")]) == "-"
    assert cell([1.0]) == "1.000"
    assert cell([1.0], [0.5, 2]) == "1.000 [0.500, 2.000]"
    assert cell([1.0, 3.0], [0.5, 2]) == "2.000 [1.000, 3.000]"
