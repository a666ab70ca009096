"""The driver: hands out shards, writes what comes back, and gives the shard of a dead worker to another."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from xdistill.errors import XDistillError
from xdistill.generation.maker import Made
from xdistill.generation.plan import Shard

DEATHS = 3  # of one shard's workers until the run gives up


@dataclass(frozen=True)
class Progress:
    """So many designs of a shard are drawn."""

    shard: int
    designs: int


@dataclass(frozen=True)
class Died:
    """The worker of a shard is gone, without a word."""

    shard: Shard
    reason: str


@dataclass(frozen=True)
class Failed:
    """A worker met an error that a second try would meet again."""

    shard: Shard
    error: str


Event = Progress | Died | Failed | Made


class Crew(Protocol):
    """Workers, wherever they run. Each works on one shard at a time and writes nothing."""

    def free(self) -> bool:
        """Whether `give` may be called."""

    def give(self, shard: Shard) -> None:
        """Start a shard."""

    def wait(self) -> list[Event]:
        """What happened since; blocks until something has. Dead workers are replaced."""

    def close(self) -> None:
        """End all workers, at once."""


def drive(
    crew: Crew, shards: Iterable[Shard], write: Callable[[Made], None], on_progress: Callable[[int], None]
) -> None:
    """Make and write all `shards`; on_progress sees the number of designs drawn.

    Raises XDistillError for a worker's error, or when a shard's workers died `DEATHS` times.
    """
    waiting, deaths = deque(shards), Counter[int]()
    drawn: Counter[int] = Counter()
    busy = 0
    while waiting or busy:
        while waiting and crew.free():
            crew.give(waiting.popleft())
            busy += 1
        for event in crew.wait():
            if isinstance(event, Progress):
                drawn[event.shard] = event.designs
            elif isinstance(event, Made):
                write(event)
                drawn[event.shard] = len(event.rows)
                busy -= 1
            elif isinstance(event, Died):
                deaths[event.shard.number] += 1
                if deaths[event.shard.number] == DEATHS:
                    raise _lost(event)
                drawn[event.shard.number] = 0
                waiting.appendleft(event.shard)
                busy -= 1
            else:
                raise XDistillError(f"shard {event.shard.number}: {event.error}")
        on_progress(drawn.total())


def _lost(event: Died) -> XDistillError:
    indices = event.shard.indices
    return XDistillError(
        f"shard {event.shard.number} ({len(indices)} samples from {indices[0]}) lost its worker {DEATHS} times "
        f"({event.reason}): out of memory? Give a smaller batch= or fewer workers=; finished shards are safe"
    )
