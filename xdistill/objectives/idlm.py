"""Inverse distillation of masked diffusion: the student for whose samples the teacher is the best denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.models import Batch, TokenModel
from xdistill.objectives.base import LossOut, Phase
from xdistill.objectives.critic import WithCritic
from xdistill.objectives.jumps import Anchored, Jump, Start, data_start, jump, rollout_start
from xdistill.objectives.mdlm import LEAST, clean
from xdistill.objectives.tokens import token_sums
from xdistill.registry import nearest
from xdistill.roles import RoleView
from xdistill.samplers.mask import grid
from xdistill.state import Tokens
from xdistill.times import TimeLaw, Uniform

WHOLE = Uniform(0.0, 1.0)
MATCHES = ("hop", "rest", "all")


@dataclass(eq=False, kw_only=True)
class IDLM(WithCritic, Anchored):
    """Move the student until the teacher denoises its samples as well as a denoiser trained on them.

    min over G of Loss(teacher; G) - min_f Loss(f; G), Loss the MDLM loss on the student's samples: the sum over masked
    positions of w(t) KL(f*(. | z_t) || teacher(. | z_t)), f* the exact denoiser of the student's law, which the critic
    learns. By the envelope theorem f* needs no derivative. The loss of a sample is w(t) sum_l <G_l, log f - log p> over
    the hidden tokens l that it generated, p the teacher, divided by the tokens of a sequence; f and p see z_t.
    The critic's targets are the student's probabilities instead of draws from them: the same mean, less noise.

    A start z_s is data noised to an anchor of the student's grid, or (in a share `rollout` of the draws) what its own
    sampler has made after as many calls. Then z_t, at t = r + (s - r) u with u from the laws student_time and
    critic_time, keep these uniform and equal for a critic that is not told t, hides again
    - match=hop: what the student's chain reveals later than t in [r, s], r the next anchor. Integrated over t this is,
      by the chain rule, the divergence of the tokens that one call reveals together from the teacher's law of them:
      the chain is right exactly when all its hops are, and no call answers for tokens that its chain would draw later;
    - match=rest: likewise with r = 0, so that a call answers for all it predicts. One call to the end is a product law,
      whose best fit to text repeats itself: for students of one call, where it is the same as hop;
    - match=all: any token, those of the start too, t in [0, 1]: the law of the finished sequences (the paper's).
    Only the labels' part of the gradient is taken, as in the paper. score: weight of the other part, how the tokens
    that z_t shows were drawn, by REINFORCE against the mean of the batch; 1 is the whole gradient. forward: share of
    the forward KL's field f - teacher (Di[M]O 2503.15457, a generalised Jeffrey divergence), which covers more modes.
    weight_floor: w(t) = 1 / t grows no more below this t, against the variance of the last hop's few hidden tokens.
    ratio_clip: bound of |log f - log teacher|, 0 is none. kl, entropy: see Anchored.
    Differences from the paper (text spec 3, known from summaries): hops, soft targets, the options of the last lines.
    Oracle: by enumeration, f* minimises the critic's loss, the loss is KL(student's law || table), its gradient is zero
    when these laws are equal, and a step against it lowers Loss(teacher; G) - min_f Loss(f; G).
    """

    critic_updates: int = 2
    critic_time: TimeLaw = WHOLE
    student_time: TimeLaw = WHOLE
    match: str = "hop"
    rollout: float = 0.0
    score: float = 0.0
    forward: float = 0.0
    weight_floor: float = 0.0
    ratio_clip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.match not in MATCHES:
            raise UsageError(f"unknown match '{self.match}' of idlm{nearest(self.match, MATCHES)}")
        if self.match != "hop" and self.process.order != "independent":
            raise UsageError(
                f"match={self.match} with order={self.process.order}: a planned order knows match=hop only"
            )
        for key in ("rollout", "forward"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"{key}={getattr(self, key)}: expected a share from 0 to 1")

    def loss(self, phase: Phase, batch: Batch[Tokens], net: RoleView, generator: torch.Generator) -> LossOut:
        start = self.start(batch, net, generator)
        own, training = self.process.masked(start.z), phase.owner == "student"
        student = net.train("student") if training else net.frozen("student")
        log_g = student(start.z, start.s, batch.cond, at=own)
        t = self.times(start, self.student_time if training else self.critic_time, generator)
        made = jump(self.process, start, log_g, t, generator, all_tokens=self.match == "all")
        if not training:
            per_sample = self.critic_loss(made, net.train("critic"), batch)
            return LossOut(per_sample, {"loss": per_sample.detach()})
        return self.student_loss(made, net.frozen("critic"), net.frozen("teacher"), batch)

    def start(self, batch: Batch[Tokens], net: RoleView, generator: torch.Generator) -> Start:
        """Noised data, or the student's rollout to one anchor, the same on every rank."""
        if self.rollout and float(rng.rand(1, net.shared)) < self.rollout:
            k, student = rng.randint(0, self.steps, net.shared), net.frozen("student")
            return rollout_start(student, self.process, batch.like, batch.cond, grid(self.steps), k, generator)
        return data_start(self.process, clean(batch), grid(self.steps), generator)

    def times(self, start: Start, law: TimeLaw, generator: torch.Generator) -> Tensor:
        """t [B] of z_t: the law's place between the two ends that `match` says."""
        u = law.sample(start.z.batch, generator).to(start.s)
        low, high = (torch.zeros_like(u), torch.ones_like(u)) if self.match == "all" else (start.r, start.s)
        low = torch.zeros_like(u) if self.match == "rest" else low
        return (low + (high - low) * u).clamp(min=LEAST)

    def critic_loss(self, made: Jump, critic: TokenModel, batch: Batch[Tokens]) -> Tensor:
        """The MDLM loss of the critic on the student's samples, [B], with their law G in place of its draws."""
        at = self.answered(made)
        log_f = critic(made.z_t, made.t, batch.cond, at=at)
        return self._weighted(made, token_sums(self._expected(made, at, -log_f), at))

    def student_loss(self, made: Jump, critic: TokenModel, teacher: TokenModel, batch: Batch[Tokens]) -> LossOut:
        """w(t) sum <G, log f - log teacher> over the hidden tokens, and what the options add, [B]."""
        at, own = self.answered(made), self.process.masked(made.start.z)
        log_f, log_p = (model(made.z_t, made.t, batch.cond, at=at) for model in (critic, teacher))
        ratio = log_f - log_p
        if self.ratio_clip:
            ratio = ratio.clamp(-self.ratio_clip, self.ratio_clip)
        per_sample = gap = self._weighted(made, token_sums(self._expected(made, at, ratio), at))
        if self.forward:
            mine = own[at]
            pull = (made.log_g[at[own]] * (log_f.exp() - log_p.exp())[mine]).sum(1)
            per_sample = (1 - self.forward) * gap + self.forward * self._weighted(made, token_sums(pull, at & own))
        if self.score:
            per_sample = per_sample + self.score * self.credit(made, gap.detach())
        anchor, metrics = self.anchor(made.start, made.log_g, teacher, batch.cond)
        per_sample = per_sample + anchor
        metrics |= {"gap": gap.detach(), "loss": per_sample.detach()}
        return LossOut(per_sample, metrics)

    def credit(self, made: Jump, reward: Tensor) -> Tensor:
        """[B], whose gradient is (reward - mean of the others) grad log G(the tokens that z_t shows)."""
        own = self.process.masked(made.start.z)
        shown = own & ~self.process.masked(made.z_t)
        log_p = made.log_g[shown[own]].gather(1, made.z_t.ids[shown][:, None]).squeeze(1)
        others = (reward.sum() - reward) / max(len(reward) - 1, 1)
        return (reward - others) * token_sums(log_p, shown)

    def _expected(self, made: Jump, at: Tensor, values: Tensor) -> Tensor:
        """Means [N] of values [N, V] at hidden positions over their tokens: drawn from G, or known from the start."""
        own = self.process.masked(made.start.z)
        mine, out = own[at], torch.zeros_like(values[:, 0])
        out[mine] = (made.log_g[at[own]].exp() * values[mine]).sum(1)
        out[~mine] = values[~mine].gather(1, made.start.z.ids[at & ~own][:, None]).squeeze(1)
        return out

    def answered(self, made: Jump) -> Tensor:
        """[B, L] the hidden tokens that count: all, or those of a planned hop, in which no other takes part."""
        hidden = self.process.masked(made.z_t)
        return hidden if made.start.hop is None else hidden & made.start.hop

    def _weighted(self, made: Jump, sums: Tensor) -> Tensor:
        """w(t) times sums over a sample's tokens, per free token of a sequence, [B].

        Of a planned hop w is 1 / (the share of it that is hidden), per token that a call reveals: by the chain rule its
        mean over that share is the divergence of the hop.
        """
        tokens, start = made.z_t.free.sum(1).to(sums).mean().clamp(min=1), made.start
        if start.hop is None:
            return self.process.weight(made.t.clamp(min=self.weight_floor)).to(sums) * sums / tokens
        share = ((made.t - start.r) / (start.s - start.r)).clamp(min=max(self.weight_floor, LEAST)).to(sums)
        return sums / share * self.steps / tokens
