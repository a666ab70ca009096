"""Trajectory distribution matching (TDM): a deterministic few-step student, matched hop by hop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Batch, Cond, denoise
from xdistill.objectives.base import LossOut, Phase, spread
from xdistill.objectives.dmd import dmd_gap, pseudo_target_loss
from xdistill.objectives.score_gap import EVEN, ScoreGap
from xdistill.process import GaussianProcess
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.roles import RoleView
from xdistill.sources import Hop, forward_noised, student_hop
from xdistill.state import Field, lerp
from xdistill.times import TimeLaw

SNR_MAX = 5.0
FLOOR = 1e-8


def subinterval_target(
    process: GaussianProcess, x_r: Field, noise: Field, r: Tensor, t: Tensor
) -> tuple[Field, Tensor]:
    """D* = x_r / a_r - c e with c = a_t s_r^2 / (a_r^2 s_{t|r}), and c [B] (2510.27684; objectives spec 4).

    For x_t = a_{t|r} x_r + s_{t|r} e the mean of D* given x_t is the Tweedie denoiser of the law of x_r noised to t:
    score matching that needs no clean sample. r = 0 is the clean sample itself.
    """
    a, b = process.coeffs(t), process.coeffs(r)
    c = a.alpha * b.sigma**2 / (b.alpha**2 * process.transition(t, r)[1]).clamp(min=FLOOR)
    return lerp([(1 / b.alpha, x_r), (-c, noise)]), c


def importance(process: GaussianProcess, x_t: Field, x_hat: Field, noise: Field, t: Tensor) -> Tensor:
    """exp(-<n_eff^2>/2) / exp(-<e^2>/2), n_eff the noise of x_t about x_hat: TDM's own weight, [B] (2503.06674)."""
    c = process.coeffs(t)
    n_eff = lerp([(1 / c.sigma, x_t), (-c.alpha / c.sigma, x_hat)])
    return (0.5 * (noise.mean_square() - n_eff.mean_square())).exp()


@dataclass(eq=False, kw_only=True)
class TDM(ScoreGap):
    """Match the law of the student's deterministic chain to the teacher's at every one of its K hops, data-free.

    The student predicts D at t_i and hops to x_{r}, r = t_{i-1}, keeping its own noise estimate. x_r is noised to
    tau > r, where the gap (D_q - D_p) / <|D - D_p|> pulls D. Options of every few-step objective: see FewStep and
    ScoreGap; here critic_time and student_time are laws of the place of tau inside its interval (0: at r, 1: its end).
    interval: `hop` takes tau from [r, t_i), so that an error of one hop never moves the earlier ones; `above` from
    [r, 1). critic_target: `subinterval` is the unbiased target of Phased DMD (2510.27684) with weight
    min(SNR, 5, 1/c^2), which bounds its variance; `importance` is TDM's own regression to D, weight min(SNR, 5) times
    an importance weight. critic_weight: `snr` as above, or `velocity` for W^2 / sigma^2 in place of min(SNR, 5).
    huber: constant of a pseudo-Huber loss of the student, 0 is L2.
    Anchors should start at t = 1 (`log` with k_first=0): the chain keeps its noise, and from there it is the prior's.
    Differences from 2503.06674: sub-interval target by default, the normaliser is over valid entries.
    Oracle: with the exact Gaussian K-step map and an exact critic all K gaps are zero point by point.
    """

    critic_time: TimeLaw = EVEN
    interval: str = "hop"
    critic_target: str = "subinterval"
    critic_weight: str = "snr"
    huber: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, known in (
            ("interval", ("hop", "above")),
            ("critic_target", ("subinterval", "importance")),
            ("critic_weight", ("snr", "velocity")),
        ):
            if getattr(self, key) not in known:
                raise UsageError(f"unknown {key} '{getattr(self, key)}' of tdm{nearest(getattr(self, key), known)}")

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        training_student = phase.owner == "student"
        steps, told = self.start(batch, net)
        times, first = self.anchors(steps), self.first(steps)
        hop = student_hop(net, self.process, times, told, generator, grad=training_student, first=first)
        u = (self.student_time if training_student else self.critic_time).sample(hop.x_hat.batch, generator)
        end = hop.t if self.interval == "hop" else torch.ones_like(hop.t)
        tau = hop.r + (end - hop.r) * u.to(hop.t)
        x_t, noise = forward_noised(self.process, hop.end.detach().project(), hop.r, tau, generator)
        if not training_student:
            return self._critic(
                self.critic(net.train("critic"), steps, training=True), hop, x_t, noise, tau, batch.cond
            )
        critic = self.critic(net.frozen("critic"), steps)
        gap = dmd_gap(net.frozen("teacher"), critic, self.process, hop.x_hat.detach(), x_t, tau, batch.cond)
        per_sample = pseudo_target_loss(hop.x_hat, gap, self.huber)
        return LossOut(per_sample, {"loss": per_sample.detach(), "gap": gap.mean_abs(), "spread": spread(hop.x_hat)})

    def _critic(self, critic: Any, hop: Hop, x_t: Field, noise: Field, tau: Tensor, cond: Cond) -> LossOut:
        c = self.process.coeffs(tau)
        weight = (c.wronskian if self.critic_weight == "velocity" else c.alpha).square() / c.sigma**2
        weight = weight.clamp(max=SNR_MAX) if self.critic_weight == "snr" else weight
        if self.critic_target == "subinterval":
            target, spread_of_target = subinterval_target(self.process, hop.end, noise, hop.r, tau)
            weight = torch.minimum(weight, spread_of_target.clamp(min=FLOOR) ** -2)
        else:
            target = hop.x_hat
            weight = weight * importance(self.process, x_t, hop.x_hat, noise, tau)
        error = denoise(critic, self.process, x_t, tau, cond) - target.project(prediction=True)
        per_sample = weight.to(error.value) * error.mean_square()
        return LossOut(per_sample, {"loss": per_sample.detach()})

    def sample(
        self,
        model: Any,
        like: Field,
        cond: Cond,
        generator: Generator,
        *,
        steps: int | None = None,
        noise_scale: float = 1.0,
        eta: float = 0.0,
    ) -> Field:
        """`steps` hops (default: the most it was trained for); noise_scale: of the prior's noise, eta: see `hops`."""
        return self.sample_hops(model, like, cond, generator, steps, noise_scale, eta)
