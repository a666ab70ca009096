"""What SiD, DMD and TDM share: a teacher, a student, and a critic that learns the score of the student's samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xdistill.guidance import Guided, Scales
from xdistill.models import Batch, Cond, FlowModel
from xdistill.objectives.base import FewStep, LossOut
from xdistill.objectives.critic import WithCritic
from xdistill.objectives.flow_matching import flow_matching_loss
from xdistill.process import Kind
from xdistill.roles import RoleView
from xdistill.sources import student_rollout
from xdistill.state import Field
from xdistill.times import CleanBeta, TimeLaw, Uniform

CLEAN, EVEN = CleanBeta(low=0.02, high=0.98), Uniform(0.02, 0.98)


@dataclass(eq=False, kw_only=True)
class ScoreGap(WithCritic, FewStep):
    """A student moved by the difference of two scores: its critic's and its teacher's.

    critic_time, student_time: laws of the noise level in the two losses. How often the critic learns: see WithCritic.
    guidance: scales of the critic (the teacher comes guided); `build_objective` sets them from the run's `guidance`.
    """

    critic_time: TimeLaw = CLEAN
    student_time: TimeLaw = EVEN
    guidance: Scales = field(default=Scales(), init=False)

    def rollout(
        self, batch: Batch[Field], net: RoleView, generator: torch.Generator, *, grad: bool
    ) -> tuple[Field, int]:
        """The student's clean estimate at a random trained step of its own chain, and the steps of that chain."""
        steps, told = self.start(batch, net)
        times, first = self.anchors(steps), self.first(steps)
        return student_rollout(net, self.process, times, told, generator, grad=grad, first=first), steps

    def critic(self, model: Any, steps: int, *, training: bool = False) -> FlowModel:
        """The critic as its losses see it: guided, and told of the student's steps."""
        scale = self.guidance.critic_train if training else self.guidance.critic
        if scale != 1:
            model = Guided(model, scale)
        return model if len(self.counts) == 1 else _Told(model, self, steps)  # type: ignore[return-value]

    def critic_loss(
        self, x_hat: Field, t: Tensor, batch: Batch[Field], net: RoleView, generator: torch.Generator, steps: int
    ) -> LossOut:
        """Denoising score matching on the student's samples: the flow-matching loss of the guided critic."""
        critic = self.critic(net.train("critic"), steps, training=True)
        per_sample = flow_matching_loss(critic, self.process, x_hat, t, batch.cond, generator)
        return LossOut(per_sample, {"loss": per_sample.detach()})


@dataclass(frozen=True)
class _Told:
    """A network whose conditioning also says how many steps the student takes."""

    model: FlowModel
    objective: FewStep
    steps: int

    @property
    def kind(self) -> Kind:
        return self.model.kind

    def __call__(self, x_t: Field, t: Tensor, cond: Cond) -> Field:
        return self.model(x_t, t, self.objective.told(cond, self.steps))
