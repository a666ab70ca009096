"""The recorded text table: every objective and baseline is in it, read at one entropy, and it says what README says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from xdistill import registry
from xdistill.process import MaskProcess

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import text_results  # noqa: E402

RECORD = json.loads((ROOT / text_results.RECORD).read_text())
TEACHERS = {"mdlm", "bd3"}


def test_every_objective_at_every_number_of_calls() -> None:
    known = {name: registry.load("objectives", name).needs.process for name in registry.names("objectives")}
    used = {chosen[0].split("=")[1] for chosen in text_results.METHODS.values()}
    assert used == {name for name, process in known.items() if process is MaskProcess} - TEACHERS
    for method in (*used, "teacher: ancestral", "teacher: spread"):
        seed = "-" if method.startswith("teacher") else 0
        assert [k for k in text_results.CALLS if f"{method}/{seed}/{k}" not in RECORD["rows"]] == []


def test_it_was_made_with_the_shipped_teacher_and_three_seeds() -> None:
    assert RECORD["settings"] == text_results.settings()
    assert all(f"{text_results.SHIPPED}/{seed}/8" in RECORD["rows"] for seed in text_results.SEEDS)


@pytest.mark.parametrize("key", [f"idlm/{seed}/8" for seed in (0, 1, 2)])
def test_a_row_is_what_its_samples_say(key: str) -> None:
    found = RECORD["rows"][key]
    again = text_results.row(text_results.stored(found), RECORD)
    for name in ("log_perplexity", "closed"):
        assert again[name] == pytest.approx(found[name])
    assert found["closed"]["low"] > 0.6
    assert len(found["points"][0]["rows"]) >= 512


def test_markdown_is_the_json() -> None:
    assert (ROOT / text_results.TEXT).read_text() == text_results.text(RECORD)
