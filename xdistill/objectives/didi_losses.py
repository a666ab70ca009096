"""The terms of DiDi-Instruct as pure functions of explicit tensors (2509.25035; text spec 2.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from xdistill.objectives.categorical import kl
from xdistill.process import MaskProcess

FLOOR = 1e-10


def floored(log_p: Tensor) -> Tensor:
    """log_softmax(log(p + 1e-10)) [..., V]: log-probabilities as the published code bounds them."""
    return (log_p.exp() + FLOOR).log().log_softmax(-1)


def revealed_log_prob(log_p: Tensor, index: Tensor, ids: Tensor, revealed: Tensor) -> Tensor:
    """log p of the tokens that a jump revealed, [B, L], 0 elsewhere.

    Args:
        log_p: [N, V], one row a position that was predicted.
        index: [B, L], the row of each position.
        ids: [B, L], the tokens after the jump.
        revealed: [B, L] bool, masked before the jump and not after it.
    """
    found = log_p[index[revealed], ids[revealed]]
    return torch.zeros(revealed.shape, dtype=found.dtype, device=found.device).masked_scatter(revealed, found)


def kept_constant(still_masked: Tensor) -> Tensor:
    """What positions that stay masked [B, L] add to a floored log-probability: log 1e-10 each, no gradient, [B]."""
    return still_masked.sum(1) * math.log(FLOOR)


def log_odds(logits: Tensor, clip: float = 8.0) -> Tensor:
    """log(s + 1e-6) - log(1 - s + 1e-6) with s = sigmoid(logits), clipped to +-clip: log real / generated."""
    s = logits.float().sigmoid()
    odds = (s + 1e-6).log() - (1 - s + 1e-6).log()
    return odds.clamp(-clip, clip) if clip else odds


def row_mean(values: Tensor, at: Tensor) -> Tensor:
    """Mean of values [B, L] over the positions `at` of each row, [B]; 0 for a row without any."""
    return values.masked_fill(~at, 0).sum(1) / at.sum(1).clamp(min=1)


def token_mean(values: Tensor, at: Tensor) -> Tensor:
    """[B] whose mean is the mean of values [B, L] over all positions `at`: a token counts the same in every row."""
    return values.masked_fill(~at, 0).sum(1) * len(at) / at.sum().clamp(min=1)


def advantage(reward: Tensor, group: int, kind: str = "leave_one_out", clip: float = 3.0) -> Tensor:
    """Rewards [B, ...] against those of their group, which is `group` consecutive rows.

    leave_one_out: r_i minus the mean of the others, unbiased. group: (r - mean) / (unbiased std + 1e-8), the paper's.
    Where all of a group are equal, to rounding, it is 0. clip=0 does not clip.
    """
    r = reward.unflatten(0, (-1, group))
    centred = r - r.mean(1, keepdim=True)
    scale = 1 / (r.std(1, keepdim=True) + 1e-8) if kind == "group" else group / (group - 1)
    tied = r.amax(1, keepdim=True) - r.amin(1, keepdim=True) <= 1e-6 * r.abs().amax(1, keepdim=True)
    a = (centred * scale).masked_fill(tied, 0).flatten(0, 1)
    return a.clamp(-clip, clip) if clip else a


def omega(process: MaskProcess, t: Tensor, low: float = 0.1, high: float = 10.0) -> Tensor:
    """-alpha'(t) / (1 - alpha(t)) clipped to [low, high]: the weight of KL(q_t || p_t) in the objective, [B]."""
    return process.weight(t).clamp(low, high)


def divergence(log_teacher: Tensor, log_student: Tensor, kind: str = "forward") -> Tensor:
    """Between distributions [N, V] over tokens, [N]: KL(teacher || student), backward KL, or jeffreys, their mean."""
    forward, backward = kl(log_teacher, log_student), kl(log_student, log_teacher)
    return {"forward": forward, "backward": backward, "jeffreys": 0.5 * (forward + backward)}[kind]


def discriminator_loss(logits: Tensor, at: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of logits [B, L] at the positions `at` against one target, as `token_mean`, [B]."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, target).float(), reduction="none")
    return token_mean(bce, at)
