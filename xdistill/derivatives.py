"""Total derivatives along a direction: forward mode where the network allows it, finite differences elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xdistill.errors import UsageError


def total_derivative(
    f: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    *,
    backend: str = "func",
    step: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """(f(primals), d/de f(primals + e tangents) at e=0), both without a graph to f's parameters.

    backend: `func` is torch.func.jvp (exact; not under ZeRO-3, whose parameters are gathered by hooks);
    `finite_difference` is central, error O(step^2), and works with any engine as f is only ever called.
    Raises UsageError for another backend.
    """
    with torch.no_grad():
        if backend == "func":
            value, slope = torch.func.jvp(f, primals, tangents)[:2]
            return value, slope
        if backend == "finite_difference":
            ahead = f(*(p + step * d for p, d in zip(primals, tangents, strict=True)))
            behind = f(*(p - step * d for p, d in zip(primals, tangents, strict=True)))
            return f(*primals), (ahead - behind) / (2 * step)
    raise UsageError(f"unknown derivative backend '{backend}': choose func or finite_difference")
