"""A TextDiT as the TokenModel of masked diffusion: SUBS log-probabilities, and an explicit choice of its time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xdistill.blocks import EarlierBlocks, Past
from xdistill.domains.text.block import block_logits
from xdistill.domains.text.network import TextDiT
from xdistill.errors import UsageError
from xdistill.models import Cond
from xdistill.process import MaskProcess
from xdistill.state import Tokens

NEVER = -1e6


class TextDenoiser(nn.Module):
    """log p(x0 | z_t) of a TextDiT (2406.07524; text spec 1.2).

    timed: whether the network is told sigma(t); without, it always sees sigma = 0, as the official OWT checkpoint.
    """

    def __init__(self, net: TextDiT, process: MaskProcess, *, timed: bool = False) -> None:
        super().__init__()
        self.net, self.process, self.timed = net, process, timed

    def forward(
        self,
        z_t: Tokens,
        t: Tensor,
        cond: Cond,
        *,
        at: Tensor | None = None,
        soft: Tensor | None = None,
        raw: bool = False,
        depth: float | None = None,
    ) -> Tensor:
        """log p(x0), float32 [B, L, V], or [N, V] of the positions `at`.

        Args:
            z_t: a partly masked sequence; ids in [0, V).
            t: [B], 0 clean and 1 masked, any device.
            cond: `EarlierBlocks` or `Past` makes it p(a block | what precedes it); any other is ignored.
            at: [B, L] bool, the positions to predict.
            soft: [B, L, V] logits of soft tokens that replace z_t.ids as the network's input (gradients flow).
            raw: the network's logits as they are, mask column included.
            depth: return the hidden states [B, L, H] after this share of the blocks instead.
        """
        mask, sigma = None if bool(z_t.mask.all()) else z_t.mask, self.sigma(t.to(z_t.ids.device))
        if depth is not None:
            blocks = round(depth * len(self.net.blocks))
            return self.net.trunk(z_t.ids, self.net.condition(sigma), mask=mask, blocks=blocks)
        if self.timed and isinstance(cond, EarlierBlocks):
            raise UsageError("blocks of one sequence have different times: this network is told one, train it without")
        if isinstance(cond, (EarlierBlocks, Past)):
            logits = block_logits(self.net, z_t.ids, sigma, cond, at=at, mask=mask)
        else:
            logits = self.net(z_t.ids if soft is None else soft, sigma, at=at, mask=mask)
        if raw:
            return logits.float()
        ids = z_t.ids if at is None else z_t.ids[at]
        return subs(logits, ids, self.process.mask_id)

    def sigma(self, t: Tensor) -> Tensor:
        """What the network is told of the time: [B] or [1]."""
        return self.process.sigma(t).float() if self.timed else torch.zeros(1, device=t.device)


def subs(logits: Tensor, ids: Tensor, mask_id: int) -> Tensor:
    """Log-probabilities of the clean token [..., V] in fp32: never the mask, and visible tokens (ids [...]) copied."""
    column = torch.zeros(logits.shape[-1], device=logits.device)
    column[mask_id] = NEVER
    log_p = (logits.float() + column).log_softmax(-1)
    visible = ids != mask_id
    if not bool(visible.any()):
        return log_p
    copied = torch.full_like(log_p[visible], NEVER).scatter_(1, ids[visible][:, None], 0.0)
    return log_p.masked_scatter(visible[..., None], copied)
