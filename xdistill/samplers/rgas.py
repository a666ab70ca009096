"""RGAS: ancestral sampling steered by a discriminator, first by its gradient, then by a choice among candidates."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from xdistill.errors import UsageError
from xdistill.models import Cond
from xdistill.process.mask import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.draws import PLAIN, TokenDraw, categorical, row_uniforms, token_uniforms
from xdistill.samplers.mask_reveal import predict, put
from xdistill.samplers.mask_score import ancestral_weights
from xdistill.state import Tokens

VISIBLE = 1e9  # logit of a visible token in a soft input: its softmax is the token itself
NEVER = -1e6


class RawModel(Protocol):
    """A TokenModel that also gives its raw logits, mask column included: [N, V] at the positions `at`."""

    def __call__(
        self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None, raw: bool = False
    ) -> Tensor: ...


class TokenJudge(Protocol):
    """A discriminator with one logit a position [B, L], large for real; soft: [B, L, V] logits in place of the ids."""

    def __call__(self, z_t: Tokens, t: Tensor, cond: Cond, *, soft: Tensor | None = None) -> Tensor: ...


def rgas(
    student: RawModel,
    discriminator: TokenJudge,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    ratio: float = 0.5,
    h0: float = 30.0,
    h1: float = 40.0,
    candidates: int = 4,
    choice: float = 1.0,
    mask_column: bool = True,
    draw: TokenDraw = PLAIN,
) -> Tokens:
    """Reward-guided ancestral sampling of DiDi-Instruct (2509.25035; text spec 2.5), N = len(times) - 1 steps.

    The first N - int(N ratio) steps tilt the student's law by the gradient of the discriminator's logits; in the others
    `candidates` draws of the next state compete.

    Calls (`rgas_calls`): N student forwards; a discriminator forward and backward in each tilted step, `candidates`
    forwards in each other one. The published sampler makes N + 1 student calls: give it times that end in 1e-5 and 0.

    Args:
        times: [N + 1] decreasing to 0.
        h0, h1: strength of the tilt in its first and last step. choice: of the choice, softmax(choice x score).
        mask_column: leave out the student's logit of the mask, which training never touched; False as published, which
            reveals too few tokens by an arbitrary amount.
        draw: temperature and top_p of all draws.

    Raises UsageError for a ratio outside [0, 1] and for no candidates.
    """
    if not 0 <= ratio <= 1 or candidates < 1:
        raise UsageError(f"ratio={ratio}, candidates={candidates}: expected a ratio in [0, 1], and 1 candidate or more")
    steps = len(times) - 1
    tilted = steps - int(steps * ratio)
    for i, (t, r) in enumerate(itertools.pairwise(times.to(z.ids.device))):
        tb, rb, masked = t.expand(z.batch), r.expand(z.batch), process.masked(z)
        if not bool(masked.any()):
            break
        with torch.no_grad():
            logits = predict(partial(student, raw=True), z, tb, cond, masked)
        if mask_column:
            logits = logits.index_fill(1, torch.tensor([process.mask_id], device=logits.device), NEVER)
        if i < tilted:
            h = h0 + (h1 - h0) * i / max(1, tilted - 1)
            logits = logits + h * reward_gradient(discriminator, process, z, tb, cond, logits)[1]
        q = tilt_weights(process, logits, t, r, draw)
        options = [
            put(z, masked, categorical(q, u[masked]))
            for u in token_uniforms(z, generator, 1 if i < tilted else candidates)
        ]
        z = options[0] if i < tilted else rerank(discriminator, options, rb, cond, generator, choice)
    return z


def guided(
    model: Any,
    process: MaskProcess,
    times: Tensor,
    z: Tokens,
    cond: Cond,
    generator: Generator,
    *,
    draw: TokenDraw = PLAIN,
    ratio: float = 0.5,
    h0: float = 30.0,
    h1: float = 40.0,
    candidates: int = 4,
    choice: float = 1.0,
    mask_column: bool = True,
) -> Tokens:
    """`rgas` by the discriminator that stands beside the student: `model` is a RawModel with one (`student.Judged`).

    Raises UsageError for a student without one.
    """
    judge: TokenJudge | None = getattr(model, "discriminator", None)
    if judge is None:
        raise UsageError("method=rgas needs a discriminator beside the student: sample from a run of objective=didi")
    return rgas(
        model, judge, process, times, z, cond, generator, draw=draw, ratio=ratio, h0=h0, h1=h1, candidates=candidates,
        choice=choice, mask_column=mask_column,
    )  # fmt: skip


def reward_gradient(
    discriminator: TokenJudge, process: MaskProcess, z: Tokens, t: Tensor, cond: Cond, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """(sum of the discriminator's logits at masked positions [B], its gradient in their `logits` [N, V], within +-1).

    The discriminator sees masked positions as soft tokens of these logits (rows in the order of `nonzero`).
    """
    masked = process.masked(z)
    with torch.enable_grad():
        y = logits.detach().requires_grad_()
        soft = F.one_hot(z.ids, y.shape[1]).to(y) * VISIBLE
        reward = discriminator(z, t, cond, soft=soft.masked_scatter(masked[..., None], y))
        reward = (reward * masked).sum(1)
        (gradient,) = torch.autograd.grad(reward.sum(), y)
    return reward.detach(), gradient.clamp(-1, 1)


def tilt_weights(process: MaskProcess, logits: Tensor, t: Tensor, r: Tensor, draw: TokenDraw = PLAIN) -> Tensor:
    """[N, V] weights of masked tokens at r: (keep_r - keep_t) softmax(logits), the mask's replaced by 1 - keep_r."""
    p = draw.probabilities(logits.float().log_softmax(-1))
    return ancestral_weights(process, p[None], torch.empty(0), t, r)[0]


def rerank(
    discriminator: TokenJudge,
    options: list[Tokens],
    r: Tensor,
    cond: Cond,
    generator: Generator,
    choice: float = 1.0,
) -> Tokens:
    """One of M candidate states at r for each sample, drawn from `rerank_probabilities`."""
    with torch.no_grad():
        p = rerank_probabilities(discriminator, options, r, cond, choice)
    pick = categorical(p, row_uniforms(len(p), generator, p.device))
    ids = torch.stack([z.ids for z in options], 1)
    return options[0].with_ids(ids[torch.arange(len(pick), device=pick.device), pick])


def rerank_probabilities(
    discriminator: TokenJudge, options: list[Tokens], r: Tensor, cond: Cond, choice: float = 1.0
) -> Tensor:
    """[B, M] softmax(choice x sum over real positions of the discriminator's logits of candidate m)."""
    scores = [(discriminator(z, r, cond) * z.mask).sum(1) for z in options]
    return (choice * torch.stack(scores, 1)).softmax(1)


def rgas_calls(steps: int, ratio: float = 0.5, candidates: int = 4) -> dict[str, int]:
    """Network calls of `rgas` by kind; a candidate is a call of its own."""
    ranked = int(steps * ratio)
    tilted = steps - ranked
    return {
        "student": steps,
        "discriminator": tilted + ranked * candidates,
        "discriminator_backward": tilted,
    }
