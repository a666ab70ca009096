"""Score identity distillation (SiD): one- and multi-step, gradients through teacher and critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xdistill import sources
from xdistill.errors import UsageError
from xdistill.models import Batch, denoise
from xdistill.objectives.base import FewStep, LossOut, Needs, Phase, spread
from xdistill.objectives.flow_matching import flow_matching_loss
from xdistill.process import Coeffs, GaussianProcess
from xdistill.roles import RoleSpec, RoleView
from xdistill.state import Field
from xdistill.times import Anchors, CleanBeta, LinearAnchors, TimeLaw, Uniform

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


class SiD(FewStep):
    """Match the student's noised law to the teacher's through the score identity, data-free.

    steps, anchors, first_step: the student's network calls; training draws one of them from first_step on (2505.12674).
    alpha: 1/2 is half the exact Fisher gradient, 1 the published protein setting, 1.2 the image default.
    weight: `mean_abs`, `protein` or `fisher`. critic_time, student_time: laws of the noise level in the two
    losses. critic_updates, critic_warmup: critic updates a macro-step, and macro-steps before the student moves.
    loss_scale multiplies the student's loss (the protein release uses 100, felt through Adam's eps and clipping).
    Differences from 2404.04057: no adversarial term, critic and student see the same anchor mixture.
    Oracles: objectives spec 4 (SiD): E[gap . (D_q - x_hat)] = 0, alpha = 1/2 is half the Fisher gradient.
    """

    needs = Needs(data=False)

    def __init__(
        self,
        process: GaussianProcess,
        *,
        steps: int = 4,
        first_step: int = 0,
        anchors: Anchors | None = None,
        alpha: float = 1.0,
        weight: str = "mean_abs",
        critic_time: TimeLaw | None = None,
        student_time: TimeLaw | None = None,
        critic_updates: int = 1,
        critic_warmup: int = 0,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(process, anchors or LinearAnchors(), steps, first_step)
        if weight not in WEIGHTS:
            raise UsageError(f"unknown SiD weight '{weight}': choose one of {', '.join(WEIGHTS)}")
        self.alpha, self.weight, self.loss_scale = alpha, WEIGHTS[weight], loss_scale
        self.critic_time = critic_time or CleanBeta(low=0.02, high=0.98)
        self.student_time = student_time or Uniform(0.02, 0.98)
        self.critic_updates, self.critic_warmup = critic_updates, critic_warmup

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return RoleSpec("teacher", trainable=False), RoleSpec("student"), RoleSpec("critic")

    def phases(self, macro_step: int) -> Sequence[Phase]:
        critic = Phase("critic", "critic", self.critic_updates)
        return (critic,) if macro_step < self.critic_warmup else (critic, Phase("student", "student"))

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        training_student = phase.owner == "student"
        x_hat = self.rollout(batch, net, generator, grad=training_student)
        law = self.student_time if training_student else self.critic_time
        t = law.sample(x_hat.batch, generator).to(x_hat.value.device)
        if not training_student:
            per_sample = flow_matching_loss(net.train("critic"), self.process, x_hat, t, batch.cond, generator)
            return LossOut(per_sample, {"loss": per_sample.detach()})
        per_sample, gap = sid_loss(
            net.through("teacher"),
            net.through("critic"),
            self.process,
            x_hat,
            t,
            batch,
            generator,
            alpha=self.alpha,
            weight=self.weight,
        )
        return LossOut(
            self.loss_scale * per_sample,
            {"loss": per_sample.detach(), "gap": gap.detach().mean_abs(), "spread": spread(x_hat)},
        )
