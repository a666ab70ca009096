"""Exponential moving average of a role's weights, moved once per update of that role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """average <- decay average + (1 - decay) weights; integer buffers are copied. In float32."""
    for name, a in _state(average):
        w = weights[name].to(a)
        if a.is_floating_point():
            a.lerp_(w, 1 - decay)
        else:
            a.copy_(w)


def _state(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return module.state_dict().items()
