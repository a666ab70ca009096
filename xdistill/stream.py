"""The training stream: sized, stateful, and a pure function of (seed, macro_step, rank)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xdistill.domain import DataSource
from xdistill.models import Batch


@dataclass(frozen=True)
class MacroStep:
    """One Lightning batch: the right to draw the batches of one macro-step.

    slots is the number of draws reserved per macro-step, so that draw i of step k is batch k * slots + i
    of the source whatever phases ran before.
    """

    index: int
    slots: int
    source: DataSource
    rank: int
    world: int

    def draw(self, i: int) -> Batch:
        """The i-th batch of this macro-step, 0 <= i < slots."""
        assert 0 <= i < self.slots, f"draw {i} of a macro-step with {self.slots} slots"
        return self.source.batch(self.index * self.slots + i, self.rank, self.world)


class Stream:
    """Macro-steps `start` to `steps`; its length is the run's length (Lightning's max_steps counts optimizers).

    A plain loader would restart at batch 0 on resume; this one continues where `load_state_dict` says.
    """

    def __init__(
        self, source: DataSource, *, steps: int, slots: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        self.source, self.steps, self.slots = source, steps, slots
        self.rank, self.world, self.position = rank, world, start

    def __len__(self) -> int:
        return max(self.steps - self.position, 0)

    def __iter__(self) -> Iterator[MacroStep]:
        while self.position < self.steps:
            step = MacroStep(self.position, self.slots, self.source, self.rank, self.world)
            self.position += 1
            yield step

    def state_dict(self) -> dict[str, int]:
        """The next macro-step."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position."""
        self.position = state["position"]
