"""How a replayed recording is judged: one result a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xdistill.errors import XDistillError


@dataclass(frozen=True)
class CaseResult:
    """One replayed recording: the largest absolute deviation, and whether all are within `tolerance` (plus rtol)."""

    name: str
    max_error: float
    tolerance: float
    ok: bool


def compare(name: str, actual: Tensor, expected: Tensor, atol: float, rtol: float) -> CaseResult:
    """Element-wise comparison of one recorded tensor; raises XDistillError when shapes differ."""
    if actual.shape != expected.shape:
        raise XDistillError(f"{name}: got shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}")
    error = (actual.double() - expected.double()).abs()
    within = error <= atol + rtol * expected.double().abs()
    return CaseResult(name, error.amax().item(), atol, bool(within.all()))
