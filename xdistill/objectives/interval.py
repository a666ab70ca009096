"""Interval consistency: MeanFlow, SplitMeanFlow, shortcut models and alpha-Flow are one objective."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.models import Cond, told
from xdistill.objectives.base import Needs, Phase
from xdistill.objectives.differential import Differential
from xdistill.objectives.flow_map import Average, Draws, pick
from xdistill.process.schedules import Linear
from xdistill.roles import RoleView
from xdistill.samplers.flow_map import jump
from xdistill.state import Field, lerp
from xdistill.times import ConstantLam, LamLaw, UniformLam


def split_target(u: Average, leg: Field, x_t: Field, t: Tensor, r: Tensor, lam: Tensor) -> Field:
    """lam leg + (1 - lam) u(x_s, s, r) with s = t - lam (t - r) and x_s = x_t - (t - s) leg.

    Averages over [s, t] and [r, s] add up to that over [r, t] (SplitMeanFlow 2507.16884, eq. 11); `leg` is the velocity
    of the first part, an average of it or an instantaneous one (alpha-Flow 2510.20771).
    """
    s = t - lam * (t - r)
    x_s = jump(x_t, leg, t, s)
    return pick(lam == 1, leg, lerp([(lam, leg), (1 - lam, u(x_s, s, r))]))  # u may be undefined at s = r = 0


@dataclass(eq=False, kw_only=True)
class Interval(Differential):
    """Regress u(x_t, t, r) on two legs of the way, the second told by the student itself, without a gradient.

    leg: the first leg goes along `velocity`, or along the student's own average (`self`). lam: the share of the first
    leg: `uniform`, `constant` (value) or `sigmoid`, a curriculum from 1 to 0 (start, end, temperature, clamp). At 0 the
    target is MeanFlow's derivative (see Differential). omega, kappa: guidance inside the target of velocity=data: omega
    v + (1 - omega - kappa) u_null + kappa u, whose scale is omega / (1 - kappa); omega 1 and kappa 0 are none. A
    condition that tells a scale (guidance.range) has it instead. guided_times: where it acts; a micro-batch without
    condition (`drop`) is not guided. Further options: see Differential.

    | | velocity | leg | lam | instant |
    |---|---|---|---|---|
    | MeanFlow (2505.13447) | data | velocity | 0 | 0.75 |
    | MeanFlow distillation | teacher | velocity | 0 | 0.75 |
    | SplitMeanFlow (2507.16884) | teacher | self | uniform | 0.5 |
    | shortcut (2410.12557) | teacher | self | 1/2 | 0.5 |
    | alpha-Flow (2510.20771) | data | velocity | sigmoid | 0.25 |

    Differences from the papers: errors are means over a sample's valid elements (sums of MeanFlow's images grow with
    length); rows with r = t are a share of each batch, rounded at random.
    Oracle: on Gaussian data every target is that of the exact flow map at the flow map itself.
    """

    leg: str = "self"
    lam: LamLaw = field(default_factory=UniformLam)
    omega: float = 1.0
    kappa: float = 0.0
    guided_times: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.leg not in ("velocity", "self"):
            raise UsageError(f"objective.leg={self.leg}: choose velocity or self")
        if self.guides_itself and (self.velocity != "data" or self.kappa >= 1):
            raise UsageError("omega and kappa guide the target of velocity=data, with kappa below 1: see guidance=cfg")
        if not self.differentiates:
            # Without a derivative nothing in a run may ask for one (ZeRO-3 forbids it).
            self.needs = Needs(data=True, process=Linear, flow_map=True)

    @property
    def differentiates(self) -> bool:
        """Whether lam reaches 0, where the target is a derivative."""
        return not isinstance(self.lam, UniformLam) and not (isinstance(self.lam, ConstantLam) and self.lam.value > 0)

    @property
    def guides_itself(self) -> bool:
        """Whether the target of data is guided by the student's own null branch."""
        return (self.omega, self.kappa) != (1.0, 0.0)

    def draw_lam(self, n: int, phase: Phase, generator: torch.Generator) -> Tensor:
        value = self.lam.at(phase.macro_step)
        if value is None:
            return rng.rand(n, generator)
        return torch.full((n,), value, dtype=torch.float64, device=generator.device)

    def target(self, draws: Draws, x_t: Field, v: Field, cond: Cond, net: RoleView) -> Field:
        t, r, lam, u = draws.t, draws.r, draws.lam, self.student(net, cond)
        v = self.instantaneous(draws, x_t, v, cond, net)
        if self.instant == 1:  # of all ranks: what depends on a rank's draws must not change its calls (ZeRO-3)
            return v
        if bool((lam == 0).all()):
            jumped = v - self.slope(net, cond, v, x_t, t, r).scale(t - r)
        else:
            leg = v if self.leg == "velocity" else u(x_t, t, t - lam * (t - r))
            jumped = split_target(u, leg, x_t, t, r, lam)
        return pick(draws.instant, v, jumped)

    def instantaneous(self, draws: Draws, x_t: Field, v: Field, cond: Cond, net: RoleView) -> Field:
        """The velocity at (x_t, t) that instants regress on and legs go along."""
        if self.velocity == "teacher":
            return self.teacher(net, cond)(x_t, draws.t)
        scale = told(cond)
        if draws.dropped or (scale is None and not self.guides_itself):
            return v
        own, null = (self.student(net, c)(x_t, draws.t, draws.t) for c in (cond, cond.drop()))
        omega = self.omega if scale is None else scale.to(draws.t) * (1 - self.kappa)
        return guided_pair(v, own, null, draws.t, omega, self.kappa, self.guided_times)


def guided_pair(
    v: Field, own: Field, null: Field, t: Tensor, omega: Tensor | float, kappa: float, times: tuple[float, float]
) -> Field:
    """omega v + (1 - omega - kappa) null + kappa own where t is inside `times`, v elsewhere (2505.13447, eq. 19)."""
    one, inside = torch.ones_like(t), (t >= times[0]) & (t <= times[1])
    mixed = lerp([(one * omega, v), (one * (1 - omega - kappa), null), (one * kappa, own)])
    return pick(inside, mixed, v)
