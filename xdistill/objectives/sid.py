"""Score identity distillation (SiD): one- and multi-step, gradients through teacher and critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill import sources
from xdistill.errors import UsageError
from xdistill.models import Batch, denoise
from xdistill.objectives.base import LossOut, Phase, spread
from xdistill.objectives.score_gap import ScoreGap
from xdistill.process import Coeffs, GaussianProcess
from xdistill.roles import RoleView
from xdistill.state import Field

WeightLaw = Callable[[Field, Field, Coeffs], Tensor]
FLOOR = 1e-5


def mean_abs_weight(x_hat: Field, d_p: Field, c: Coeffs) -> Tensor:
    """1 / <|x_hat - D_p|>: the normaliser of 2404.04057 over valid entries, so that length does not matter."""
    return 1 / (x_hat - d_p).mean_abs().clamp(min=FLOOR)


def protein_weight(x_hat: Field, d_p: Field, c: Coeffs) -> Tensor:
    """The SiD-for-Proteina normaliser: `mean_abs` over the number of residues (protein spec 2.3)."""
    return mean_abs_weight(x_hat, d_p, c) / x_hat.elements


def fisher_weight(x_hat: Field, d_p: Field, c: Coeffs) -> Tensor:
    """(alpha / sigma^2)^2: makes the loss the Fisher divergence between the noised laws itself."""
    return (c.alpha / c.sigma**2) ** 2


WEIGHTS: dict[str, WeightLaw] = {
    "mean_abs": mean_abs_weight,
    "protein": protein_weight,
    "fisher": fisher_weight,
}


def sid_loss(
    teacher: object,
    critic: object,
    process: GaussianProcess,
    x_hat: Field,
    t: Tensor,
    batch: Batch[Field],
    generator: torch.Generator,
    *,
    alpha: float,
    weight: WeightLaw,
) -> tuple[Tensor, Field]:
    """w <(D_p - D_q) . [(D_p - x_hat) - alpha (D_p - D_q)]> at x_t ~ p(. | x_hat); ([B], D_p - D_q).

    D_p is the teacher's and D_q the critic's clean estimate; gradients flow through x_hat and through x_t
    into both (2404.04057 eq. 23; flow form 2509.25127). w carries no gradient.
    """
    x_t, _ = sources.noised(process, x_hat, t, generator)
    d_p = denoise(teacher, process, x_t, t, batch.cond)  # type: ignore[arg-type]
    d_q = denoise(critic, process, x_t, t, batch.cond)  # type: ignore[arg-type]
    x_hat, gap = x_hat.project(prediction=True), d_p - d_q
    with torch.no_grad():
        w = weight(x_hat, d_p, process.coeffs(t))
    return w.to(gap.value) * gap.mean_dot((d_p - x_hat) - gap * alpha), gap


@dataclass(eq=False, kw_only=True)
class SiD(ScoreGap):
    """Match the student's noised law to the teacher's through the score identity, data-free.

    Options of every few-step objective: see FewStep and ScoreGap (2505.12674 is the multi-step form).
    alpha: 1/2 is half the exact Fisher gradient, 1 the published protein setting, 1.2 the image default.
    weight: `mean_abs`, `protein` or `fisher`. loss_scale multiplies the student's loss (the protein release uses 100,
    felt through Adam's eps and clipping). Guidance: `lsg` is 2406.01561, `zero_cfg` and `anti_cfg` 2505.12674.
    Differences from 2404.04057: no adversarial term, critic and student see the same anchor mixture.
    Oracles: objectives spec 4 (SiD): E[gap . (D_q - x_hat)] = 0, alpha = 1/2 is half the Fisher gradient.
    """

    alpha: float = 1.0
    weight: str = "mean_abs"
    loss_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight not in WEIGHTS:
            raise UsageError(f"unknown SiD weight '{self.weight}': choose one of {', '.join(WEIGHTS)}")

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        training_student = phase.owner == "student"
        x_hat, steps = self.rollout(batch, net, generator, grad=training_student)
        law = self.student_time if training_student else self.critic_time
        t = law.sample(x_hat.batch, generator).to(x_hat.value.device)
        if not training_student:
            return self.critic_loss(x_hat, t, batch, net, generator, steps)
        per_sample, gap = sid_loss(
            net.through("teacher"),
            self.critic(net.through("critic"), steps),
            self.process,
            x_hat,
            t,
            batch,
            generator,
            alpha=self.alpha,
            weight=WEIGHTS[self.weight],
        )
        return LossOut(
            self.loss_scale * per_sample,
            {"loss": per_sample.detach(), "gap": gap.detach().mean_abs(), "spread": spread(x_hat)},
        )
