"""Distributions over tokens by their log-probabilities; what is impossible (-inf, or near it) counts nothing."""

from __future__ import annotations

from torch import Tensor

NEVER = -1e6  # stands for the log of probability 0, where minus infinity would make 0 x inf


def entropy(log_p: Tensor) -> Tensor:
    """Nats of each distribution [..., V], [...]."""
    return -(log_p.exp() * log_p.clamp(min=NEVER)).sum(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of distributions [..., V], [...]."""
    return (log_p.exp() * (log_p.clamp(min=NEVER) - log_q.clamp(min=NEVER))).sum(-1)
