"""Improved MeanFlow: the identity of MeanFlow as a regression of velocities that a network can see."""

from __future__ import annotations

from dataclasses import dataclass, field

from xdistill.models import Cond, told
from xdistill.objectives.differential import Differential
from xdistill.objectives.flow_map import Draws
from xdistill.roles import RoleView
from xdistill.state import Field
from xdistill.times import LogitNormal, TimeLaw


@dataclass(eq=False, kw_only=True)
class ImprovedMeanFlow(Differential):
    """Regress V = u + (t - r) sg(du/dt) on a velocity, du/dt along the student's own velocity u(x_t, t, t).

    MeanFlow takes that derivative along e - x0, which the network does not see: there the target depends on more than
    the input, here it does not. velocity: what V regresses on. Where the condition tells a scale w (guidance.range),
    the one of `data` is e - x0 + (1 - 1 / w) (u - u_null) at (x_t, t, t), told w. Written as u against velocity - (t -
    r) du/dt, which has the same loss and gradient.
    Differences from the paper: the velocity of its own comes from u at r = t, without a second head; the times where
    guidance acts are no input of the network. Options of every flow map: see Differential.
    Oracle: on Gaussian data the target of velocity=teacher is that of the exact flow map at the flow map itself.
    """

    velocity: str = "data"
    time_law: TimeLaw = field(default_factory=lambda: LogitNormal(-0.4, 1.0, 0.0, 1.0))
    whole_jumps: float = 0.0
    power: float = 1.0

    def target(self, draws: Draws, x_t: Field, v: Field, cond: Cond, net: RoleView) -> Field:
        t, r, scale = draws.t, draws.r, told(cond)
        own = self.student(net, cond)(x_t, t, t)
        if self.velocity == "teacher":
            v = self.teacher(net, cond)(x_t, t)
        elif scale is not None and not draws.dropped:
            v = v + (own - self.student(net, cond.drop())(x_t, t, t)).scale(1 - 1 / scale.to(t))
        return v - self.slope(net, cond, own, x_t, t, r).scale(t - r)
