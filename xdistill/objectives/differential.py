"""MeanFlow's identity u = v - (t - r) du/dt, and what objectives that differentiate a network along its flow share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill.derivatives import BACKENDS, safe_step, total_derivative
from xdistill.errors import UsageError
from xdistill.models import Cond, average_velocity
from xdistill.objectives.base import Needs
from xdistill.objectives.flow_map import Average, DataFlowMap
from xdistill.process.schedules import Linear
from xdistill.roles import RoleSpec, RoleView
from xdistill.state import Field


def meanflow_target(
    u: Average, v: Field, x_t: Field, t: Tensor, r: Tensor, *, backend: str = "func", step: float = 5e-3
) -> Field:
    """v - (t - r) du/dt, the total derivative along the flow, tangent (v, 1, 0) of (x_t, t, r) (2505.13447, eq. 10)."""
    slope = flow_derivative(u, v, x_t, t, r, backend=backend, step=step)
    return v - slope.scale(t - r)


def flow_derivative(
    u: Average, v: Field, x_t: Field, t: Tensor, r: Tensor, *, backend: str = "func", step: float = 5e-3
) -> Field:
    """du/dt along (v, 1, 0), without a graph; `u` must be free of autocast."""

    def f(value: Tensor, time: Tensor) -> Tensor:
        return u(Field(value, x_t.layout), time, r).value

    tangents = (v.project().value.to(x_t.value), torch.ones_like(t))
    slope = total_derivative(f, (x_t.value, t), tangents, backend=backend, step=step)
    return Field(slope, x_t.layout).project()


@dataclass(eq=False, kw_only=True)
class Differential(DataFlowMap):
    """Options of flow maps whose target holds a derivative of the student along its flow.

    velocity: what rows with r = t regress on: `teacher` (guided as configured; its guidance is distilled in) or `data`
    (e - x0). derivative: `func`, exact in float32, or `finite_difference` of `difference_step` in time, 0 chooses one
    by the network's time scale. Options of every flow map: see DataFlowMap.
    """

    needs = Needs(data=True, process=Linear, derivative=True, flow_map=True)

    velocity: str = "teacher"
    derivative: str = "func"
    difference_step: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.velocity not in ("teacher", "data"):
            raise UsageError(f"objective.velocity={self.velocity}: choose teacher or data")
        if self.derivative not in BACKENDS:
            raise UsageError(f"unknown objective.derivative '{self.derivative}': choose {' or '.join(BACKENDS)}")
        if self.difference_step < 0:
            raise UsageError(f"objective.difference_step={self.difference_step}: expected a step in time, or 0")

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return super().roles if self.velocity == "teacher" else (RoleSpec("student"),)

    def slope(self, net: RoleView, cond: Cond, v: Field, x_t: Field, t: Tensor, r: Tensor) -> Field:
        """du/dt of the live student along (v, 1, 0), without autocast and without a graph."""
        model = net.frozen("student", exact=True)
        step = self.difference_step or safe_step(getattr(model, "time_scale", 1.0))

        def u(x: Field, t: Tensor, r: Tensor) -> Field:
            return average_velocity(model, self.process, x, t, r, cond)

        return flow_derivative(u, v, x_t, t, r, backend=self.derivative, step=step)
