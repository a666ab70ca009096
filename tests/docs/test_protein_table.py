"""The recorded results table: of this teacher, every objective and baseline there, its Markdown made from its JSON."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from xdistill import registry
from xdistill.domains.protein.teacher import SHIPPED_TEACHER
from xdistill.process import GaussianProcess

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import protein_results  # noqa: E402

RECORD = json.loads((ROOT / protein_results.RECORD).read_text())


def test_it_is_of_the_shipped_teacher() -> None:
    assert RECORD["settings"]["teacher_sha256"] == hashlib.sha256(SHIPPED_TEACHER.read_bytes()).hexdigest()


@pytest.mark.parametrize("calls", protein_results.CALLS)
@pytest.mark.parametrize("method", protein_results.METHODS)
def test_no_row_is_missing(method: str, calls: int) -> None:
    seeds = [seed for seed in protein_results.SEEDS if f"{method}/{seed}/{calls}" in RECORD["rows"]]
    assert seeds == list(protein_results.SEEDS)


@pytest.mark.parametrize("method", protein_results.FLOW_MAPS)
def test_seeds_of_a_flow_map_are_whole(method: str) -> None:
    """As many seeds as were run, the first ones, each at every number of calls."""
    seeds = protein_results.SEEDS
    found = [[s for s in seeds if f"{method}/{s}/{k}" in RECORD["rows"]] for k in protein_results.CALLS]
    assert found == [list(seeds[: len(found[0])])] * len(found)


def test_baselines_and_objectives() -> None:
    rows = {key.split("/")[0] for key in RECORD["rows"]}
    assert {name for name in rows if name.startswith("teacher: ")} >= {"teacher: ode", "teacher: clamped SDE"}
    assert "teacher: reference/-/400" in RECORD["rows"]
    used = {option.split("=")[1] for chosen in protein_results.METHODS.values() for option in chosen[:1]}
    known = {name: registry.load("objectives", name).needs.process for name in registry.names("objectives")}
    assert used == {name for name, process in known.items() if process is GaussianProcess} - {"flow_matching"}


def test_every_number_has_an_interval() -> None:
    for row in RECORD["rows"].values():
        for m in row["metrics"].values():
            assert m["n"] > 0
            assert m["low"] <= m["value"] + 1e-12
            assert m["value"] <= m["high"] + 1e-12


def test_markdown_is_the_json() -> None:
    assert (ROOT / protein_results.TEXT).read_text() == protein_results.text(RECORD)


def test_check_tells_inside_from_outside(capsys: pytest.CaptureFixture[str]) -> None:
    key = "sid_a1/0/16"
    recorded = {key: RECORD["rows"][key]}
    assert protein_results.check(recorded, recorded)
    moved = json.loads(json.dumps(recorded))
    moved[key]["metrics"]["score"]["value"] = 2.0
    assert not protein_results.check(recorded, moved)
    assert "OUTSIDE" in capsys.readouterr().out
