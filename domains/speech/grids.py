"""Time grids of F5-TTS samplers in core time (speech spec 1.6): uniform or pruned steps, then sway."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.samplers import Plan

STEPS, SWAY = 32, -1.0  # of the reference

#: Native times in 1/32 by number of steps: fine near the noise, where the flow bends (empirically pruned steps).
PRUNED: dict[int, tuple[int, ...]] = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (*range(9), 10, 12, 14, 16, 20, 24, 28, 32),
}


def f5_times(steps: int = STEPS, *, sway: float | None = SWAY, pruned: bool = True) -> Tensor:
    """Core times [steps + 1] float64 from 1 (noise) to 0 (clean).

    pruned: the table of the reference where it has one for `steps`; uniform otherwise. sway: c of
    `s + c (cos(pi s / 2) - 1 + s)` of native time s (2410.06885, eq. 7); negative ones start slowly, None is 0.
    Raises UsageError for fewer than one step, or a sway that makes the times no grid.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: expected at least 1")
    s = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if pruned and steps in PRUNED:
        s = torch.tensor(PRUNED[steps], dtype=torch.float64) / 32
    if sway:
        s = s + sway * (torch.cos(math.pi / 2 * s) - 1 + s)
    t = 1 - s
    t[0], t[-1] = 1.0, 0.0  # cos(pi / 2) is not quite 0
    if any(a <= b for a, b in pairwise(t.tolist())):
        raise UsageError(f"sway={sway}: times would not fall from 1 to 0; expected a value from -1 to 1.75")
    return t


def f5_plan(steps: int = STEPS, *, sway: float | None = SWAY, pruned: bool = True) -> Plan:
    """The same as a plan of a sampler."""
    return Plan(f5_times(steps, sway=sway, pruned=pruned))
