"""A TextDiT that writes block after block (BD3-LM, 2503.09573; text spec 3): the doubled sequence, and the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from xdistill.blocks import EarlierBlocks, Past, doubled_mask
from xdistill.domains.text.network import TextDiT, run_blocks


def block_logits(
    net: TextDiT,
    ids: Tensor,
    sigma: Tensor,
    cond: EarlierBlocks | Past,
    *,
    at: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Logits [B, n, V] of noisy ids [B, n], or [N, V] at `at`; arguments as `TextDiT.forward`.

    With `EarlierBlocks`, ids are all L positions and every block sees the clean ones before it; with a `Past`, ids are
    those from its `start` on. Both give the same numbers, up to the order of sums.
    """
    if isinstance(cond, Past):
        if mask is not None or cond.mask is not None:
            mask = cond.seen(torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)
        return net(ids, sigma, at=at, mask=mask, past=cond)
    length = ids.shape[1]
    attend = doubled_mask(length, cond.size, ids.device)[None, None]
    if mask is not None:
        attend = attend & torch.cat([mask, mask], 1)[:, None, None, :]
    c = net.condition(sigma)
    cos, sin = net.rotary_emb(length)
    rotary = torch.cat([cos, cos]), torch.cat([sin, sin])
    h = net.vocab_embed(torch.cat([ids, cond.ids], 1))
    h = run_blocks(net.blocks, h, c, rotary, attend, checkpointing=net.activation_checkpointing)
    return net.output_layer(h[:, :length], c, at)
