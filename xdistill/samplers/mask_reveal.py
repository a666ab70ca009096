"""What samplers of masked diffusion share: a network call for the rows that need one, and reveals by plan."""

from __future__ import annotations

import torch
from torch import Tensor

from xdistill.models import Cond, NoCond, TokenModel
from xdistill.process.mask import MaskProcess
from xdistill.samplers.draws import TokenDraw
from xdistill.state import Tokens

LEAST_ROWS = 4  # sequences of a network call: matrix products of fewer run other kernels, which round differently


def predict(model: TokenModel, z: Tokens, t: Tensor, cond: Cond, at: Tensor) -> Tensor:
    """log p(x0) [N, V] at the N True positions of `at` [B, L], from one network call on the rows that have some.

    A row without one costs nothing, which makes a cache needless: whoever asks only for what is about to be revealed
    never asks twice about the same tokens. t: [B], any device.
    """
    rows, z, t = chosen_rows(z, t, cond, at.any(1))
    return model(z, t, cond, at=at[rows])


def chosen_rows(z: Tokens, t: Tensor, cond: Cond, rows: Tensor) -> tuple[Tensor, Tokens, Tensor]:
    """(rows to call [B] bool, z and t of them): at least `rows` and `LEAST_ROWS`; all under a condition (it is opaque).

    What else is in the batch must not change how a row is rounded.
    """
    missing = max(0, LEAST_ROWS - int(rows.sum()))
    rows = rows.index_fill(0, (~rows).nonzero()[:missing, 0], True)
    t = t.to(z.ids.device)
    if not isinstance(cond, NoCond) or bool(rows.all()):
        return torch.ones_like(rows), z, t
    given = None if z.given is None else z.given[rows]
    return rows, Tokens(z.ids[rows], z.mask[rows], given), t[rows]


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
