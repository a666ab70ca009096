"""Distribution matching distillation (DMD, DMD2, f-distill) in pseudo-target form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xdistill import sources
from xdistill.errors import UsageError
from xdistill.models import Batch, Cond, denoise
from xdistill.objectives.base import LossOut, Needs, Phase, spread
from xdistill.objectives.score_gap import ScoreGap
from xdistill.process import GaussianProcess
from xdistill.roles import RoleSpec, RoleView
from xdistill.state import Field

FLOOR = 1e-5

#: h(r) of objectives spec 4.0 with r = p / q: what turns the reverse-KL gap into the gap of another divergence.
F_DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "hellinger": lambda r: 0.5 * r.sqrt(),
    "jeffreys": lambda r: 1 + r,
    "neyman": lambda r: 2 / r,
}


def pseudo_target_loss(out: Field, gap: Field, huber: float = 0.0) -> Tensor:
    """rho(out - sg[out - gap]), [B]; rho = <d^2> / 2 has the gradient gap . d(out)/d(theta) / dims.

    huber: constant c of rho = sqrt(<d^2> + c^2) - c (objectives spec 1), 0 is the former.
    """
    square = (out - (out - gap).detach()).mean_square()
    return (square + huber**2).sqrt() - huber if huber else 0.5 * square


def dmd_gap(
    teacher: object, critic: object, process: GaussianProcess, x_hat: Field, x_t: Field, t: Tensor, cond: Cond
) -> Field:
    """w (D_q - D_p)(x_t), w = 1 / <|x_hat - D_p|>: the reverse-KL direction in clean units (2311.18828 eq. 7-8)."""
    d_p = denoise(teacher, process, x_t, t, cond)  # type: ignore[arg-type]
    d_q = denoise(critic, process, x_t, t, cond)  # type: ignore[arg-type]
    return (d_q - d_p).scale(1 / (x_hat - d_p).mean_abs().clamp(min=FLOOR))


def f_weight(name: str, logit: Tensor, clip: tuple[float, float] = (0.1, 20.0)) -> Tensor:
    """h(exp(logit)) with the ratio clipped and the weight normalised to batch mean one (2502.15681), [B]."""
    h = F_DIVERGENCES[name](logit.exp().clamp(*clip))
    return h / h.mean().clamp(min=FLOOR)


@dataclass(eq=False, kw_only=True)
class DMD(ScoreGap):
    """Move the student along the gap between its own score and the teacher's.

    Options of every few-step objective: see FewStep and ScoreGap; DMD2 uses 5 critic updates (2405.14867).
    gan_weight: weight of the non-saturating adversarial term on noised samples, which
    needs real data and a `Featurizer`; r1: weight of the approximate R1 penalty |D(x) - D(x + r1_sigma n)|^2.
    divergence: an f-divergence weight h(r) from the discriminator (2502.15681; js is its default), else reverse_kl.
    Differences from the papers: the gap is normalised over valid entries; f-weights use the batch mean
    where f-distill keeps a running mean per noise level.
    Oracles: objectives spec 4.0 G and C, the h(r) table, and the non-saturating GAN as the field h = 1/(1+r).
    """

    critic_updates: int = 5
    gan_weight: float = 0.0
    r1: float = 0.0
    r1_sigma: float = 0.05
    divergence: str = "reverse_kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence not in F_DIVERGENCES:
            raise UsageError(f"unknown divergence '{self.divergence}': choose one of {', '.join(F_DIVERGENCES)}")
        self.adversarial = self.gan_weight > 0 or self.divergence != "reverse_kl"
        self.needs = Needs(data=self.adversarial, features=self.adversarial)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (*super().roles, RoleSpec("discriminator")) if self.adversarial else super().roles

    def phases(self, macro_step: int) -> Sequence[Phase]:
        critic, *student = super().phases(macro_step)
        discriminator = [Phase("discriminator", "discriminator", self.critic_updates)] if self.adversarial else []
        return [critic, *discriminator, *student]

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        x_hat, steps = self.rollout(batch, net, generator, grad=phase.owner == "student")
        law = self.critic_time if phase.owner == "critic" else self.student_time
        t = law.sample(x_hat.batch, generator).to(x_hat.value.device)
        match phase.owner:
            case "critic":
                return self.critic_loss(x_hat, t, batch, net, generator, steps)
            case "discriminator":
                return self._discriminator(x_hat, t, batch, net, generator)
            case _:
                return self._student(x_hat, t, batch, net, generator, steps)

    def _student(
        self, x_hat: Field, t: Tensor, batch: Batch[Field], net: RoleView, generator: torch.Generator, steps: int
    ) -> LossOut:
        x_t, _ = sources.noised(self.process, x_hat, t, generator)
        gap = dmd_gap(
            net.frozen("teacher"),
            self.critic(net.frozen("critic"), steps),
            self.process,
            x_hat.detach(),
            x_t.detach(),
            t,
            batch.cond,
        )
        metrics = {"gap": gap.mean_abs(), "spread": spread(x_hat)}
        if self.adversarial:
            logit = net.through("discriminator")(x_t, t, batch.cond)
            metrics["logit"] = logit.detach()
            gap = gap.scale(f_weight(self.divergence, logit.detach()))
        per_sample = pseudo_target_loss(x_hat, gap)
        if self.gan_weight:
            per_sample = per_sample + self.gan_weight * F.softplus(-logit)
        return LossOut(per_sample, metrics | {"loss": per_sample.detach()})

    def _discriminator(
        self, fake: Field, t: Tensor, batch: Batch[Field], net: RoleView, generator: torch.Generator
    ) -> LossOut:
        net_d, real = net.train("discriminator"), sources.data(batch)
        states = [sources.noised(self.process, x, t, generator)[0] for x in (real, fake)]
        if self.r1:
            states.append(states[0] + states[0].randn(generator) * self.r1_sigma)
        logits = [net_d(x, t, batch.cond) for x in states]
        per_sample = F.softplus(-logits[0]) + F.softplus(logits[1])
        if self.r1:
            per_sample = per_sample + self.r1 * (logits[0] - logits[2]) ** 2
        return LossOut(per_sample, {"loss": per_sample.detach(), "real": logits[0].detach()})
