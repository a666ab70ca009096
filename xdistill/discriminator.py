"""A discriminator head on the pooled features of a frozen network: one logit a sample, conditioned on time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xdistill.errors import UsageError
from xdistill.models import Cond, Featurizer
from xdistill.process import GaussianProcess
from xdistill.state import Field


class PooledDiscriminator(nn.Module):
    """MLP on [features(x_t, t), time] -> logit [B] (LADD, 2403.12015; pooled against averaging rewards, spec 5).

    The trunk is only borrowed: its parameters are not this module's, so they are neither saved nor trained
    twice, and it moves between devices with the role that owns it. It should be frozen by that role.
    Raises UsageError when the trunk exposes no features.
    """

    FREQUENCIES = 4

    def __init__(self, trunk: nn.Module, process: GaussianProcess, hidden: int = 128) -> None:
        super().__init__()
        if not isinstance(trunk, Featurizer):
            raise UsageError(f"{type(trunk).__name__} exposes no features(): a discriminator needs a Featurizer trunk")
        self._trunk, self.process = (trunk,), process  # a tuple hides it from nn.Module's registry
        self.norm = nn.LayerNorm(trunk.feature_dim)
        self.head = nn.Sequential(
            nn.Linear(trunk.feature_dim + 2 * self.FREQUENCIES, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Tensor:
        """[B] logits; gradients flow to x_t through the trunk."""
        dtype = self.norm.weight.dtype
        c = self.process.coeffs(t)
        angle = torch.atan2(c.sigma, c.alpha)[:, None] * torch.arange(1, self.FREQUENCIES + 1, device=t.device)
        time = torch.cat([angle.cos(), angle.sin()], 1).to(dtype)
        features = self.norm(self._trunk[0].features(x_t, t, cond).to(dtype))
        return self.head(torch.cat([features, time], 1)).squeeze(1)
