"""Tokens from probabilities and uniforms: exact inversion by default, the published fp32 race for replays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.process.mask import real_uniforms
from xdistill.rng import Generator, Recorded
from xdistill.state import Tokens

BLOCK = 64  # outcomes summed before the search: doubles are needed for one sum a block and inside one block only
CHUNK = 1 << 24  # entries of a [N, V] temporary: bounds memory, changes nothing
PRECISIONS = ("float64", "paper_fp32")


@dataclass(frozen=True)
class TokenDraw:
    """How a token is drawn from its log-probabilities.

    temperature: divides them, 0 takes the most likely. top_p: keep the smallest set that has this much probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(f"temperature={self.temperature}, top_p={self.top_p}: expected >= 0, and within (0, 1]")

    def __call__(self, log_p: Tensor, u: Tensor) -> Tensor:
        """[N] ids from log_p [N, V] and uniforms u [N] float64 in [0, 1)."""
        if self.temperature == 0:
            return log_p.argmax(1)
        rows = max(1, CHUNK // log_p.shape[1])
        parts = zip(log_p.split(rows), u.split(rows), strict=True)
        return torch.cat([categorical(self.probabilities(part), v) for part, v in parts])

    def probabilities(self, log_p: Tensor) -> Tensor:
        """What is drawn from, [N, V] in the dtype of log_p."""
        if self.temperature == 0:
            return F.one_hot(log_p.argmax(-1), log_p.shape[-1]).to(log_p)
        p = log_p.exp() if self.temperature == 1 else (log_p / self.temperature).softmax(-1)
        if self.top_p == 1:
            return p
        p = p.masked_fill(p < self.cut(p), 0)
        return p / p.sum(-1, keepdim=True)

    def cut(self, p: Tensor) -> Tensor:
        """The least probability inside the top_p set of p [..., V], [..., 1]; equal ones are all inside."""
        aim, k = self.top_p * p.sum(-1, keepdim=True), 32
        while True:  # few outcomes make most of a peaked law: sorting all costs ten times as much
            k = min(8 * k, p.shape[-1])
            top = p.topk(k).values
            mass = top.cumsum(-1, dtype=torch.float64)
            if k == p.shape[-1] or bool((mass[..., -1:] >= aim).all()):
                return top.gather(-1, (mass < aim).sum(-1, keepdim=True).clamp(max=k - 1))


PLAIN = TokenDraw()


def categorical(weights: Tensor, u: Tensor) -> Tensor:
    """[N] outcomes of unnormalised weights [N, V] by inversion at u [N] float64; never one of weight 0.

    Two searches, for a block of outcomes and within it: sums are as exact as fp32 weights are, the position of u is
    float64, so tails of any size keep their probability, without a [N, V] temporary of doubles.
    """
    blocks = F.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    block, rest = invert(blocks.sum(2).double(), u)
    inside = blocks[torch.arange(len(u), device=u.device), block].double()
    return block * BLOCK + invert(inside, rest)[0]


def invert(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(outcomes [N] of weights [N, K] float64 at u [N], how far u lies inside each, in [0, 1])."""
    cdf = weights.cumsum(1)
    x = u[:, None] * cdf[:, -1:]
    # u x total may round up to the total: the first outcome that reaches it is the last of positive weight.
    i = torch.minimum(torch.searchsorted(cdf, x, right=True), torch.searchsorted(cdf, cdf[:, -1:].contiguous()))
    mass, high = weights.gather(1, i), cdf.gather(1, i)
    return i.squeeze(1), (1 - (high - x) / mass).clamp(0, 1).squeeze(1)


def race(weights: Tensor, u: Tensor) -> Tensor:
    """argmax of q / (1e-10 - log(u + 1e-10)) over the last axis: the published exponential race (text spec 1.8).

    fp32 uniforms have no values close enough to 1 for outcomes of small weight to win as often as they should.
    """
    return (weights / (1e-10 - (u + 1e-10).log())).argmax(-1)


def token_uniforms(z: Tokens, generator: Generator, count: int = 1) -> tuple[Tensor, ...]:
    """`count` tensors [B, L] float64 in [0, 1), 0 at padding: row i is a function of generator i and its length."""
    if isinstance(generator, Recorded):
        return tuple(generator.next() for _ in range(count))
    return real_uniforms(z, count, generator, torch.float64).unbind(-1)


def vocabulary_uniforms(z: Tokens, vocabulary: int, generator: Generator) -> Tensor:
    """[B, L, V] float32 in [0, 1), of the fp32 race."""
    if isinstance(generator, Recorded):
        return generator.next()
    return real_uniforms(z, vocabulary, generator, torch.float32)


def row_uniforms(batch: int, generator: Generator, device: torch.device) -> Tensor:
    """[B] float64 in [0, 1), one from each sample's generator."""
    if isinstance(generator, torch.Generator | Recorded):
        return rng.rand(batch, generator).to(device)
    return torch.cat([rng.rand(1, g) for g in generator]).to(device)
