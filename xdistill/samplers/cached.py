"""Approximate caches for bidirectional models (Fast-dLLM, 2505.22618), and how far they are from no cache at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xdistill import rng
from xdistill.blocks import Past
from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.draws import PLAIN, TokenDraw
from xdistill.state import Tokens

KINDS = ("prefix", "dual", "none")
BLOCK = 32  # tokens


@dataclass
class CachedView:
    """A bidirectional model as a TokenModel of one block of a sequence, for the sampler of that block.

    The first call sees the whole sequence and remembers keys and values. Later calls compute anew, with `dual`, the
    block alone, with `prefix`, the block and all that follows, with `none` everything; the rest keeps its keys and
    values, which are stale as soon as a token of the block is revealed.
    """

    model: TokenModel
    process: MaskProcess
    z: Tokens
    cond: Cond
    place: slice
    kind: str
    calls: int = 0

    def __post_init__(self) -> None:
        self.past = Past(store=True, mask=None if bool(self.z.mask.all()) else self.z.mask)

    def __call__(self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None) -> Tensor:
        """log p of the block's tokens z_t; networks that see time are told the masked share of the whole sequence."""
        inside = torch.ones_like(z_t.mask) if at is None else at
        first, last = self.place.start, self.place.stop
        whole = put(self.z, self.place, z_t)
        time = self.process.masked(whole).sum(1) / whole.elements.clamp(min=1)
        if self.calls == 0 or self.kind == "none":
            stop = whole.ids.shape[1]
            seen, past = slice(0, stop), self.past if self.kind != "none" else None
        else:
            stop = last if self.kind == "dual" else whole.ids.shape[1]
            seen, past = slice(first, stop), self.past.at(first)
            if not self.past.layers:
                raise UsageError("this network keeps no keys and values: choose a method without cache")
        self.calls += 1
        wide = torch.zeros_like(whole.mask)
        wide[:, self.place] = inside
        part = Tokens(whole.ids[:, seen], whole.mask[:, seen])
        log_p = self.model(part, time, self.cond if past is None else past, at=wide[:, seen])
        return log_p if at is not None else log_p.view(*z_t.ids.shape, -1)


def cached(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    kind: str = "dual",
    block: int = BLOCK,
    inner: str = "confidence",
    view: Callable[..., Any] = CachedView,
) -> Tokens:
    """Blocks from left to right, each by the token sampler `inner`, in at most N calls, times [N + 1].

    kind: `prefix`, `dual`, or `none` for the same without a cache; with one, the model must take a `Past` as `cond`.
    block: tokens; with fewer calls than blocks, blocks grow. A row does not depend on the others.

    Raises UsageError for an unknown kind and a block that cannot be.
    """
    from xdistill.samplers.block import share  # the registry of samplers imports this module
    from xdistill.samplers.mask import METHODS, grid

    if kind not in KINDS:
        raise UsageError(f"kind={kind}: expected {', '.join(KINDS)}")
    if block < 1:
        raise UsageError(f"block={block}: expected a number of tokens, at least 1")
    steps, length = len(times) - 1, z.ids.shape[1]
    count = min(-(-length // block), steps)
    size = -(-length // count)
    for number in range(count):
        place = slice(number * size, min((number + 1) * size, length))
        part = take(z, place)
        if not bool(process.masked(part).any()):
            continue
        seen, calls = view(model, process, z, cond, place, kind), grid(share(steps, number, count))
        # A conditioning of its own kind keeps the rows together: what is remembered is of all of them.
        done = METHODS[inner](seen, process, calls, part, Past(), generator, draw=draw)
        z = put(z, place, done)
    return z


def take(z: Tokens, place: slice) -> Tokens:
    """Some positions of all rows."""
    return Tokens(z.ids[:, place], z.mask[:, place], None if z.given is None else z.given[:, place])


def put(z: Tokens, place: slice, part: Tokens) -> Tokens:
    """z with the tokens of `part` at these positions."""
    return z.with_ids(torch.cat([z.ids[:, : place.start], part.ids, z.ids[:, place.stop :]], 1))


@dataclass(frozen=True)
class Gap:
    """What a cache changes. probability: largest and mean difference of any token's probability; distance: mean total
    variation of a predicted token; argmax, drawn: share of predictions that agree in the most likely token, and in the
    one drawn with the same uniform; tokens: share of finished texts' free tokens that are the same. n: predictions
    that were made from a cache.
    """

    largest: float
    mean: float
    distance: float
    argmax: float
    drawn: float
    tokens: float
    n: int


@torch.no_grad()
def cache_gap(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    seed: int,
    *,
    kind: str,
    block: int = BLOCK,
    inner: str = "confidence",
    draw: TokenDraw = PLAIN,
) -> Gap:
    """The exactness gap of a cache: at every call of the chain that runs without one, what the cache would have said.

    times: [N + 1]. Row i is drawn with `rng.per_sample(seed, [i])`.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    options: dict[str, Any] = {"block": block, "inner": inner, "draw": draw}
    rows = range(z.batch)

    def both(
        model: TokenModel, process: MaskProcess, z: Tokens, cond: Cond, place: slice, _: str
    ) -> Callable[..., Tensor]:
        exact, approximate = (CachedView(model, process, z, cond, place, k) for k in ("none", kind))

        def call(z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None) -> Tensor:
            log_p, other = exact(z_t, t, cond, at=at), approximate(z_t, t, cond, at=at)
            if approximate.calls > 1:  # the first sees everything: it is exact
                pairs.append((log_p.flatten(0, -2), other.flatten(0, -2)))
            return log_p

        return call

    plain = cached(model, process, times, z, cond, rng.per_sample(seed, rows), kind="none", view=both, **options)
    fast = cached(model, process, times, z, cond, rng.per_sample(seed, rows), kind=kind, **options)
    same = (plain.ids == fast.ids)[process.masked(z)].double().mean()
    p, q = (torch.cat(side) for side in zip(*pairs, strict=True)) if pairs else (torch.zeros(1, 2), torch.zeros(1, 2))
    u = rng.rand(len(p), rng.generator("cache gap", seed)).to(p.device)
    difference = (p.exp() - q.exp()).abs()
    return Gap(
        float(difference.max()),
        float(difference.mean()),
        float(difference.sum(1).mean() / 2),
        float((p.argmax(1) == q.argmax(1)).double().mean()),
        float((draw(p, u) == draw(q, u)).double().mean()),
        float(same),
        len(p) if pairs else 0,
    )
