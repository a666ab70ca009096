"""Semi-autoregressive sampling: block after block, each by a token sampler; what is finished is cached exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from xdistill.blocks import EarlierBlocks, Past
from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.samplers.draws import PLAIN, TokenDraw
from xdistill.samplers.mask import METHODS, grid
from xdistill.state import Tokens

RECENT = 256  # tokens whose entropy says that a text has begun to loop (text spec 3)


@dataclass(frozen=True)
class Stop:
    """When a row ends before its length: behind a token `end_id` that is not its first and was not given (None:
    never), or where the last `RECENT` tokens have less than `entropy` nats.
    """

    end_id: int | None = None
    entropy: float = 0.0


NEVER = Stop()


class BlockView(Protocol):
    """A TokenModel of one block's positions."""

    def __call__(self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class _Cached:
    """log p of a block given the keys and values of all before it."""

    model: TokenModel
    past: Past

    def __call__(self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None) -> Tensor:
        return self.model(z_t, t, self.past, at=at)


@dataclass(frozen=True)
class _Doubled:
    """The same without a cache: all positions up to the block's end, twice."""

    model: TokenModel
    before: Tensor
    size: int

    def __call__(self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None) -> Tensor:
        ids = torch.cat([self.before, z_t.ids], 1)
        inside = torch.ones_like(z_t.mask) if at is None else at
        mask = torch.cat([torch.ones_like(self.before, dtype=torch.bool), z_t.mask], 1)
        wide = torch.cat([torch.zeros_like(self.before, dtype=torch.bool), inside], 1)
        log_p = self.model(Tokens(ids, mask), t, EarlierBlocks(ids, self.size), at=wide)
        return log_p if at is not None else log_p.view(*z_t.ids.shape, -1)


def by_blocks(
    model: TokenModel,
    process: MaskProcess,
    steps: int,
    z: Tokens,
    generator: Generator,
    *,
    block: int,
    method: str = "ancestral",
    draw: TokenDraw = PLAIN,
    stop: Stop = NEVER,
    cache: bool = True,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Tokens:
    """A sequence of any length from a model of p(block | clean blocks before it), at most `steps` calls that reveal.

    The calls are shared evenly among the blocks, at least one each. The cache costs one call more a block but the last;
    blocks in which nothing is masked cost that call alone. `cache=False` gives the same from doubled sequences.
    Rows that stop lose the rest of their `mask`; their later ids are arbitrary. A row does not depend on the others.
    options: of the method.

    Raises UsageError for a block or a number of steps that cannot be, and for an unknown method.
    """
    length = z.ids.shape[1]
    check_blocks(block, steps, length)
    if method not in METHODS:
        raise UsageError(f"unknown method '{method}' of a sampler inside blocks{nearest(method, METHODS)}")
    past, count = Past(), -(-length // block)
    for number in range(count):
        place = slice(number * block, min((number + 1) * block, length))
        part = Tokens(z.ids[:, place], z.mask[:, place], None if z.given is None else z.given[:, place])
        memory = past.at(place.start)
        view: BlockView = _Cached(model, memory) if cache else _Doubled(model, z.ids[:, : place.start], block)
        if bool(process.masked(part).any()):
            # The conditioning says no more than that rows must stay together: the view's memory is of all of them.
            times = grid(share(steps, number, count))
            part = METHODS[method](view, process, times, part, memory, generator, draw=draw, **options)
            z = z.with_ids(torch.cat([z.ids[:, : place.start], part.ids, z.ids[:, place.stop :]], 1))
            z = stopped(z, place, stop)
        if not bool(z.mask[:, place.stop :].any()):
            break
        if cache:
            time = torch.zeros(z.batch, dtype=torch.float64, device=z.ids.device)
            none = torch.zeros_like(part.mask)
            model(part, time, past.at(place.start, store=True), at=none)
    return z


def share(steps: int, number: int, count: int) -> int:
    """Calls of block `number` of `count`: together `steps`."""
    return steps * (number + 1) // count - steps * number // count


def check_blocks(block: int, steps: int, length: int) -> None:
    """Raise UsageError when a block or a number of steps cannot be."""
    if block < 1:
        raise UsageError(f"block={block}: expected a number of tokens, at least 1")
    if steps < -(-length // block):
        raise UsageError(
            f"steps={steps}: {length} tokens in blocks of {block} take at least a call each: give {-(-length // block)}"
        )


def stopped(z: Tokens, place: slice, stop: Stop) -> Tokens:
    """z whose rows end where `stop` says so, looking at the block `place` that was just finished."""
    mask, position = z.mask, torch.arange(z.ids.shape[1], device=z.ids.device)
    if stop.end_id is not None:
        ends = (z.ids == stop.end_id) & z.free & (position > 0) & (position < place.stop)
        first = torch.where(ends.any(1), ends.int().argmax(1), len(position))
        mask = mask & (position <= first[:, None])
    if stop.entropy > 0:
        recent = z.ids[:, max(0, place.stop - RECENT) : place.stop]
        low = torch.stack([entropy(row) < stop.entropy for row in recent])
        mask = mask & ~(low[:, None] & (position >= place.stop))
    return Tokens(z.ids, mask, z.given)


def entropy(ids: Tensor) -> Tensor:
    """Nats of the histogram of ids [n]."""
    counts = ids.unique(return_counts=True)[1].double()
    return torch.special.entr(counts / counts.sum()).sum()
