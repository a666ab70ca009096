"""Guidance as wrappers of a model: mixing is linear, so it acts on the raw prediction of any kind.

Weights of a mix sum to one, and every change of prediction at fixed (x_t, t) is affine: guiding the
velocity, the clean estimate or the score is the same thing (objectives spec 0.2, 0.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xdistill.errors import UsageError
from xdistill.models import Cond, FlowModel
from xdistill.process import Kind
from xdistill.state import Field, lerp


class Guided(nn.Module):
    """`w cond + (1 - w) [r weak + (1 - r) null]` (protein spec 1.7).

    scale: w; 1 is no guidance. autoguidance_ratio: r; 1 with a weak model is autoguidance, 0 is CFG.
    interval: (low, high) in core time (0 clean, 1 prior); samples outside it get the plain conditional.
    Terms whose weight is zero everywhere are not computed.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 1.0,
        *,
        weak: nn.Module | None = None,
        autoguidance_ratio: float = 0.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if autoguidance_ratio and weak is None:
            raise UsageError(f"autoguidance_ratio={autoguidance_ratio} needs a weak model: set guidance.weak")
        self.model, self.weak = model, weak
        self.scale, self.ratio, self.interval = scale, autoguidance_ratio, interval
        self.kind: Kind = model.kind  # type: ignore[assignment]

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Field:
        guided = self.model(x_t, t, cond)
        low, high = self.interval
        w = torch.where((t >= low) & (t <= high), self.scale, 1.0).to(t)
        if bool((w == 1).all()):
            return guided
        terms = [(w, guided)]
        if self.ratio and self.weak is not None:
            terms.append(((1 - w) * self.ratio, self.weak(x_t, t, cond)))
        if self.ratio != 1:
            terms.append(((1 - w) * (1 - self.ratio), self.model(x_t, t, cond.drop())))
        return lerp(terms)


def guide(model: nn.Module, name: str, *, scale: float, weak: nn.Module | None = None, **options: object) -> FlowModel:
    """Wrap `model` by name: none, cfg or autoguidance."""
    match name:
        case "none":
            return model  # type: ignore[return-value]
        case "cfg":
            return Guided(model, scale, **options)  # type: ignore[arg-type]
        case "autoguidance":
            return Guided(model, scale, weak=weak, autoguidance_ratio=1.0, **options)  # type: ignore[arg-type]
    raise UsageError(f"unknown guidance '{name}': choose none, cfg or autoguidance")
