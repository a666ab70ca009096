"""Samplers that look before they reveal: the positions that the network is surest of come first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.draws import PLAIN, TokenDraw, token_uniforms
from xdistill.samplers.mask_reveal import predict, put
from xdistill.state import Tokens

#: (log p [N, V], candidates [N]) -> how sure the network is of each, [N]; larger is surer.
SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probability": lambda log_p, ids: log_p.gather(1, ids[:, None]).exp().squeeze(1),
    "margin": lambda log_p, ids: log_p.topk(2).values.exp().diff(dim=1).neg().squeeze(1),
    "entropy": lambda log_p, ids: -torch.special.entr(log_p.exp()).sum(1),
}

#: (scores of a row's candidates, best first, -inf behind its last [B, L]; masks left [B]; calls left) -> [B] reveals.
Count = Callable[[Tensor, Tensor, int], Tensor]


def look(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    count: Count,
    *,
    score: str,
    draw: TokenDraw = PLAIN,
    block: int = 0,
    window: bool = False,
) -> Tokens:
    """Candidates for all masked tokens in every call, of which the `count` surest stay; at most N calls, times [N + 1].

    score: a key of `SCORES`, of the network's own probabilities. block: > 0 finishes blocks of this many positions from
    left to right. window: show `count` the first unfinished block only.
    Networks that see time are told the share of the row's masks that is left, which is t in expectation.
    """
    if block < 0:
        raise UsageError(f"block={block}: expected a number of positions, 0 for the whole sequence")
    blocks = (torch.arange(z.ids.shape[1], device=z.ids.device) // (block or z.ids.shape[1])).expand_as(z.ids)
    total = process.masked(z).sum(1).clamp(min=1)
    for left in range(len(times) - 1, 0, -1):
        masked = process.masked(z)
        if not bool(masked.any()):
            break
        (u,) = token_uniforms(z, generator)
        log_p = predict(model, z, masked.sum(1) / total * times[0].item(), cond, masked)
        ids = draw(log_p, u[masked])
        scores = torch.full(z.ids.shape, -torch.inf, device=z.ids.device, dtype=log_p.dtype)
        scores = scores.masked_scatter(masked, SCORES[score](log_p, ids))
        place = blocks.masked_fill(~masked, z.ids.shape[1])
        order = scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, place.gather(1, order).argsort(dim=1, stable=True))
        best = scores.gather(1, order)
        if window:
            ordered = place.gather(1, order)
            best = best.masked_fill(ordered != ordered[:, :1], -torch.inf)
        n = count(best, masked.sum(1), left) if left > 1 else masked.sum(1)
        chosen = masked & (order.argsort(1) < n[:, None])
        z = put(z, chosen, z.ids.masked_scatter(masked, ids)[chosen])
    return z


def top_k(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    score: str = "probability",
    block: int = 0,
) -> Tokens:
    """The surest tokens first, an even share in each of N calls (MaskGIT 2202.04200, LLaDA 2502.09992).

    `margin` and `entropy` look at the law alone, and are exact with one token a call. `probability` keeps the likeliest
    of the tokens drawn, which sharpens the law even of an exact network: watch the entropy of samples.
    """

    def count(best: Tensor, masks: Tensor, left: int) -> Tensor:
        return -(-masks // left)

    return look(model, process, times, z, cond, generator, count, score=score, draw=draw, block=block)


def threshold(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    confidence: float = 0.9,
    block: int = 0,
) -> Tokens:
    """All candidates whose probability exceeds `confidence`, and at least one, in each of at most N calls (2505.22618).

    The last of N calls reveals what is left: a number of steps as large as the sequence sets no limit.
    """

    def count(best: Tensor, masks: Tensor, left: int) -> Tensor:
        return (best > confidence).sum(1).clamp(min=1)

    return look(
        model, process, times, z, cond, generator, count, score="probability", draw=draw, block=block, window=True
    )


def entropy_bounded(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    gamma: float = 0.1,
    block: int = 0,
) -> Tokens:
    """The largest set, in order of increasing entropy, whose sum of entropies less the largest is at most gamma nats.

    That difference bounds the mutual information which an independent draw loses (EB-Sampler, 2505.24857). At most N
    calls, the last of which reveals what is left. Raises UsageError for a negative gamma.
    """
    if gamma < 0:
        raise UsageError(f"gamma={gamma}: expected an entropy in nats, at least 0")

    def count(best: Tensor, masks: Tensor, left: int) -> Tensor:
        before = -best.roll(1, 1).index_fill(1, torch.zeros(1, dtype=torch.long, device=best.device), 0)
        return ((before.cumsum(1) <= gamma) & best.isfinite()).sum(1)

    return look(model, process, times, z, cond, generator, count, score="entropy", draw=draw, block=block, window=True)
