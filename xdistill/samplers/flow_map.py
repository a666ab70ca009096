"""The sampler of average velocities: one network call a jump, no noise added."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from xdistill.models import Cond, FlowMapModel, average_velocity
from xdistill.process import GaussianProcess
from xdistill.state import Field
from xdistill.times import shared


def jump(x_t: Field, u: Field, t: Tensor, r: Tensor) -> Field:
    """x_r = x_t - (t - r) u, with t - r from the same tensors so that r = t moves nothing."""
    return (x_t - u.scale(t - r)).project()


def flow_map(
    model: FlowMapModel,
    process: GaussianProcess,
    times: Tensor,
    x: Field,
    cond: Cond,
    *,
    on_step: Callable[[int, Field], None] | None = None,
) -> Field:
    """x at times[0] moved to times[-1] by len(times) - 1 jumps; `times` [n+1] float64 from noisy to clean.

    On the linear path (MeanFlow 2505.13447, alg. 2 for one jump). on_step(i, x) sees the state after each jump.
    """
    for i, (start, end) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        t, r = (shared(s, x.batch, x.value.device) for s in (start, end))
        x = jump(x, average_velocity(model, process, x, t, r, cond), t, r)
        if on_step:
            on_step(i, x)
    return x
