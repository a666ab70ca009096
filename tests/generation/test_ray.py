"""engine=ray: the same bytes as in one process, also when actors and drivers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from generation_runs import content

from xdistill.generation import Engine, Job, generate
from xdistill.generation.driver import drive
from xdistill.generation.maker import Made
from xdistill.student import Loaded

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def actors() -> list[int]:
    """Processes of Ray actors that are this process's descendants."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "cmdline").exists():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::Worker"):
                found.append(int(entry.name))
    return sorted(found)


def test_killed_actors_are_replaced(loaded: Loaded, tmp_path: Path) -> None:
    before = set(actors())
    job = Job(loaded, 120, batch=8, shard=16, options={"steps": 20}, filters=("radius",))
    generate(job, tmp_path / "whole")
    killed: list[int] = []

    def kill_two(done: int) -> None:
        mine = [p for p in actors() if p not in before and p not in killed]
        if done and len(killed) < 2 and mine:
            killed.append(mine[0])
            os.kill(mine[0], signal.SIGKILL)

    assert generate(job, tmp_path / "out", Engine("ray", workers=1), kill_two).made == 120
    assert len(killed) == 2
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_finishers_take_over_what_artists_have_drawn(loaded: Loaded, tmp_path: Path) -> None:
    """Two stages, as on a cluster with GPUs."""
    from xdistill.generation.ray_engine import Actors

    job = Job(loaded, 60, batch=4, shard=12)
    whole: list[Made] = []
    stages = Actors(job, 1, job.plan.shards, finishers=1, finisher_resources={"num_cpus": 0.0})
    try:
        drive(stages, [job.plan[n] for n in range(job.plan.shards)], whole.append, lambda done: None)
    finally:
        stages.close()
    generate(job, tmp_path / "whole")
    files: dict[str, Any] = {name: data for made in whole for name, data in made.files.items()}
    there = content(tmp_path / "whole")
    assert len(files) == 60
    assert all(there[name] == data for name, data in files.items())


def test_address_of_no_cluster(toy_checkpoint: Path, tmp_path: Path) -> None:
    line = ["generate", "domain=toy", f"ckpt={toy_checkpoint}", "engine=ray", "ray.address=127.0.0.1:1"]
    command = [sys.executable, "-m", "xdistill", *line, f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr.splitlines()[-1]


def test_joins_a_cluster(loaded: Loaded, toy_checkpoint: Path, tmp_path: Path) -> None:
    """This process starts one, the command joins it and leaves it running."""
    import ray

    from xdistill.generation.ray_engine import connect

    generate(Job(loaded, 20, batch=4), tmp_path / "whole")
    connect(None)
    try:
        address = ray.get_runtime_context().gcs_address
        line = ["generate", "domain=toy", f"ckpt={toy_checkpoint}", "num=20", "batch=4", "engine=ray"]
        command = [sys.executable, "-m", "xdistill", *line, f"ray.address={address}", f"out={tmp_path / 'out'}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ray.is_initialized()
        assert ray.cluster_resources()["CPU"] > 0
    finally:
        ray.shutdown()
    assert content(tmp_path / "out").keys() == content(tmp_path / "whole").keys()
    rows = [(tmp_path / name / "manifest.parquet").read_bytes() for name in ("out", "whole")]
    assert rows[0] == rows[1]
