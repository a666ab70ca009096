"""Proteina's own samplers as plans of the core's ODE and SDE (protein spec 1.8; arXiv:2503.00710, app. on sampling).

Schedules and g(t) are written in Proteina time s (0 noise, 1 data), as published; `plan` turns them to core time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.registry import nearest
from xdistill.samplers import Plan

SCHEDULES = ("uniform", "power", "log", "loglinear", "edm", "cos_sch_v_snr")
G_MODES = ("1/t", "us", "tan")
G_FLOOR = 0.01


def schedule(name: str, steps: int, p: float) -> Tensor:
    """[steps + 1] float64 from 0 to 1 in Proteina time; `p` is each schedule's exponent.

    Raises UsageError for an unknown name.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    match name:
        case "uniform":
            return u
        case "power":
            return u**p
        case "log":
            return _unit(1 - 10 ** (-p * u))
        case "loglinear":
            return _unit(torch.sigmoid(math.log(1000) * (2 * u - 1)))  # log-odds linear between -+ln 1000
        case "edm":
            sigma = (80 ** (1 / p) + u * (0.002 ** (1 / p) - 80 ** (1 / p))) ** p
            return _unit(1 / (1 + sigma))
        case "cos_sch_v_snr":
            angle = math.pi / 2 * u
            return _unit(angle.sin() / (angle.sin() + angle.cos()))
    raise UsageError(f"unknown schedule '{name}'{nearest(name, SCHEDULES)}")


def g_of(s: Tensor, mode: str = "1/t", p: float = 1.0, clamp: float | None = None) -> Tensor:
    """Score coefficient g at Proteina times s: `1/t`, `us` = (1-s)/s, `tan`; floors of 0.01 keep s = 0 finite.

    p != 1 sharpens or flattens log g around its mean through a sigmoid; clamp is an upper bound.
    """
    s = s.clamp(max=1 - 1e-5)
    match mode:
        case "1/t":
            g = 1 / (s + G_FLOOR)
        case "us":
            g = (1 - s) / (s + G_FLOOR)
        case "tan":
            angle = (1 - s) * math.pi / 2
            g = math.pi / 2 * angle.sin() / (angle.cos() + G_FLOOR)
        case _:
            raise UsageError(f"unknown g mode '{mode}'{nearest(mode, G_MODES)}")
    if p != 1:
        log_g = g.log()
        g = (torch.logit(torch.sigmoid(log_g - log_g.mean()) ** p, eps=1e-6) + log_g.mean()).exp()
    return g.clamp(0, clamp) if clamp is not None else g


@dataclass(frozen=True)
class ProteinaPlan:
    """Proteina's sampling options; the defaults are its published SDE with 400 calls.

    sde: False integrates the ODE (`vf`), True the SDE (`sc`). noise_scale: temperature gamma of the SDE.
    """

    steps: int = 400
    schedule: str = "log"
    p: float = 2.0
    sde: bool = True
    g_mode: str = "1/t"
    g_power: float = 1.0
    g_clamp: float | None = None
    noise_scale: float = 0.45

    def with_steps(self, steps: int) -> ProteinaPlan:
        """The same sampler at another number of network calls."""
        return replace(self, steps=steps)

    def plan(self) -> Plan:
        """Times and g in core time; the last stretch (s > 0.99, 0.985 for edm and cos) is deterministic."""
        s = schedule(self.schedule, self.steps, self.p)
        if not self.sde:
            return Plan(1 - s)
        last = 0.985 if self.schedule in ("edm", "cos_sch_v_snr") else 0.99
        g = g_of(s[:-1], self.g_mode, self.g_power, self.g_clamp)
        return Plan(1 - s, torch.where(s[:-1] > last, 0.0, g))


def _unit(s: Tensor) -> Tensor:
    return (s - s[0]) / (s[-1] - s[0])
