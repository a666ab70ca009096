"""The few-step hopping sampler: predict the clean state, move along the line through it (DDIM), keep the noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xdistill.models import Cond, FlowModel, denoise
from xdistill.process import GaussianProcess, Kind
from xdistill.rng import Generator
from xdistill.state import Field, lerp
from xdistill.times import shared


def first_input(
    process: GaussianProcess, t: float, like: Field, generator: Generator, noise_scale: float = 1.0
) -> Field:
    """noise_scale sigma(t) e: the signal-free state a few-step student starts from at its first anchor t."""
    return like.randn(generator).scale(noise_scale * process.coeffs(shared(t, like.batch, like.value.device)).sigma)


def hops(
    model: FlowModel,
    process: GaussianProcess,
    times: Tensor,
    x: Field,
    cond: Cond,
    generator: Generator | None = None,
    *,
    eta: float = 0.0,
    on_step: Callable[[int, Field], None] | None = None,
) -> Field:
    """x at times[0] moved to times[-1] with one network call a hop; `times` [n+1] from noisy to clean.

    A hop from t to r is alpha_r D + sigma_r (sqrt(1 - eta) N + sqrt(eta) e): eta = 0 re-uses the estimate N of the
    noise (DDIM, 2010.02502), eta = 1 draws it anew (objectives spec 9.3). The hop to time 0 adds no noise.
    on_step(i, D) sees each clean estimate.
    """
    for i, (t, r) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        tb, rb = (shared(s, x.batch, x.value.device) for s in (t, r))
        clean = denoise(model, process, x, tb, cond)
        if on_step:
            on_step(i, clean)
        if eta and r > 0:
            assert generator is not None, "eta > 0 draws noise: give a generator"
            c, one = process.coeffs(rb), torch.ones_like(rb)
            noise = process.convert(clean, Kind.X0, Kind.EPS, x, tb)
            noise = lerp([(one * (1 - eta) ** 0.5, noise), (one * eta**0.5, x.randn(generator))])
            x = lerp([(c.alpha, clean), (c.sigma, noise)])
        else:
            x = process.move(clean, x, tb, rb)
    return x


def to_zero(times: Tensor) -> Tensor:
    """Anchors [K] with the end of the last hop, time 0: [K+1]."""
    return torch.cat([times, times.new_zeros(1)])
