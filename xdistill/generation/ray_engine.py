"""Workers on a Ray cluster: an actor a GPU draws, CPU actors measure, filter and encode; without GPUs one does both.

Actors write nothing and read no files: the driver sends them the student and writes what they return, so that the
cluster needs no shared disk. Every node needs xdistill.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xdistill.errors import UsageError, XDistillError
from xdistill.generation.driver import Died, Event, Failed
from xdistill.generation.job import Job
from xdistill.generation.maker import Artist, Drawn, Made, finish
from xdistill.generation.plan import Shard

try:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError:
    raise UsageError("engine=ray needs Ray: pip install -c constraints.txt 'xdistill[ray]', or engine=local") from None

GPU, CPU = {"num_cpus": 1.0, "num_gpus": 1.0}, {"num_cpus": 1.0}


class Worker:
    """What an actor does. device: it draws there; none: it only finishes what others have drawn."""

    def __init__(self, job: Job, device: str | None) -> None:
        torch.set_num_threads(job.threads)
        self.job, self.artist = job, Artist(job, device) if device else None

    def draw(self, shard: Shard) -> Drawn:
        assert self.artist is not None
        return self.artist.draw(shard)

    def finish(self, shard: Shard, drawn: Drawn) -> Made:
        return finish(self.job, shard, drawn)

    def make(self, shard: Shard) -> Made:
        return self.finish(shard, self.draw(shard))


@dataclass
class _Slot:
    """An actor and what it works on."""

    resources: dict[str, float]
    device: str | None
    actor: Any = None
    shard: Shard | None = None
    ref: Any = None


class Actors:
    """workers: actors that draw (0: one a GPU of the cluster, or one a CPU where it has none), at most one a shard.

    finishers: actors that take the rest of the work from those that draw (none: as many as CPUs are left when there
    are GPUs, else 0, and whoever draws finishes).
    """

    def __init__(
        self,
        job: Job,
        workers: int,
        shards: int,
        address: str | None = None,
        finishers: int | None = None,
        finisher_resources: dict[str, float] = CPU,
    ) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            connect(address)
        found = ray.cluster_resources()
        gpus, cpus = int(found.get("GPU", 0)), max(1, int(found.get("CPU", 1)))
        count = min(workers or gpus or cpus, shards)
        if finishers is None:
            finishers = min(max(1, cpus - count), 2 * count) if gpus else 0
        self._job = ray.put(job)
        resources, device = (GPU, "cuda") if gpus else (CPU, "cpu")
        self._artists = [self._start(_Slot(resources, device)) for _ in range(count)]
        self._finishers = [self._start(_Slot(finisher_resources, None)) for _ in range(finishers)]
        self._drawn: deque[tuple[Shard, Any]] = deque()

    def _start(self, slot: _Slot) -> _Slot:
        slot.actor = ray.remote(Worker).options(**slot.resources).remote(self._job, slot.device)
        slot.shard = slot.ref = None
        return slot

    def free(self) -> bool:
        """Not when the finishers are behind: what is drawn and not finished waits in memory."""
        behind = len(self._drawn) > 2 * len(self._finishers)
        return not behind and any(slot.shard is None for slot in self._artists)

    def give(self, shard: Shard) -> None:
        slot = next(s for s in self._artists if s.shard is None)
        method = slot.actor.draw if self._finishers else slot.actor.make
        slot.shard, slot.ref = shard, method.remote(shard)

    def wait(self) -> list[Event]:
        for slot in self._finishers:
            if slot.shard is None and self._drawn:
                slot.shard, drawn = self._drawn.popleft()
                slot.ref = slot.actor.finish.remote(slot.shard, drawn)
        busy = {slot.ref: slot for slot in self._slots if slot.shard is not None}
        ready, _ = ray.wait(list(busy), num_returns=1)
        return [event for ref in ready if (event := self._event(busy[ref])) is not None]

    @property
    def _slots(self) -> Sequence[_Slot]:
        return [*self._artists, *self._finishers]

    def _event(self, slot: _Slot) -> Event | None:
        """What the end of a call means; None when a shard is drawn and goes on to a finisher."""
        shard, ref = slot.shard, slot.ref
        assert shard is not None
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            text = str(cause) if isinstance(cause, XDistillError) else f"{type(cause).__name__}: {cause}"
            return Failed(shard, text)
        except RayError as error:
            ray.kill(slot.actor)
            self._start(slot)
            return Died(shard, type(error).__name__)
        slot.shard = slot.ref = None
        if isinstance(result, Drawn):
            self._drawn.append((shard, ref))
            return None
        return result

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot.actor)
        if self._started:
            ray.shutdown()


def connect(address: str | None) -> None:
    """Join the cluster at `address` or at $RAY_ADDRESS, else start one on this machine; raises UsageError."""
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # Ray ends the whole process when nobody answers
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {where} ({str(error)[:100]}): check ray.address") from error
