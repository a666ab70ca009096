"""What every method with a critic shares: its roles, how often it learns, and when it starts again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdistill.objectives.base import Objective, Phase
from xdistill.roles import RoleSpec


@dataclass(eq=False, kw_only=True)
class WithCritic(Objective):
    """A frozen teacher, a student, and a critic that follows the student's samples.

    critic_updates, critic_warmup: critic updates a macro-step, and macro-steps before the student moves.
    critic_reset: macro-steps after which the critic starts again from its initial weights with a fresh optimizer
    (protein spec 2.5), 0 is never.
    """

    critic_updates: int = 1
    critic_warmup: int = 0
    critic_reset: int = 0

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return RoleSpec("teacher", trainable=False), RoleSpec("student"), RoleSpec("critic")

    def phases(self, macro_step: int) -> Sequence[Phase]:
        critic = Phase("critic", "critic", self.critic_updates)
        return (critic,) if macro_step < self.critic_warmup else (critic, Phase("student", "student"))

    @property
    def resettable(self) -> Sequence[str]:  # type: ignore[override]
        return ("critic",) if self.critic_reset else ()

    def resets(self, macro_step: int) -> Sequence[str]:
        due = self.critic_reset and macro_step and macro_step % self.critic_reset == 0
        return ("critic",) if due else ()
