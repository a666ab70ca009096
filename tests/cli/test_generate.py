"""`xdistill generate`: what a design depends on, what the manifest says, and how an interrupted request continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_runs import Outcome, snapshot

from xdistill.config import GenerateConfig
from xdistill.errors import UsageError
from xdistill.generation import Job, generate
from xdistill.student import Loaded, load_student


@pytest.fixture(scope="module")
def loaded(finished: Path) -> Loaded:
    return load_student(finished)


def points(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.load(p)["sample"] for p in sorted(folder.glob("*.npz"))}


def test_design_depends_on_seed_and_index_alone(loaded: Loaded, tmp_path: Path) -> None:
    generate(Job(loaded, 7, batch=3, seed=5), tmp_path / "a")
    generate(Job(loaded, 4, batch=4, seed=5), tmp_path / "b")
    generate(Job(loaded, 4, batch=4, seed=6), tmp_path / "c")
    a, b, c = (points(tmp_path / name) for name in "abc")
    assert len(a) == 7
    for name, sample in b.items():
        np.testing.assert_array_equal(sample, a[name])
        assert not np.allclose(sample, c[name])


def test_manifest(xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    args = ("generate", "domain=toy", f"ckpt={finished}", f"out={out}", "num=5", "steps=3", "batch=2", "format=csv")
    outcome = xdistill(*args)
    assert outcome.code == 0
    assert "5 samples in" in outcome.out
    request = json.loads((out / "request.json").read_text())
    assert request["steps"] == 3
    weights = json.loads((finished / "checkpoints" / "step_4" / "manifest.json").read_text())["sha256"]
    assert request["checkpoint"] == weights["roles/student_ema.safetensors"]
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    assert [row["index"] for row in rows] == list(range(5))
    assert {row["calls"] for row in rows} == {3}
    assert {row["file"] for row in rows} == {p.name for p in out.glob("*.csv")}
    assert all(row["length"] == 1 and row["seed"] == 0 and row["passed"] for row in rows)
    timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    assert sum(t["designs"] for t in timings) == 5
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".csv") == [
        ".lock",
        "manifest.parquet",
        "request.json",
        "timings.jsonl",
    ]


class Interrupted(Exception):
    """Stands for a kill between two shards."""


def stop_at(number: int) -> Callable[[int], None]:
    def on_progress(done: int) -> None:
        if done >= number:
            raise Interrupted

    return on_progress


def test_interrupted_request_continues(loaded: Loaded, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = Job(loaded, 6, batch=2, request={"label": 1})
    generate(job, whole)
    with pytest.raises(Interrupted):
        generate(job, parts, on_progress=stop_at(5))
    assert not (parts / "manifest.parquet").exists()
    kept = {p: p.stat().st_mtime_ns for p in parts.glob("*.npz")}
    assert len(kept) == 4
    generate(job, parts)
    assert all(p.stat().st_mtime_ns == before for p, before in kept.items())
    for name in ("manifest.parquet", *points(whole)):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_damaged_file_is_made_again(loaded: Loaded, tmp_path: Path) -> None:
    job = Job(loaded, 4, batch=2)
    generate(job, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in (".npz", ".parquet")}
    (tmp_path / "sample_000002.npz").write_bytes(b"half a file")
    assert generate(job, tmp_path).made == 2
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in (".npz", ".parquet")}
    assert before == after


def test_finished_request_draws_nothing(loaded: Loaded, tmp_path: Path) -> None:
    generate(Job(loaded, 4, batch=2), tmp_path)
    before, seen = snapshot(tmp_path), []
    assert generate(Job(loaded, 4, batch=2), tmp_path, on_progress=seen.append).made == 0
    assert seen == [4]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"batch": 4}, {"options": {"steps": 2}}, {"request": {"label": 0}}, {"shard": 1}, {"format": "csv"}],
)
def test_another_request_is_refused(loaded: Loaded, tmp_path: Path, change: dict[str, Any]) -> None:
    generate(Job(loaded, 2, batch=2), tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="another request"):
        generate(Job(loaded, 2, **{"batch": 2, **change}), tmp_path)
    assert snapshot(tmp_path) == before


def test_filters_and_their_options(xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
    """Every design stays; the manifest says which fell where."""
    line = ("generate", "domain=toy", f"ckpt={finished}", "num=30", "filter=radius,side", f"out={tmp_path / 's'}")
    outcome = xdistill(*line)
    assert outcome.code == 0, outcome.err
    assert "passed all" in outcome.out
    rows = pq.read_table(tmp_path / "s" / "manifest.parquet").to_pylist()
    assert len(rows) == len(points(tmp_path / "s")) == 30
    assert all(row["passed"] == (row["failed_at"] is None) for row in rows)
    assert all(row["side"] is None for row in rows if row["failed_at"] == "radius")
    assert xdistill(*line, "filter.radius.most=0").code == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("filter=raduis", ("no filter 'raduis'", "'radius'")),
        ("filter.radius.most=1", ("does not name it",)),
        ("engine=spark", ("engine=spark", "local or ray")),
        ("workers=-1", ("workers=-1", "at least 0")),
        ("threads=0", ("threads=0", "at least 1")),
    ],
)
def test_bad_requests(
    xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path, line: str, words: tuple[str, ...]
) -> None:
    out = tmp_path / "s"
    outcome = xdistill("generate", "domain=toy", f"ckpt={finished}", "num=3", f"out={out}", line)
    assert outcome.code == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert not out.exists()


def test_dotted_key() -> None:
    from xdistill.cli.keys import read

    cfg, _ = read(GenerateConfig, {"domain": "toy", "ray.address": "auto"})
    assert cfg.ray_address == "auto"


def test_shortlist_at_the_end(xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
    line = ("generate", "domain=toy", f"ckpt={finished}", "num=30", "format=packed", f"out={tmp_path / 's'}")
    outcome = xdistill(*line, "keep=3", "by=radius", "filter=radius")
    assert outcome.code == 0, outcome.err
    assert "shortlist: 3 of" in outcome.out
    rows = pq.read_table(tmp_path / "s" / "shortlist.parquet").to_pylist()
    assert [row["radius"] for row in rows] == sorted(row["radius"] for row in rows)
    assert all((tmp_path / "s" / row["file"]).exists() for row in rows)
    assert xdistill(*line, "by=radius").code == 2
    assert "by=COLUMN" in xdistill(*line, "keep=3").err


def test_one_rank_of_two(
    xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a launcher each process does its share and says so; the last one writes the manifest."""
    line = ("generate", "domain=toy", f"ckpt={finished}", "num=10", "batch=2", f"out={tmp_path / 's'}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    outcome = xdistill(*line)
    assert "rank 0 of 2 is done" in outcome.out
    assert "2 shards of others" in outcome.out
    assert not (tmp_path / "s" / "manifest.parquet").exists()
    monkeypatch.setenv("RANK", "1")
    assert "10 samples in" in xdistill(*line).out
    assert len(points(tmp_path / "s")) == 10
