"""Workers on this machine: the driver's own process, or several processes of a few threads each."""

from __future__ import annotations

import os
import pickle
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread

import torch

from xdistill.errors import XDistillError
from xdistill.generation.driver import Died, Event, Failed, Progress
from xdistill.generation.job import Job
from xdistill.generation.maker import Artist, finish
from xdistill.generation.plan import Shard


class OneProcess:
    """Shards made in this process, one after the other."""

    def __init__(self, job: Job, device: torch.device | str, on_batch: Callable[[int], None]) -> None:
        self.job, self.on_batch = job, on_batch
        self._given: deque[Shard] = deque()
        self._threads = torch.get_num_threads()
        self._artist = Artist(job, device)

    def free(self) -> bool:
        return not self._given

    def give(self, shard: Shard) -> None:
        self._given.append(shard)

    def wait(self) -> list[Event]:
        shard = self._given.popleft()
        torch.set_num_threads(self.job.threads)
        try:
            return [finish(self.job, shard, self._artist.draw(shard, self.on_batch))]
        finally:
            torch.set_num_threads(self._threads)

    def close(self) -> None:
        self._artist.close()


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    shard: Shard | None = None


class Processes:
    """`workers` processes; worker k computes on the k-th of `devices`, round robin.

    Each is given its shards over a pipe of its own, so that no lock can be left held by one that is killed.
    """

    def __init__(self, job: Job, workers: int, devices: list[str]) -> None:
        self.job, self.devices = job, devices
        self._payload = pickle.dumps(job)
        self._crew = [self._start(k) for k in range(workers)]

    def _start(self, place: int) -> _Worker:
        context = get_context("spawn")
        mine, theirs = context.Pipe()
        device = self.devices[place % len(self.devices)]
        process = context.Process(target=work, args=(theirs, self._payload, device), daemon=True)
        process.start()
        theirs.close()  # or the end of the process would not end the pipe
        return _Worker(process, mine)

    def free(self) -> bool:
        return any(worker.shard is None for worker in self._crew)

    def give(self, shard: Shard) -> None:
        worker = next(w for w in self._crew if w.shard is None)
        worker.shard = shard
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: `wait` finds the end of its pipe
            worker.connection.send(shard)

    def wait(self) -> list[Event]:
        busy = {w.connection: k for k, w in enumerate(self._crew) if w.shard is not None}
        return [self._event(busy[ready]) for ready in wait(list(busy))]  # type: ignore[index]

    def _event(self, place: int) -> Event:
        worker = self._crew[place]
        shard = worker.shard
        assert shard is not None
        try:
            event = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            self._crew[place] = self._start(place)
            return Died(shard, f"exit code {worker.process.exitcode}")
        if not isinstance(event, Progress):
            worker.shard = None
        return event

    def close(self) -> None:
        for worker in self._crew:
            worker.process.kill()
        for worker in self._crew:
            worker.process.join()
            worker.connection.close()


def work(connection: Connection, payload: bytes, device: str) -> None:
    """A worker's life: shards in, made shards out, until the driver closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the driver decides
    Thread(target=_die_with_driver, daemon=True).start()
    artist: Artist | None = None
    while True:
        try:
            shard = connection.recv()
        except EOFError:
            return
        try:
            artist = artist or _artist(payload, device)
            report = partial(_report, connection, shard.number)
            connection.send(finish(artist.job, shard, artist.draw(shard, report)))
        except XDistillError as error:
            connection.send(Failed(shard, str(error)))
        except Exception as error:
            connection.send(Failed(shard, f"{type(error).__name__}: {error}"))


def _artist(payload: bytes, device: str) -> Artist:
    job: Job = pickle.loads(payload)
    torch.set_num_threads(job.threads)
    return Artist(job, device)


def _report(connection: Connection, shard: int, designs: int) -> None:
    connection.send(Progress(shard, designs))


def _die_with_driver() -> None:
    """Leave at once when the driver is gone: it would not read the shard, and its successor needs the processors."""
    driver = parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
