"""DCD: the student's prediction from a masked sequence agrees with a teacher's from a less masked one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xdistill.errors import UsageError
from xdistill.models import Batch
from xdistill.objectives.base import LossOut, Phase
from xdistill.objectives.mdlm import clean
from xdistill.objectives.rounds import Rounds
from xdistill.objectives.tokens import token_sums
from xdistill.roles import RoleView
from xdistill.state import Tokens


@dataclass(eq=False, kw_only=True)
class DCD(Rounds):
    """Discrete consistency distillation (2506.10892) of a masked path: no teacher rollout, one teacher call.

    One uniform a token decides both masks, so z_s, s = t - h, reveals a superset of what z_t does. Tokens masked in
    both: the divergence of the student at (z_t, t) from the teacher at (z_s, s). Tokens that z_s reveals: there the
    teacher's law is certain of the token, the boundary condition of consistency, and the backward KL to it infinite;
    they take the forward KL instead, which is the cross-entropy.

    data_weight: of that cross-entropy; with 0 nothing is learnt at t = h, where s = 0 reveals all.

    Oracle: with forward KL and data_weight 1, an exact posterior is its own optimum for every h (tower property);
    with backward KL tokens still masked are drawn to the geometric mean of the posteriors, which is sharper.
    """

    data_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data_weight >= 0:
            raise UsageError(f"data_weight={self.data_weight}: expected a number, at least 0")

    @property
    def growth(self) -> int:
        return 2

    def loss(self, phase: Phase, batch: Batch[Tokens], net: RoleView, generator: torch.Generator) -> LossOut:
        x0, calls = clean(batch), self.calls(phase)
        t = self.draw_times(x0, calls, net.shared)
        s, places = (t - 1 / calls).clamp(min=0), self.process.places(x0, generator)
        z_t, z_s = (self.process.show(x0, places, r) for r in (t, s))
        at, still = self.process.masked(z_t), self.process.masked(z_s)
        teacher = self.frozen(phase, net)(z_s, s, batch.cond, at=still)
        log_p = net.train("student")(z_t, t, batch.cond, at=at)
        kept, shown = still[at], at & ~still
        consistency = token_sums(self.gap(log_p[kept], teacher), still)
        nll = -token_sums(log_p[~kept].gather(1, x0.ids[shown][:, None]).squeeze(1), shown)
        total = consistency + self.data_weight * nll
        per_sample = total / self.masked_tokens(x0, calls)
        loss, of_kept, of_shown = per_sample.detach(), consistency.detach().sum(), nll.detach().sum()
        means = {"consistency": of_kept / still.sum().clamp(min=1), "nll": of_shown / shown.sum().clamp(min=1)}
        return LossOut(per_sample, {"loss": loss, **means})
