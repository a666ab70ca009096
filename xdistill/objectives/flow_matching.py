"""Flow matching: trains teachers on data, and is the loss of every critic on the student's samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xdistill import rng, sources
from xdistill.models import Batch, Cond, denoise
from xdistill.objectives.base import LossOut, Needs, Objective, Phase
from xdistill.process import GaussianProcess
from xdistill.rng import Generator
from xdistill.roles import RoleSpec, RoleView
from xdistill.samplers import Plan, ode
from xdistill.state import Field
from xdistill.times import CleanBeta, TimeLaw

FLOOR = 1e-5


def flow_matching_loss(
    model: object, process: GaussianProcess, x0: Field, t: Tensor, cond: Cond, generator: torch.Generator
) -> Tensor:
    """w(t) <|D(x_t) - x0|^2>, w = W^2 / (sigma^2 + 1e-5): the velocity error, per sample [B].

    D is the clean estimate, W the Wronskian of the path (objectives spec 0.2); the floor keeps t -> 0 finite
    and is the one Proteina trains with (protein spec 1.3; 2210.02747 eq. 14 without it).
    """
    x_t, _ = sources.noised(process, x0, t, generator)
    c = process.coeffs(t)
    weight = c.wronskian**2 / (c.sigma**2 + FLOOR)
    error = denoise(model, process, x_t, t, cond) - x0.project(prediction=True)  # type: ignore[arg-type]
    return weight.to(x0.value) * error.mean_square()


class FlowMatching(Objective):
    """Regress the velocity of a Gaussian path on data (2210.02747).

    time_law: distribution of t; Proteina's by default. self_conditioning: the probability that a sample sees
    its own first clean estimate (a `Cond` with `with_estimate`); Proteina uses 0.5. label_dropout: the
    probability of dropping the conditioning of a whole micro-batch, which classifier-free guidance needs.
    Oracle: on Gaussian data the optimum is the posterior mean, checked in closed form.
    """

    needs = Needs(data=True)
    sample_keys = ("steps",)

    def __init__(
        self,
        process: GaussianProcess,
        time_law: TimeLaw | None = None,
        *,
        self_conditioning: float = 0.0,
        label_dropout: float = 0.0,
        sample_steps: int = 100,
    ) -> None:
        self.process, self.time_law = process, time_law or CleanBeta(low=0.0, high=1.0)
        self.self_conditioning, self.label_dropout = self_conditioning, label_dropout
        self.sample_steps = sample_steps

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("student"),)

    def phases(self, macro_step: int) -> Sequence[Phase]:
        return (Phase("flow", "student"),)

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        x0, cond, t = sources.data(batch), batch.cond, self.time_law.sample(batch.like.batch, generator)
        t = t.to(x0.value.device)
        # Drawn from the shared generator: a second forward on one rank alone would leave the others waiting.
        if self.label_dropout and float(rng.rand(1, net.shared)) < self.label_dropout:
            cond = cond.drop()
        if self.self_conditioning and float(rng.rand(1, net.shared)) < self.self_conditioning:
            cond = self._estimate(net, x0, t, cond, generator)
        per_sample = flow_matching_loss(net.train("student"), self.process, x0, t, cond, generator)
        return LossOut(per_sample, {"loss": per_sample.detach()})

    def _estimate(self, net: RoleView, x0: Field, t: Tensor, cond: Cond, generator: torch.Generator) -> Cond:
        before = generator.get_state()
        x_t, _ = sources.noised(self.process, x0, t, generator)
        generator.set_state(before)  # the training call must see this very x_t
        return cond.with_estimate(denoise(net.frozen("student"), self.process, x_t, t, cond))  # type: ignore[attr-defined]

    def sample(
        self, model: object, like: Field, cond: Cond, generator: Generator, *, steps: int | None = None
    ) -> Field:
        """Euler along the ODE in `steps` calls."""
        plan = Plan.uniform(steps or self.sample_steps)
        return ode(model, self.process, plan, self.process.prior(like, generator), cond)  # type: ignore[arg-type]
