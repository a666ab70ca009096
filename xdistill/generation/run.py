"""Generation from a student to a folder of designs: plan, claim, continue, drive, merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from xdistill.errors import UsageError, XDistillError
from xdistill.generation.driver import Crew, drive
from xdistill.generation.folder import DesignFolder
from xdistill.generation.job import Job
from xdistill.generation.local import OneProcess, Processes
from xdistill.generation.maker import Made
from xdistill.generation.ranks import Rank

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Engine:
    """How the work is spread. name: local or ray. workers: processes or actors; on a cluster 0 is as many as it has
    GPUs, or else CPUs. devices: of local workers, round robin. address: of a Ray cluster to join (none: one is started
    on this machine). rank: this process among several of engine local.
    """

    name: str = "local"
    workers: int = 1
    devices: Sequence[str] = ("cpu",)
    address: str | None = None
    rank: Rank = Rank()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Outcome:
    """folder: of the designs. made: designs made by this call. missing: shards that other ranks have not finished."""

    folder: DesignFolder
    made: int
    missing: int


def generate(
    job: Job,
    out: Path,
    engine: Engine = Engine(),
    on_progress: Callable[[int], None] = lambda done: None,
    at_end: Callable[[DesignFolder], None] = lambda folder: None,
) -> Outcome:
    """Write designs 0..num-1 and their manifest into `out`; the same call continues an interrupted one.

    Design i depends on (seed, i), the request and the checkpoint alone. Its bits, and those of the manifest, are the
    same for any engine, number of workers, shard size and history of kills and resumes, on one kind of processor.
    `batch` and `num`: on CPUs the bits do not depend on them either (measured for fp32 and bf16 with oneDNN and MKL:
    a row of a matrix product does not depend on the other rows once there are `plan.LEAST_ROWS`, and a design's padded
    width depends on its size alone); on a GPU another batch size may choose other kernels, which round differently
    (1e-6 nm a network call, more where a distance then falls into another bin).

    on_progress sees the number of designs that are there; at_end is called when all are, and the manifest. Under
    torchrun or Slurm each rank makes its share, and the last one merges the manifest.

    Raises UsageError when `out` holds something else or the request is not understood, XDistillError when the disk is
    full, a worker fails, or one shard's workers keep dying.
    """
    if engine.name not in ENGINES:
        raise UsageError(f"engine={engine.name}: choose {' or '.join(ENGINES)}")
    plan, identity = job.plan, job.identity()  # before anything is written: they check the request
    folder, rank = DesignFolder(out, identity), engine.rank
    folder.lock(rank.number if rank.world > 1 else None)
    try:
        mine = rank.share(plan.shards)
        done = folder.finished(plan, mine)
        before = sum(len(plan[n].indices) for n in done)
        on_progress(before)
        rest = [plan[n] for n in mine if n not in done]
        made = 0

        def write(shard: Made) -> None:
            nonlocal made
            folder.add(shard)
            made += len(shard.rows)

        if rest:
            with _crew(job, engine, len(rest), lambda n: on_progress(before + made + n)) as crew:
                drive(crew, rest, write, lambda n: on_progress(before + n))
        with folder.ending():
            missing = folder.merge(plan)
            if not missing:
                at_end(folder)
        if missing & set(mine):
            raise XDistillError(f"{out} changed while it was written to: give the same command again")
        return Outcome(folder, made, len(missing))
    finally:
        folder.release()


@contextmanager
def _crew(job: Job, engine: Engine, shards: int, on_batch: Callable[[int], None]) -> Iterator[Crew]:
    crew: Crew
    if engine.name == "ray":
        from xdistill.generation.ray_engine import Actors

        crew = Actors(job, engine.workers, shards, engine.address)
    elif min(engine.workers, shards) == 1:
        crew = OneProcess(job, torch.device(engine.devices[0]), on_batch)
    else:
        crew = Processes(job, min(engine.workers, shards), list(engine.devices))
    try:
        yield crew
    finally:
        crew.close()
