"""Samplers of masked diffusion by name: pure functions that reveal tokens, and never touch what was visible."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from xdistill import registry
from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.samplers.cached import cached
from xdistill.samplers.draws import PLAIN, PRECISIONS, TokenDraw, token_uniforms
from xdistill.samplers.mask_confidence import entropy_bounded, threshold, top_k
from xdistill.samplers.mask_order import first_hitting, spread
from xdistill.samplers.mask_remask import psi, remdm
from xdistill.samplers.mask_reveal import reveal
from xdistill.samplers.mask_score import analytic_weights, ancestral_weights, replay
from xdistill.samplers.rgas import guided
from xdistill.state import Tokens

GREEDY = TokenDraw(temperature=0)


def grid(steps: int) -> Tensor:
    """Times 1 = t_0 > ... > t_steps = 0, float64: one network call each but the last, where all is revealed."""
    if steps < 1:
        raise UsageError(f"steps={steps}: expected at least one network call")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def ancestral(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    last: str = "draw",
    precision: str = "float64",
    tweedie: bool = False,
) -> Tokens:
    """From t to r every masked token is revealed with probability (keep_r - keep_t) / (1 - keep_t) (2406.07524 eq. 7).

    When a token is revealed does not depend on what it is: a position is still masked at t_k with probability
    (1 - keep(t_k)) / (1 - keep(t_0)), so one uniform says at which call it is revealed and another which token it
    becomes. The law is that of the step-by-step rule, and the same generator reveals in the same order at any N.

    Args:
        times: [N + 1] decreasing to 0; with a later end some masks stay.
        last: `draw`, or `argmax` for the most likely tokens in the last call (MDLM's noise removal).
        precision: `float64`, or `paper_fp32` for the published fp32 race over the vocabulary (text spec 1.8).
        tweedie: of a replay in `paper_fp32`, computes the same law through the concrete score (see `analytic`).

    Raises UsageError for another `last` or `precision`.
    """
    if last not in ("draw", "argmax"):
        raise UsageError(f"last={last}: expected draw or argmax")
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision}: expected {' or '.join(PRECISIONS)}")
    final = GREEDY if last == "argmax" else None
    if precision == "paper_fp32":
        weights = analytic_weights if tweedie else ancestral_weights
        return replay(model, process, times, z, cond, generator, weights, draw, final)
    when, which = token_uniforms(z, generator, 2)
    step = torch.where(process.masked(z), reveal_steps(process, times, when), len(times))
    return reveal(model, z, times[None, :-1], cond, step, which, draw, final)


def reveal_steps(process: MaskProcess, times: Tensor, u: Tensor) -> Tensor:
    """The call in 0..N, N = never, that reveals a position of uniform u under ancestral sampling over times [N + 1]."""
    mask = 1 - process.keep(times)
    masked = (mask[1:] / mask[0]).flip(0).to(u.device)  # P(still masked after call k), k descending
    return len(masked) - torch.searchsorted(masked, u.contiguous(), right=True)


class TokenSampler(Protocol):
    """A sampler over times [N + 1] from a partly masked z to a finished sequence, and its own keyword options."""

    def __call__(
        self,
        model: TokenModel,
        process: MaskProcess,
        times: Tensor,
        z: Tokens,
        cond: Cond,
        generator: Generator,
        *,
        draw: TokenDraw = ...,
    ) -> Tokens: ...


#: By name. N calls or fewer each; `first_hitting` makes one a token. Fewer is what adaptive ones are for.
METHODS: dict[str, TokenSampler] = {
    "ancestral": ancestral,
    "analytic": partial(ancestral, tweedie=True),
    "first_hitting": first_hitting,
    "spread": spread,
    "psi": psi,
    "remdm": remdm,
    "confidence": partial(top_k, score="probability"),
    "margin": partial(top_k, score="margin"),
    "entropy": partial(top_k, score="entropy"),
    "threshold": threshold,
    "entropy_bounded": entropy_bounded,
}

#: Those for networks that keep keys and values (`xdistill.blocks.Past`): blocks from left to right, approximately.
CACHED: dict[str, TokenSampler] = {
    "prefix_cache": partial(cached, kind="prefix"),
    "dual_cache": partial(cached, kind="dual"),
}

#: Those for students with a discriminator beside them, whose calls are counted apart.
GUIDED: dict[str, TokenSampler] = {"rgas": guided}

#: What `sample_tokens` is configured with.
TOKEN_KEYS = ("steps", "temperature", "top_p", "method")


def token_sampler(method: str) -> TokenSampler:
    """The sampler of this name; raises UsageError with the nearest one."""
    methods = {**METHODS, **CACHED, **GUIDED}
    if method not in methods:
        raise UsageError(f"unknown method '{method}' of token samplers{nearest(method, methods)}")
    return methods[method]


def method_options(method: str) -> dict[str, bool | int | float | str]:
    """The options of a method that are plain values, with their defaults; raises UsageError for an unknown method."""
    known = inspect.signature(token_sampler(method)).parameters.values()
    return {p.name: p.default for p in known if isinstance(p.default, bool | int | float | str)}


def sample_tokens(
    model: TokenModel,
    process: MaskProcess,
    steps: int,
    like: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    method: str = "ancestral",
    draw: TokenDraw = PLAIN,
    **options: Any,
) -> Tokens:
    """From the prior to a finished sequence in `steps` calls of the method, with options of its own.

    Raises UsageError for an unknown method and for an option that the method does not have.
    """
    sampler = token_sampler(method)
    fixed = {"model": model, "process": process, "times": grid(steps), "z": process.prior(like, generator)}
    fixed |= {"cond": cond, "generator": generator, "draw": draw}
    return registry.call(sampler, options, f"method '{method}'", **fixed)
