"""What SDTT and DCD share: divergences of categorical laws, and rounds after which the student is its own teacher."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import TokenModel
from xdistill.objectives.base import Phase
from xdistill.objectives.categorical import NEVER, kl
from xdistill.objectives.mdlm import stratified
from xdistill.objectives.tokens import FewStepTokens
from xdistill.registry import nearest
from xdistill.roles import RoleSpec, RoleView
from xdistill.state import Tokens

#: Log-probabilities below are those of impossible tokens (the mask): networks may say -inf or a large number.
UNLIKELY = -1e5


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student): of several targets the optimum is their mean; of `kl`, the reverse, their geometric mean,
    which is sharper.
    """
    return kl(teacher, student)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference of log-probabilities over possible tokens."""
    possible = teacher > UNLIKELY
    return (torch.where(possible, student - teacher, 0) ** 2).sum(1) / possible.sum(1)


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the L1 distance of the probabilities."""
    return 0.5 * (student.exp() - teacher.exp()).abs().sum(1)


#: [N, V] log-probabilities of student and teacher -> [N].
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse": kl,
    "forward": forward_kl,
    "mse": squared_error,
    "tv": total_variation,
}
TIMES = ("anchors", "continuous")
REFRESH = ("student_ema", "student")


@dataclass(frozen=True)
class Round(Phase):
    """A student's update in round `index`."""

    index: int = 0


@dataclass(eq=False, kw_only=True)
class Rounds(FewStepTokens):
    """A student that learns to predict in one call what a teacher says after a step h towards clean data.

    divergence: reverse (KL(student || teacher)), forward, mse (of log-probabilities) or tv. rounds: the first learns
    from the teacher, each next one from the student as it then is, a frozen `target`, with a step `growth` times
    longer; in the last one h = 1 / steps. round_steps: macro-steps of a round; the last one lasts as long as the run.
    refresh: whose weights the target takes, student_ema or student. times: of the student's inputs, its own anchors
    or continuous over [h, 1].
    """

    divergence: str = "reverse"
    rounds: int = 1
    round_steps: int = 1000
    refresh: str = "student_ema"
    times: str = "anchors"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, known in (("divergence", tuple(DIVERGENCES)), ("refresh", REFRESH), ("times", TIMES)):
            if (value := getattr(self, key)) not in known:
                raise UsageError(f"unknown {key} '{value}'{nearest(value, known)}")
        for key in ("rounds", "round_steps"):
            self.at_least_one(key)

    def at_least_one(self, key: str) -> None:
        """Raises UsageError unless the option is a positive integer."""
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{key}={value}: expected an integer, at least 1")

    @property
    @abstractmethod
    def growth(self) -> int:
        """How much longer the student's step is than its teacher's."""

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        frozen = ("teacher", *self.promoted)
        return *(RoleSpec(role, trainable=False) for role in frozen), RoleSpec("student")

    @property
    def promoted(self) -> Sequence[str]:  # type: ignore[override]
        return ("target",) if self.rounds > 1 else ()

    def promotions(self, macro_step: int) -> Mapping[str, str]:
        index, rest = divmod(macro_step, self.round_steps)
        return {"target": self.refresh} if not rest and 0 < index < self.rounds else {}

    def phases(self, macro_step: int) -> Sequence[Phase]:
        return (Round("student", "student", index=min(macro_step // self.round_steps, self.rounds - 1)),)

    def calls(self, phase: Phase) -> int:
        """1 / h: the student's network calls from noise to data, were this round the last."""
        assert isinstance(phase, Round)
        return self.steps * self.growth ** (self.rounds - 1 - phase.index)

    def frozen(self, phase: Phase, net: RoleView) -> TokenModel:
        """The network whose predictions this round learns."""
        assert isinstance(phase, Round)
        return net.frozen("target" if phase.index else "teacher")

    def draw_times(self, like: Tokens, calls: int, shared: torch.Generator) -> Tensor:
        """[B] float64, stratified over the ranks' samples."""
        u = stratified(like.batch, shared).to(like.ids.device)
        return 1 - (u * calls).floor() / calls if self.times == "anchors" else 1 - (1 - 1 / calls) * u

    def gap(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two [N, V] log-probabilities, [N]; -inf counts as very unlikely, so that 0 log 0 is 0."""
        return DIVERGENCES[self.divergence](student.clamp(min=NEVER), teacher.clamp(min=NEVER))

    def masked_tokens(self, x0: Tokens, calls: int) -> Tensor:
        """Tokens of a sample that are masked on average over times: divides sums over tokens, so that micro-batches
        and ranks add up to the mean over all masked tokens. Both laws of `times` have the mean (1 + h) / 2.
        """
        masked = 1 - self.process.keep(torch.tensor((1 + 1 / calls) / 2))
        return x0.free.sum(1).float().mean().clamp(min=1) * float(masked)
