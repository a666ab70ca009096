"""SIGKILL at every point where something is written, of workers, and of ranks: nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from generation_runs import child, content, die, outcome

from xdistill.errors import UsageError, XDistillError
from xdistill.generation import Engine, Job, Rank, generate
from xdistill.generation.driver import Died, Event, drive
from xdistill.generation.maker import Made
from xdistill.generation.plan import Shard
from xdistill.student import Loaded


@pytest.mark.parametrize("format", ["npz", "packed"])
def test_kill_at_every_write(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """The driver dies just before the n-th file gets its name; the next call ends as if nothing had been."""
    job, replace = Job(loaded, 6, batch=2, format=format), os.replace
    generate(job, tmp_path / "whole")
    whole, kills = content(tmp_path / "whole"), 0
    while True:
        out, renames = tmp_path / f"killed{kills}", 0

        def deadly(source: Path, target: Path, at: int = kills) -> None:
            nonlocal renames
            if renames == at:
                die()
            renames += 1
            replace(source, target)

        monkeypatch.setattr(os, "replace", deadly)
        ended = outcome(child(lambda folder=out: generate(job, folder)))  # type: ignore[misc]
        monkeypatch.setattr(os, "replace", replace)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        assert not (out / "manifest.parquet").exists()
        generate(job, out)
        assert content(out) == whole
        kills += 1
    assert kills == {"npz": 6 + 3 + 2, "packed": 3 + 3 + 2}[format]  # designs, rows, request and manifest


def test_killed_again_and_again(loaded: Loaded, tmp_path: Path) -> None:
    """One more shard each time, then death: what was finished is not made again."""
    job = Job(loaded, 40, batch=4, shard=8)
    generate(job, tmp_path / "whole")
    for _ in range(4):
        done = len(list((tmp_path / "out" / "parts").glob("*.parquet")))
        pid = child(lambda n=done: generate(job, tmp_path / "out", on_progress=lambda d: d <= 8 * n + 8 or die()))  # type: ignore[misc]
        assert outcome(pid) == -signal.SIGKILL
    assert generate(job, tmp_path / "out").made == 8
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_killed_workers_are_replaced(loaded: Loaded, tmp_path: Path) -> None:
    """Two processes; each is killed once, in the middle of its work."""
    job = Job(loaded, 240, batch=8, shard=24, options={"steps": 50})
    generate(job, tmp_path / "whole")
    killed: list[int] = []

    def kill_two(done: int) -> None:
        if len(killed) < 2 and done > 40 * len(killed):
            mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            workers = [int(p) for p in mine if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
            killed.append(workers[-1])
            os.kill(workers[-1], signal.SIGKILL)

    made = generate(job, tmp_path / "out", Engine(workers=2), kill_two).made
    assert len(set(killed)) == 2
    assert made == 240
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_ranks_split_the_plan_and_the_last_one_merges(loaded: Loaded, tmp_path: Path) -> None:
    job = Job(loaded, 30, batch=4)
    generate(job, tmp_path / "whole")
    first = generate(job, tmp_path / "a", Engine(rank=Rank(1, 2)))
    assert first.missing > 0
    assert not (tmp_path / "a" / "manifest.parquet").exists()
    assert generate(job, tmp_path / "a", Engine(rank=Rank(0, 2))).missing == 0
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_ranks_at_the_same_time(loaded: Loaded, tmp_path: Path) -> None:
    job = Job(loaded, 60, batch=4)
    generate(job, tmp_path / "whole")
    ranks = [child(lambda r=r: generate(job, tmp_path / "out", Engine(rank=Rank(r, 3)))) for r in range(3)]  # type: ignore[misc]
    assert [outcome(pid) for pid in ranks] == [0, 0, 0]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_ranks_from_the_launchers_variables() -> None:
    assert Rank.here({}) == Rank(0, 1, 0)
    assert Rank.here({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Rank(3, 8, 1)
    assert Rank.here({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "2"}) == Rank(2, 4, 2)
    assert sorted(n for r in range(3) for n in Rank(r, 3).share(10)) == list(range(10))


@pytest.mark.parametrize(("first", "second", "free"), [(0, 0, False), (None, 0, False), (0, None, False), (0, 1, True)])
def test_one_driver_a_folder(loaded: Loaded, tmp_path: Path, first: int | None, second: int | None, free: bool) -> None:
    """The whole folder, or a rank's share of it, has one driver at a time."""
    job = Job(loaded, 12, batch=2)
    engines = [Engine(rank=Rank(r, 2) if r is not None else Rank()) for r in (first, second)]
    ready, hold = os.pipe(), os.pipe()

    def holder() -> None:
        def wait(done: int) -> None:
            os.write(ready[1], b"x")
            os.read(hold[0], 1)

        generate(job, tmp_path / "out", engines[0], wait)

    pid = child(holder)
    os.read(ready[0], 1)
    if free:
        assert generate(job, tmp_path / "out", engines[1]).made > 0
    else:
        with pytest.raises(UsageError, match="another run"):
            generate(job, tmp_path / "out", engines[1])
    os.kill(pid, signal.SIGKILL)
    assert outcome(pid) == -signal.SIGKILL


class Doomed:
    """A crew whose worker dies of shard 1, always."""

    def __init__(self) -> None:
        self.given: list[Shard] = []
        self.lives = 0

    def free(self) -> bool:
        return not self.given

    def give(self, shard: Shard) -> None:
        self.given.append(shard)

    def wait(self) -> list[Event]:
        shard = self.given.pop()
        if shard.number == 1:
            self.lives += 1
            return [Died(shard, "exit code -9")]
        return [Made(shard.number, {}, [{"index": i} for i in shard.indices], {})]

    def close(self) -> None:
        self.given.clear()


def test_a_shard_that_kills_its_workers_ends_the_run() -> None:
    crew, written = Doomed(), []
    shards = [Shard(n, ((2 * n, 2 * n + 1),)) for n in range(3)]
    with pytest.raises(XDistillError, match=r"shard 1 \(2 samples from 2\) lost its worker 3 times \(exit code -9\)"):
        drive(crew, shards, lambda made: written.append(made.shard), lambda done: None)
    assert crew.lives == 3
    assert written == [0]
