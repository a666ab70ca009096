"""Exponential moving average of a role's weights, moved once per update of that role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EMAConfig:
    """half_life: in updates; 0 keeps no average. ramp: the half-life never exceeds ramp x updates so far."""

    half_life: float = 500.0
    ramp: float = 0.05

    def decay(self, updates: int) -> float:
        """The factor that the average keeps at the `updates`-th update (1-based)."""
        half_life = min(self.half_life, self.ramp * updates) if self.ramp else self.half_life
        return 0.5 ** (1 / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def ema_update(average: nn.Module, weights: Mapping[str, Tensor], decay: float) -> None:
    """average <- decay average + (1 - decay) weights; integer buffers are copied. In the average's own dtype."""
    state = average.state_dict()
    moving = [name for name, value in state.items() if value.is_floating_point()]
    now = [weights[name].to(state[name]) for name in moving]
    torch._foreach_lerp_([state[name] for name in moving], now, 1 - decay)
    for name in state.keys() - set(moving):
        state[name].copy_(weights[name])
