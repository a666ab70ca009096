"""Samplers of masked diffusion: pure functions that reveal tokens, and never touch what the user gave."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess, uniforms
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.state import Tokens


def grid(steps: int) -> Tensor:
    """Times 1 = t_0 > ... > t_steps = 0, float64: one network call each but the last, where all is revealed."""
    if steps < 1:
        raise UsageError(f"steps={steps}: expected at least one network call")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class TokenDraw:
    """How a token is drawn from its log-probabilities.

    temperature: divides them, 0 takes the most likely. top_p: keep the smallest set that has this much probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __call__(self, log_p: Tensor, u: Tensor) -> Tensor:
        """[N] ids from log_p [N, V] and uniforms u [N] float64, by the inverse of a float64 distribution function."""
        if self.temperature == 0:
            return log_p.argmax(1)
        p = (log_p.double() / self.temperature).softmax(1)
        if self.top_p < 1:
            sorted_p, order = p.sort(1, descending=True)
            outside = sorted_p.cumsum(1) - sorted_p >= self.top_p
            p = p.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), 0)
        cdf = p.cumsum(1)
        return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).squeeze(1).clamp(max=p.shape[1] - 1)


PLAIN = TokenDraw()


def ancestral(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
) -> Tokens:
    """From t to r every masked token is revealed with probability (keep_r - keep_t) / (1 - keep_t) (2406.07524 eq. 7).

    times: [N + 1] decreasing to 0. Only what is revealed goes through the vocabulary head.
    """
    for t, r in itertools.pairwise(times):
        tb, rb = t.expand(z.batch), r.expand(z.batch)
        reveal = process.masked(z) & (uniforms(z, generator) < process.reveal(tb, rb).to(z.ids.device)[:, None])
        u = uniforms(z, generator)[reveal]
        if reveal.any():
            ids = z.ids.clone()
            ids[reveal] = draw(model(z, tb, cond, at=reveal), u)
            z = z.with_ids(ids)
    return z


class TokenSampler(Protocol):
    """A sampler over times [N + 1] from a partly masked z to a finished sequence."""

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


METHODS: dict[str, TokenSampler] = {"ancestral": ancestral}

#: What `sample_tokens` is configured with.
TOKEN_KEYS = ("steps", "temperature", "top_p", "method")


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
) -> Tokens:
    """From the prior to a finished sequence in `steps` calls of the method; raises UsageError for an unknown one."""
    if method not in METHODS:
        raise UsageError(f"unknown method '{method}' of token samplers{nearest(method, METHODS)}")
    z = process.prior(like, generator)
    return METHODS[method](model, process, grid(steps), z, cond, generator, draw=draw)
