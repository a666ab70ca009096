"""What samplers of masked diffusion share: a network call for the rows that need one, and reveals by plan."""

from __future__ import annotations

import torch
from torch import Tensor

from xdistill.models import Cond, NoCond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.samplers.draws import TokenDraw
from xdistill.state import Tokens

LEAST = 4  # rows of a matrix product: fewer run other kernels, which round differently (measured: 1e-6 in log p)


def predict(model: TokenModel, z: Tokens, t: Tensor, cond: Cond, at: Tensor) -> Tensor:
    """log p(x0) [N, V] at the N True positions of `at` [B, L], from one network call on the rows that have some.

    A row without one costs nothing, which makes a cache needless: whoever asks only for what is about to be revealed
    never asks twice about the same tokens. Rows are left out of unconditional calls only (a Cond is opaque). Few rows
    or positions are filled up to `LEAST`: what else is in the batch must not change how a row is rounded.
    t: [B], any device.
    """
    wide = widen(at, LEAST)
    _, log_p = predict_rows(model, z, t, cond, at.any(1), wide)
    return log_p if wide is at else log_p[at[wide]]


def predict_rows(
    model: TokenModel, z: Tokens, t: Tensor, cond: Cond, rows: Tensor, at: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(the rows [B] bool that were called, at least those of `rows`; log p(x0) of them, or of their `at` [B, L])."""
    rows = widen(rows if at is None else rows | at.any(1), LEAST)
    if not isinstance(cond, NoCond):
        rows = torch.ones_like(rows)
    if not bool(rows.all()):
        given = None if z.given is None else z.given[rows]
        z, t, at = Tokens(z.ids[rows], z.mask[rows], given), t[rows.to(t.device)], None if at is None else at[rows]
    t = t.to(z.ids.device)
    return rows, model(z, t, cond) if at is None else model(z, t, cond, at=at)


def widen(chosen: Tensor, least: int) -> Tensor:
    """`chosen` (bool) itself, or with its first False entries made True until there are `least`."""
    missing = least - int(chosen.sum())
    if missing <= 0:
        return chosen
    wide = chosen.flatten().clone()
    wide[(~wide).nonzero()[:missing, 0]] = True
    return wide.view_as(chosen)


def put(z: Tokens, at: Tensor, ids: Tensor) -> Tokens:
    """z with `ids` [N] at the True positions of `at`."""
    return z.with_ids(z.ids.masked_scatter(at, ids))


def ranks(keys: Tensor) -> Tensor:
    """[B, L] place of every entry in its row in ascending order; equal keys keep their order."""
    return keys.argsort(dim=1, stable=True).argsort(1)


def reveal(
    model: TokenModel,
    z: Tokens,
    times: Tensor,
    cond: Cond,
    step: Tensor,
    u: Tensor,
    draw: TokenDraw,
    last: TokenDraw | None = None,
) -> Tokens:
    """z after all calls of a plan that says when each position is revealed.

    times: [B or 1, K], of call k. step: [B, L] int64, the call k < K that reveals a position; others stay.
    u: [B, L] float64, what each token is drawn with. last: the draw of call K - 1, if another than `draw`.
    Calls that reveal nothing are not made.
    """
    calls = times.shape[1]
    for k in step[step < calls].unique().tolist():
        at = step == k
        log_p = predict(model, z, times[:, k].expand(z.batch), cond, at)
        z = put(z, at, (last if last and k == calls - 1 else draw)(log_p, u[at]))
    return z


def even(process: MaskProcess, z: Tokens, order: Tensor, steps: int) -> Tensor:
    """The plan [B, L] that reveals masked tokens in ascending `order` [B, L], as many in each of `steps` calls.

    Call k of a row with n masks ends with ceil(n (k + 1) / steps) revealed.
    """
    masked = process.masked(z)
    rank = ranks(order.masked_fill(~masked, float("inf")))
    n = masked.sum(1, keepdim=True).clamp(min=1)
    return torch.where(masked, rank * steps // n, steps)
