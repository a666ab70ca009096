"""A token discriminator small enough to train in seconds: the reference implementation of its protocol."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.models import Cond
from xdistill.state import Tokens


class TinyTokenDiscriminator(nn.Module):
    """Every position sees itself, the time and the sum of all positions, each of which has its own features."""

    def __init__(self, vocabulary: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary + 1, width), nn.Embedding(length, width)
        self.time, self.mix = nn.Linear(1, width), nn.Linear(2 * width, width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, z: Tokens, t: Tensor, cond: Cond, *, soft: Tensor | None = None) -> Tensor:
        """Logits [B, L], positive where z looks real; soft [B, L, K] are logits of soft tokens in place of z.ids."""
        here = torch.arange(z.ids.shape[1], device=z.ids.device)
        if soft is None:
            tokens = self.token(z.ids)
        else:
            every = self.token(torch.arange(soft.shape[2], device=soft.device))
            tokens = soft.softmax(2).to(every) @ every
        time = self.time(t[:, None].to(tokens))[:, None]
        # a product, not a sum: the sum over positions must tell which token stands where
        h = F.silu(tokens * (1 + self.position(here)) + self.position(here) + time)
        total = (h * z.mask[..., None]).sum(1, keepdim=True).expand_as(h)
        return self.head(F.silu(self.mix(torch.cat([h, total], 2)))).squeeze(2)
