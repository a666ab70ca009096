"""Samples in files: what a sample depends on, what the manifest says, and how an interrupted request continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import Outcome, snapshot

from xdistill.errors import UsageError
from xdistill.generation import generate
from xdistill.student import Loaded, load_student


@pytest.fixture(scope="module")
def loaded(finished: Path) -> Loaded:
    return load_student(finished)


def points(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.load(p)["sample"] for p in sorted(folder.glob("*.npz"))}


def test_sample_depends_on_seed_and_index_alone(loaded: Loaded, tmp_path: Path) -> None:
    generate(loaded, 7, tmp_path / "a", batch=3, seed=5)
    generate(loaded, 4, tmp_path / "b", batch=4, seed=5)
    generate(loaded, 4, tmp_path / "c", batch=4, seed=6)
    a, b, c = (points(tmp_path / name) for name in "abc")
    assert len(a) == 7
    for name, sample in b.items():
        np.testing.assert_allclose(sample, a[name], rtol=0, atol=1e-5)
        assert not np.allclose(sample, c[name])


def test_manifest(xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    args = ("generate", "domain=toy", f"ckpt={finished}", f"out={out}", "num=5", "steps=3", "batch=2", "format=csv")
    assert xdistill(*args).code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["request"]["steps"] == 3
    weights = json.loads((finished / "checkpoints" / "step_4" / "manifest.json").read_text())["sha256"]
    assert manifest["request"]["checkpoint"] == weights["roles/student_ema.safetensors"]
    assert [s["index"] for s in manifest["samples"]] == list(range(5))
    assert {s["calls"] for s in manifest["samples"]} == {3}
    assert {s["file"] for s in manifest["samples"]} == {p.name for p in out.glob("*.csv")}
    assert all(s["seconds"] > 0 and s["size"] == 1 and s["seed"] == 0 for s in manifest["samples"])


class Interrupted(Exception):
    """Stands for a kill between two batches."""


def stop_at(number: int) -> Callable[[int], None]:
    def on_batch(done: int) -> None:
        if done >= number:
            raise Interrupted

    return on_batch


def test_interrupted_request_continues(loaded: Loaded, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options: dict[str, Any] = {"batch": 2, "request": {"label": 1}}
    generate(loaded, 6, whole, **options)
    with pytest.raises(Interrupted):
        generate(loaded, 6, parts, on_batch=stop_at(4), **options)
    assert not json.loads((parts / "manifest.json").read_text())["complete"]
    kept = {p: p.stat().st_mtime_ns for p in parts.glob("*.npz")}
    assert len(kept) == 4
    generate(loaded, 6, parts, **options)
    assert all(p.stat().st_mtime_ns == before for p, before in kept.items())
    for name, sample in points(whole).items():
        np.testing.assert_array_equal(sample, points(parts)[name])


def test_damaged_file_is_made_again(loaded: Loaded, tmp_path: Path) -> None:
    generate(loaded, 4, tmp_path, batch=2)
    before = points(tmp_path)
    (tmp_path / "sample_000002.npz").write_bytes(b"half a file")
    generate(loaded, 4, tmp_path, batch=2)
    after = points(tmp_path)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_finished_request_draws_nothing(loaded: Loaded, tmp_path: Path) -> None:
    generate(loaded, 4, tmp_path, batch=2)
    before, seen = snapshot(tmp_path), []
    generate(loaded, 4, tmp_path, batch=2, on_batch=seen.append)
    assert seen == [4]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 4}, {"options": {"steps": 2}}, {"request": {"label": 0}}])
def test_another_request_is_refused(loaded: Loaded, tmp_path: Path, change: dict[str, Any]) -> None:
    generate(loaded, 2, tmp_path, batch=2)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="another request"):
        generate(loaded, 2, tmp_path, **{"batch": 2, **change})
    assert snapshot(tmp_path) == before
