"""Total derivatives along a direction: forward mode where the network allows it, finite differences elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xdistill.errors import UsageError

BACKENDS = ("func", "finite_difference")


def total_derivative(
    f: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    *,
    backend: str = "func",
    step: float = 1e-3,
) -> Tensor:
    """d/de f(primals + e tangents) at e=0, without a graph to f's parameters.

    Computed without autocast: in bfloat16 no step of a difference works, and a derivative of a sinusoid of 1000 t has
    no digit left. backend: `func` is torch.func.jvp (exact; not under ZeRO-3, whose parameters are gathered by hooks;
    attention takes its plain path, as the fused ones have no forward mode); `finite_difference` is central, error
    O(step^2), and works with any engine as f is only ever called.
    Raises UsageError for another backend, and for a network that forward mode cannot follow.
    """
    device = primals[0].device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        if backend == "func":
            try:
                with sdpa_kernel(SDPBackend.MATH):
                    return torch.func.jvp(f, primals, tangents)[1]
            except (NotImplementedError, RuntimeError) as error:
                if "forward" not in str(error).lower():
                    raise
                raise UsageError(
                    "this network uses an operation without forward-mode derivatives (fused attention is the usual "
                    "one): set objective.derivative=finite_difference, or choose an objective without a derivative "
                    "such as splitmeanflow"
                ) from error
        if backend == "finite_difference":
            ahead = f(*(p + step * d for p, d in zip(primals, tangents, strict=True)))
            behind = f(*(p - step * d for p, d in zip(primals, tangents, strict=True)))
            return (ahead - behind) / (2 * step)
    raise UsageError(f"unknown derivative backend '{backend}': choose {' or '.join(BACKENDS)}")


def safe_step(time_scale: float) -> float:
    """Step of a finite difference in t for a network that multiplies t with `time_scale` before its sinusoids.

    The truncation error is about (time_scale step)^2 / 6 of the derivative, that of rounding grows as the step shrinks:
    1e-4 at F5's 1000 leaves 0.1 % of each in float32 (speech spec 2.8), 5e-3 suits a scale of 1.
    """
    return min(5e-3, 0.1 / time_scale)
