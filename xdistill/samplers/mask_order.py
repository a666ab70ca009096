"""Samplers that plan the order of reveals beforehand: exact event times, and orders that keep a step's tokens apart."""

from __future__ import annotations

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.process.mask import MaskProcess, spread_key
from xdistill.rng import Generator
from xdistill.samplers.draws import PLAIN, TokenDraw, row_uniforms, token_uniforms
from xdistill.samplers.mask_reveal import even, ranks, reveal
from xdistill.state import Tokens

ORDERS = ("spread", "random", "left_to_right")


def first_hitting(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
) -> Tokens:
    """The continuous-time process itself, one token a call (2409.02908): no discretisation, one call a masked token.

    With n masks left the next event is at t u^(1/n), since 1 - keep is proportional to t, and reveals any of them with
    the same probability: their order is a random permutation. times: only times[0], where z is, is read.
    """
    masked = process.masked(z)
    place, when, which = token_uniforms(z, generator, 3)
    keys = place.masked_fill(~masked, 2)
    left = (masked.sum(1, keepdim=True) - torch.arange(z.ids.shape[1], device=z.ids.device)).clamp(min=1)
    events = (when.gather(1, keys.argsort(1)) ** (1 / left)).cumprod(1) * float(times[0])
    step = torch.where(masked, ranks(keys), z.ids.shape[1])
    return reveal(model, z, events, cond, step, which, draw)


def spread(
    model: TokenModel,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    order: str = "spread",
) -> Tokens:
    """An even share of the masked tokens in each call, by default in an order whose neighbours lie far apart.

    Tokens drawn in one call are drawn independently, and neighbours depend on each other most. The van der Corput
    order (reversed bits) from a random start puts the tokens of a call at nearly equal distances, and later calls
    between known tokens. Any order is exact with one token a call; only the few-step error differs.
    order: `spread`, `random` or `left_to_right`; raises UsageError for another.
    """
    if order not in ORDERS:
        raise UsageError(f"order={order}: expected {', '.join(ORDERS)}")
    shift = row_uniforms(z.batch, generator, z.ids.device)
    place, which = token_uniforms(z, generator, 2)
    key = {"spread": spread_key(z.mask, shift), "random": place, "left_to_right": z.mask.cumsum(1)}[order]
    step = even(process, z, key.double(), len(times) - 1)
    return reveal(model, z, times[None, :-1], cond, step, which, draw)
