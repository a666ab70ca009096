"""IntMeanFlow: regression of average velocities on the displacement that the teacher itself integrates."""

from __future__ import annotations

from dataclasses import dataclass

from xdistill.models import Cond
from xdistill.objectives.flow_map import DataFlowMap, Draws, displacement
from xdistill.roles import RoleView
from xdistill.state import Field


@dataclass(eq=False, kw_only=True)
class IntMeanFlow(DataFlowMap):
    """Regress u(x_t, t, r) on (x_t - x_r) / (t - r), x_r from `solver_steps` steps of the guided teacher's ODE.

    No derivative and nothing of the student in its own target: fixed targets at `solver_steps` teacher calls (twice
    with guidance, twice with `heun`). Rows with r = t regress on the teacher's velocity. Options of every flow map:
    see DataFlowMap.
    Oracle: on Gaussian data targets approach the exact flow map's at the solver's order.
    """

    instant: float = 0.25
    solver_steps: int = 8
    heun: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count("solver_steps")

    def target(self, draws: Draws, x_t: Field, v: Field, cond: Cond, net: RoleView) -> Field:
        teacher = self.teacher(net, cond)
        return displacement(teacher, x_t, draws.t, draws.r, self.solver_steps, heun=self.heun)
