"""Representation-space MMD: samples that no longer differ from data in the teacher's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xdistill import rng
from xdistill.errors import UsageError, XDistillError
from xdistill.models import Batch
from xdistill.objectives.base import LossOut, Phase
from xdistill.objectives.jumps import Anchored, data_start
from xdistill.objectives.mdlm import clean
from xdistill.objectives.tokens import token_sums
from xdistill.process.mask import uniforms
from xdistill.roles import RoleSpec, RoleView
from xdistill.samplers.mask import PLAIN, grid
from xdistill.state import Tokens

FLOOR = 1e-8


def kernels(left: Tensor, right: Tensor, at_left: Tensor, at_right: Tensor, variance: Tensor | float) -> Tensor:
    """Mean RBF kernel exp(-d^2 / (2 variance)) between positions of two lists of sequences, [P, S, S'].

    Args:
        left, right: hidden states [P, S, L, H]: of P pairs of starts, S completions each.
        at_left, at_right: [P, L] bool, the positions that count.
    """
    (p, s, length, _), s2 = left.shape, right.shape[1]
    near = torch.cdist(left.flatten(1, 2), right.flatten(1, 2)).square().div(-2 * variance).exp()
    weights = [(at / at.sum(1, keepdim=True).clamp(min=1)).to(near) for at in (at_left, at_right)]
    return torch.einsum("psltm,pl,pm->pst", near.view(p, s, length, s2, length), *weights)


def costs(k: Tensor) -> tuple[Tensor, Tensor]:
    """How much each generated completion adds to half of MMD^2, [P, G] of the left and of the right start.

    k: [P, 1 + G, 1 + G], the real completion first. A sample is attracted by the other start's real completion and
    repelled by its generated ones; never compared within its own start, whose visible tokens all of them share.
    """
    both = k[:, 1:, 1:]
    return both.mean(2) - k[:, 1:, 0], both.mean(1) - k[:, 0, 1:]


def discrepancy(k: Tensor) -> Tensor:
    """The unbiased estimate of MMD^2 of each pair of starts, [P]."""
    return k[:, 1:, 1:].mean((1, 2)) + k[:, 0, 0] - k[:, 1:, 0].mean(1) - k[:, 0, 1:].mean(1)


def advantages(cost: Tensor) -> Tensor:
    """[B, G] costs minus the mean of the other completions of the same start."""
    g = cost.shape[1]
    return (cost - cost.mean(1, keepdim=True)) * g / (g - 1)


@dataclass(eq=False, kw_only=True)
class MMD(Anchored):
    """Lower the maximum mean discrepancy between generated and real hidden states of the frozen teacher.

    A start is data noised to an anchor of the student's grid, the same for all of a batch. One call of the student
    gives the law of `samples` independent completions; the teacher reads them, and the data, clean, and an RBF kernel
    compares its hidden states after `depth` of its blocks at the positions that were masked. Every start meets its
    next `neighbours` in the batch. The gradient of MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) is
    2 E[(k(x, x') - k(x, y)) grad log G(x)]: REINFORCE, with the mean of the start's other completions as baseline,
    so that it is unbiased and needs no other network. Without the repulsion k(x, x') the student collapses.
    bandwidth: variance of the kernel in mean square distances between real hidden states. kl, entropy: see Anchored.
    Differences from the paper (text spec 3, known from summaries): credit by sequence instead of by group of
    sequences, bandwidth from the data. Oracle: by enumeration the mean of the estimator is the gradient of MMD^2.
    """

    samples: int = 4
    neighbours: int = 1
    depth: float = 0.5
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.neighbours < 1:
            raise UsageError(
                f"samples={self.samples}, neighbours={self.neighbours}: expected at least 2 completions and 1 neighbour"
            )
        if not 0 < self.depth <= 1 or not self.bandwidth > 0:
            raise UsageError(f"depth={self.depth}, bandwidth={self.bandwidth}: expected depth in (0, 1], bandwidth > 0")

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return RoleSpec("teacher", trainable=False), RoleSpec("student")

    def phases(self, macro_step: int) -> Sequence[Phase]:
        return (Phase("student", "student"),)

    def loss(self, phase: Phase, batch: Batch[Tokens], net: RoleView, generator: torch.Generator) -> LossOut:
        x0 = clean(batch)
        if x0.batch <= self.neighbours:
            raise XDistillError(f"mmd compares sequences of a batch: data.batch={x0.batch} must exceed neighbours")
        anchor = rng.randint(0, self.steps, net.shared)
        start = data_start(self.process, x0, grid(self.steps), generator, anchor)
        own = self.process.masked(start.z)
        log_g = net.train("student")(start.z, start.s, batch.cond, at=own)
        drawn = [self.complete(start.z, log_g, generator) for _ in range(self.samples)]
        states = self.hidden([x0, *drawn], net.frozen("teacher"), batch)
        log_p = torch.stack([token_sums(log_g.gather(1, x.ids[own][:, None]).squeeze(1), own) for x in drawn], 1)
        cost, mmd = self.compare(states, own)
        extra, metrics = self.anchor(start, log_g, net.frozen("teacher"), batch.cond)
        per_sample = 2 * (advantages(cost).to(log_p) * log_p).mean(1) + extra
        return LossOut(per_sample, metrics | {"mmd": mmd, "loss": per_sample.detach()})

    def complete(self, z: Tokens, log_g: Tensor, generator: torch.Generator) -> Tokens:
        """z with a draw of every masked token."""
        own, ids = self.process.masked(z), z.ids.clone()
        ids[own] = PLAIN(log_g.detach(), uniforms(z, generator)[own])
        return z.with_ids(ids)

    def hidden(self, sequences: Sequence[Tokens], teacher: Any, batch: Batch[Tokens]) -> Tensor:
        """[B, S, L, H] float32 or wider: what the teacher makes of clean sequences."""
        t = torch.zeros(batch.like.batch, dtype=torch.float64, device=batch.like.ids.device)
        states = torch.stack([teacher(x, t, batch.cond, depth=self.depth) for x in sequences], 1)
        return states if states.dtype == torch.float64 else states.float()

    def compare(self, states: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """(costs [B, G], MMD^2 estimates [B]) of completions, the real ones first; positions `own` [B, L] count."""
        variance = self.bandwidth * self.mean_distance(states[:, 0], own)
        total = states.new_zeros(len(states), states.shape[1] - 1)
        mmd = states.new_zeros(len(states))
        for shift in range(1, self.neighbours + 1):
            k = kernels(states, states.roll(-shift, 0), own, own.roll(-shift, 0), variance)
            left, right = costs(k)
            total, mmd = total + left + right.roll(shift, 0), mmd + discrepancy(k)
        return total / (2 * self.neighbours), mmd / self.neighbours

    def mean_distance(self, real: Tensor, own: Tensor) -> Tensor:
        """Mean square distance between real hidden states [B, L, H] at `own`: twice their variance."""
        rows = real[own]
        return (2 * rows.var(0, correction=0).sum()).clamp(min=FLOOR)
