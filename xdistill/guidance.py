"""Guidance as wrappers of a model: mixing is linear, so it acts on the raw prediction of any kind.

Weights of a mix sum to one, and every change of prediction at fixed (x_t, t) is affine: guiding the
velocity, the clean estimate or the score is the same thing (objectives spec 0.2, 0.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.models import Batch, Cond, FlowModel, tell, told
from xdistill.process import Kind
from xdistill.registry import nearest
from xdistill.state import Field, lerp

if TYPE_CHECKING:
    from xdistill.domain import DataSource


class Guided(nn.Module):
    """`w cond + (1 - w) [r weak + (1 - r) null]` (protein spec 1.7).

    scale: w; 1 is no guidance, 0 the unconditional model. A condition that tells its scales w [B] has them instead, and
    the model never sees them. autoguidance_ratio: r; 1 with a weak model is autoguidance, 0 is CFG. interval: (low,
    high) in core time (0 clean, 1 prior); samples outside it get the plain conditional.
    Terms whose weight is zero everywhere are not computed.
    """

    def __init__(
        self,
        model: Any,
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
        self.kind: Kind = model.kind

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Field:
        scale: Tensor | float = self.scale
        if (asked := told(cond)) is not None:
            scale, cond = asked.to(t), tell(cond, None)
        low, high = self.interval
        w = torch.where((t >= low) & (t <= high), scale, 1.0).to(t)
        if bool((w == 1).all()):
            return self.model(x_t, t, cond)
        terms = [] if bool((w == 0).all()) else [(w, self.model(x_t, t, cond))]
        if self.ratio and self.weak is not None:
            terms.append(((1 - w) * self.ratio, self.weak(x_t, t, cond)))
        if self.ratio != 1:
            terms.append(((1 - w) * (1 - self.ratio), self.model(x_t, t, cond.drop())))
        return lerp(terms)


@dataclass(frozen=True)
class ToldSource:
    """Batches of `source` whose conditions tell a guidance scale w, with density 1 / w over [low, high] (iMF, speech
    spec 2.2): a function of (seed, index, rank).
    """

    source: DataSource
    low: float
    high: float
    seed: int

    def batch(self, index: int, rank: int, world: int) -> Batch[Any]:
        made = self.source.batch(index, rank, world)
        u = rng.rand(made.like.batch, rng.generator("guidance", self.seed, index, rank))
        return replace(made, cond=tell(made.cond, (self.low * (self.high / self.low) ** u).float()))


@dataclass(frozen=True)
class Scales:
    """Guidance scales by place (protein spec 2.6): k4 of the teacher, k2 = k3 of the critic in the student's loss,
    k1 of the critic in its own loss. 1 is none; 0 shows and tells the critic no condition.
    """

    teacher: float = 1.0
    critic: float = 1.0
    critic_train: float = 1.0


#: Where each named guidance puts its scale.
PRESETS: dict[str, Callable[[float], Scales]] = {
    "none": lambda w: Scales(),
    "cfg": lambda w: Scales(teacher=w),
    "autoguidance": lambda w: Scales(teacher=w),
    "lsg": lambda w: Scales(w, w, w),
    "short": lambda w: Scales(critic_train=w),
    "zero_cfg": lambda w: Scales(critic=0.0, critic_train=0.0),
    "anti_cfg": lambda w: Scales(critic=w, critic_train=w),
}


def scales(name: str, scale: float, critic: float | None = None, critic_train: float | None = None) -> Scales:
    """The scales of a named guidance; `critic` and `critic_train` replace those of the preset."""
    if name not in PRESETS:
        raise UsageError(f"unknown guidance '{name}'{nearest(name, PRESETS)}")
    preset = PRESETS[name](scale)
    return Scales(
        preset.teacher,
        preset.critic if critic is None else critic,
        preset.critic_train if critic_train is None else critic_train,
    )


def guide(
    model: nn.Module, name: str, *, scale: float, told: bool = False, weak: nn.Module | None = None, **options: object
) -> FlowModel:
    """The teacher `model` under a named guidance; `model` itself where that leaves the teacher alone.

    told: conditions will tell other scales.
    """
    teacher = scales(name, scale).teacher
    if teacher == 1 and not told:
        return model  # type: ignore[return-value]
    ratio = 1.0 if name == "autoguidance" else 0.0
    return Guided(model, teacher, weak=weak if ratio else None, autoguidance_ratio=ratio, **options)  # type: ignore[arg-type]
