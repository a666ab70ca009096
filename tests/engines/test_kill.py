"""A run that is killed at random moments and resumed each time ends with the weights of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import kill_cases
import pytest

from xdistill import checkpoint

KILLS = 5


@pytest.fixture
def forkserver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts processes that have imported torch already: a restart costs no seconds."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kill_cases"])
    return context


def last_step(path: Path) -> int:
    found = checkpoint.latest(path / "checkpoints")
    return int(found[0].name[5:]) if found else 0


def run_until(context: Any, path: Path, name: str, step: int, delay: float) -> bool:
    """Run at `path`, and SIGKILL it `delay` seconds after checkpoint `step`; False when it ended before that."""
    process = context.Process(target=kill_cases.train, args=(path, name))
    process.start()
    deadline = time.monotonic() + 60
    while process.is_alive() and last_step(path) < step:
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -9


@pytest.mark.parametrize(
    ("name", "trained"),
    [("sid", ("critic", "student")), ("didi", ("discriminator", "student")), ("meanflow", ("student",))],
)
def test_killed_runs_end_like_an_undisturbed_one(
    forkserver: Any, tmp_path: Path, name: str, trained: tuple[str, ...]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = forkserver.Process(target=kill_cases.train, args=(whole, name))
    process.start()
    moments = random.Random(0)
    kills = 0
    for i in range(KILLS):
        target = last_step(killed) + moments.randint(2, kill_cases.STEPS // KILLS - 2)
        kills += run_until(forkserver, killed, name, target, moments.uniform(0, 0.05))
        for found in checkpoint.latest(killed / "checkpoints"):
            checkpoint.open_checkpoint(found)  # complete, whatever the moment
        assert kills == i + 1, "the run ended before it was killed"
    kill_cases.train(killed, name)
    process.join()
    assert process.exitcode == 0
    ends = [checkpoint.open_checkpoint(p / "checkpoints" / f"step_{kill_cases.STEPS}") for p in (whole, killed)]
    assert ends[0].manifest["sha256"] == ends[1].manifest["sha256"]
    assert ends[0].manifest["updates"] == ends[1].manifest["updates"] == dict.fromkeys(trained, kill_cases.STEPS)
