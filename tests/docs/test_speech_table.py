"""The recorded speech table: all flow-map objectives and baselines, and the shipped student keeps its promise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import speech_results  # noqa: E402

RECORD = json.loads((ROOT / speech_results.RECORD).read_text())
SHIPPED = speech_results.SHIPPED


def test_every_objective_and_baseline_at_every_number_of_calls() -> None:
    for method in speech_results.METHODS:
        assert all(f"{method}/0/{k}" in RECORD["rows"] for k in speech_results.CALLS), method
    for said in ("guided", "unguided"):
        assert f"teacher: {said}, sway/-/32" in RECORD["rows"]
        for k in speech_results.CALLS:
            assert f"teacher: {said}, equal/-/{k}" in RECORD["rows"]


def test_it_was_made_with_the_shipped_teacher_and_three_seeds() -> None:
    assert RECORD["settings"] == speech_results.settings()
    assert all(f"{SHIPPED}/{seed}/2" in RECORD["rows"] for seed in speech_results.SEEDS)


@pytest.mark.parametrize(("calls", "most"), [(1, 0.5), (2, 0.65)])
def test_the_shipped_student_is_nearer_to_its_teacher_than_few_euler_steps(calls: int, most: float) -> None:
    rows = [RECORD["rows"][f"{SHIPPED}/{seed}/{calls}"] for seed in speech_results.SEEDS]
    assert max(speech_results.ratio(RECORD, rows, calls)) <= most


def test_words_stay_understood() -> None:
    """CER at two calls within two points of the guided teacher's at 32 steps, in each of three seeds."""
    teacher = RECORD["rows"]["teacher: guided, sway/-/32"]["metrics"]["cer"]["value"]
    found = [RECORD["rows"][f"{SHIPPED}/{s}/2"]["metrics"]["cer"]["value"] for s in speech_results.SEEDS]
    assert max(found) <= teacher + 0.02


def test_calls_are_counted() -> None:
    """Guidance doubles a teacher's calls; a student has its own in it."""
    assert RECORD["rows"]["teacher: guided, sway/-/32"]["calls"] == 64
    assert RECORD["rows"][f"{SHIPPED}/0/2"]["calls"] == 2


def test_markdown_is_the_json() -> None:
    assert (ROOT / speech_results.RECORD).with_suffix(".md").read_text() == speech_results.text(RECORD)
