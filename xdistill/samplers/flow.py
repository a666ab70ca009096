"""Many-step samplers of a flow: Euler or Heun along the ODE, Euler-Maruyama along a family of SDEs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill.models import Cond, FlowModel, velocity
from xdistill.process import GaussianProcess, Kind
from xdistill.rng import Generator
from xdistill.state import Field
from xdistill.times import shared

OnStep = Callable[[int, Field, Field], None]


@dataclass(frozen=True)
class Plan:
    """When a sampler calls the network and how much noise it adds.

    times: [n+1] float64, from noisy to clean; the network is called at times[:-1].
    g: [n] coefficient of the score term of the SDE, in units of time; zero makes a step deterministic.
    """

    times: Tensor
    g: Tensor | None = None

    @classmethod
    def uniform(cls, steps: int, start: float = 1.0, end: float = 0.0) -> Plan:
        """Equal steps from `start` to `end`."""
        return cls(torch.linspace(start, end, steps + 1, dtype=torch.float64))

    @property
    def steps(self) -> int:
        """Network calls of a first-order sampler."""
        return len(self.times) - 1


def ode(
    model: FlowModel,
    process: GaussianProcess,
    plan: Plan,
    x: Field,
    cond: Cond,
    *,
    heun: bool = False,
    self_conditioning: bool = False,
    on_step: OnStep | None = None,
) -> Field:
    """Integrate dx/dt = v from plan.times[0] to plan.times[-1]; Heun costs two calls a step, but one at the last.

    self_conditioning: every call after the first sees the clean estimate of the one before (`Cond.with_estimate`).
    """
    for i, (t, r) in enumerate(zip(plan.times[:-1].tolist(), plan.times[1:].tolist(), strict=True)):
        tb, rb = (shared(s, x.batch, x.value.device) for s in (t, r))
        v = velocity(model, process, x, tb, cond)
        if on_step:
            on_step(i, x, v)
        if self_conditioning:
            cond = _with_estimate(process, cond, x, v, tb)
        step = (x + v * (r - t)).project()
        if heun and i < plan.steps - 1:
            v = (v + velocity(model, process, step, rb, cond)) * 0.5
            step = (x + v * (r - t)).project()
        x = step
    return x


def sde(
    model: FlowModel,
    process: GaussianProcess,
    plan: Plan,
    x: Field,
    cond: Cond,
    generator: Generator,
    *,
    noise_scale: float = 1.0,
    self_conditioning: bool = False,
    on_step: OnStep | None = None,
) -> Field:
    """Euler-Maruyama in reverse time: x += (-v + g s) dt + sqrt(2 g noise_scale dt) e, with dt = t - r > 0.

    For noise_scale = 1 every g >= 0 keeps the marginals p_t (Langevin term added to the flow);
    noise_scale < 1 samples at a lower temperature. Steps with g = 0 draw no noise.
    """
    assert plan.g is not None, "an SDE plan needs g"
    for i, (t, r) in enumerate(zip(plan.times[:-1].tolist(), plan.times[1:].tolist(), strict=True)):
        tb = shared(t, x.batch, x.value.device)
        v, dt, g = velocity(model, process, x, tb, cond), t - r, float(plan.g[i])
        if on_step:
            on_step(i, x, v)
        if self_conditioning:
            cond = _with_estimate(process, cond, x, v, tb)
        step = x - v * dt
        if g > 0:
            score = process.convert(v, Kind.VELOCITY, Kind.SCORE, x, tb)
            step = step + score * (g * dt) + x.randn(generator) * (2 * g * noise_scale * dt) ** 0.5
        x = step.project()
    return x


def _with_estimate(process: GaussianProcess, cond: Cond, x: Field, v: Field, t: Tensor) -> Cond:
    """The next call sees this call's clean estimate, guidance included."""
    return cond.with_estimate(process.convert(v, Kind.VELOCITY, Kind.X0, x, t))  # type: ignore[attr-defined]
