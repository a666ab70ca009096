"""Constant tables of a network: float32 whatever its dtype, built on first use, no part of its state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Table:
    """A float32 tensor kept on the device where it was last read."""

    def __init__(self, build: Callable[[], Tensor]) -> None:
        self.build = build
        self.value: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """The table on `device`."""
        if self.value is None or self.value.device != device:
            with torch.inference_mode(False):  # a table first read in inference is read in training later
                value = self.build() if self.value is None else self.value
                self.value = value.to(device)
        return self.value


def time_frequencies(count: int) -> Tensor:
    """exp(-ln(1e4) i / (count - 1)) [count]: the float32 argument's exponential, rounded once.

    torch's own float32 exp is off by one unit in the last place here and there, elsewhere on each kind of machine.
    """
    argument = torch.arange(count, device="cpu", dtype=torch.float32) * (-math.log(1e4) / (count - 1))
    return argument.double().exp().float()


def position_table(dim: int, positions: int) -> Tensor:
    """[positions, dim]: cosines of all frequencies, then sines."""
    exponent = torch.arange(0, dim, 2, device="cpu")[: dim // 2].float() / dim
    angle = torch.outer(torch.arange(positions, device="cpu").float(), 1.0 / 10_000.0**exponent)
    return torch.cat([angle.cos(), angle.sin()], -1)
