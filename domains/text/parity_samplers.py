"""Replay of recorded sampler steps: the published fp32 arithmetic, the guided sampler of DiDi-Instruct included."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from xdistill import rng
from xdistill.domains.text.recording import Recording
from xdistill.models import NoCond
from xdistill.samplers.draws import race
from xdistill.samplers.mask import ancestral as sample
from xdistill.samplers.mask_score import analytic_weights, ancestral_weights, concrete_score
from xdistill.samplers.rgas import rerank_probabilities, reward_gradient, tilt_weights
from xdistill.state import Tokens
from xdistill.testing.results import CaseResult

ANALYTIC_T, ANALYTIC_DT = 0.7, 0.25  # of the README; no tensor holds them
START = "ancestral.x"  # the state that all single steps begin with


def drawn(r: Recording, weights: Tensor, uniform: Tensor) -> Tensor:
    """[B, L] ids after a step from the common start."""
    return torch.where(r.hidden(START)[..., 0], race(weights, uniform), r[START])


def predicted(r: Recording, t: Tensor) -> Tensor:
    """p(x0) [B, L, V] of the common start."""
    return r.student(r.tokens(START), t, NoCond()).exp()


@torch.no_grad()
def ancestral(r: Recording) -> Iterator[CaseResult]:
    """One update, and the last one that leaves no mask."""
    t, s, x = r["ancestral.t"].double(), r["ancestral.s"].double(), r[START]
    yield r.check("ancestral.alpha_t", r.process.keep(t))
    yield r.check("ancestral.alpha_s", r.process.keep(s))
    p = predicted(r, t)
    yield r.check("ancestral.p_x0", p)
    q = ancestral_weights(r.process, p, x, t, s)
    yield r.check("ancestral.q_unnormalised", q)
    copied = F.one_hot(x, q.shape[-1]).to(q)
    yield r.check("ancestral.posterior", torch.where(r.hidden(START), q / q.sum(-1, keepdim=True), copied))
    yield r.check("ancestral.x_s", drawn(r, q, r["ancestral.uniform"]))
    t = r["noise_removal.t"].double()
    last = ancestral_weights(r.process, predicted(r, t), x, t, torch.zeros_like(t))
    yield r.check("noise_removal.x", drawn(r, last, r["noise_removal.uniform"]))


@torch.no_grad()
def scores(r: Recording) -> Iterator[CaseResult]:
    """The concrete score, the Tweedie update and the analytic denoiser."""
    p, x = r.process, r[START]
    score = concrete_score(predicted(r, r.time("score.sigma")), x, r["score.sigma"], p.mask_id)
    yield r.check("score.value", score)
    t = torch.full((len(x),), ANALYTIC_T, dtype=torch.float64)
    weights = analytic_weights(p, predicted(r, t), x, t, t - ANALYTIC_DT)
    yield r.check("analytic.probs", weights)
    yield r.check("analytic.x", drawn(r, weights, r["analytic.uniform"]))
    t = r["denoise.t"].double()
    weights = analytic_weights(p, predicted(r, t), x, t, torch.zeros_like(t))
    yield r.check("denoise.probs", weights)
    yield r.check("denoise.x", drawn(r, weights, r["denoise.uniform"]))


@torch.no_grad()
def chain(r: Recording) -> Iterator[CaseResult]:
    """All states of a run, each of them by the sampler itself from the first one."""
    uniform, states = r["chain.uniform"], r["chain.x"]
    times = torch.cat([r["chain.timesteps"].double(), torch.zeros(1, dtype=torch.float64)])
    first = Tokens(states[0], torch.ones_like(states[0], dtype=torch.bool))
    found = [
        sample(
            r.student, r.process, times[: k + 1], first, NoCond(), rng.Recorded(uniform[:k]), precision="paper_fp32"
        ).ids
        for k in range(len(states))
    ]
    yield r.check("chain.x", torch.stack(found))


def tilt(r: Recording) -> Iterator[CaseResult]:
    """One step of the guided sampler that follows the discriminator's gradient."""
    z, t = r.tokens("rgas_tilt.x"), r["rgas_tilt.t"].double()
    at = r.process.masked(z)
    with torch.no_grad():
        logits = r.role("student_ema")(z, t, NoCond(), raw=True)
    yield r.check("rgas_tilt.student_logits", logits)
    reward, gradient = reward_gradient(r.discriminator(), r.process, z, t, NoCond(), logits[at])
    yield r.check("rgas_tilt.reward", reward.sum())
    full = torch.zeros_like(logits)
    full[at] = gradient
    yield r.check("rgas_tilt.grad", full)
    tilted = logits + r["rgas_tilt.h"] * full
    s = t - r["rgas_tilt.dt"].double()
    q = tilt_weights(r.process, tilted.flatten(0, 1), t[:1], s[:1]).view_as(logits)
    yield r.check("rgas_tilt.q_unnormalised", q)
    yield r.check("rgas_tilt.x_next", torch.where(at, race(q, r["rgas_tilt.uniform"]), z.ids))


def rerank(r: Recording) -> Iterator[CaseResult]:
    """One step that chooses among candidates."""
    z, t = r.tokens("rgas_tilt.x"), r["rgas_tilt.t"].double()
    s, at = t - r["rgas_tilt.dt"].double(), r.process.masked(z)
    q = tilt_weights(r.process, r["rgas_tilt.student_logits"].flatten(0, 1), t[:1], s[:1])
    q = q.view_as(r["rgas_rerank.q_unnormalised"])
    yield r.check("rgas_rerank.q_unnormalised", q)
    uniforms = r["rgas_rerank.uniform_tokens"].unbind(1)
    options = [z.with_ids(torch.where(at, race(q, u), z.ids)) for u in uniforms]
    yield r.check("rgas_rerank.num_candidates", torch.tensor(len(options)))
    p = rerank_probabilities(r.discriminator(), options, s, NoCond())
    yield r.check("rgas_rerank.probs", p)
    pick = race(p, r["rgas_rerank.uniform_choice"])
    ids = torch.stack([o.ids for o in options], 1)
    yield r.check("rgas_rerank.x_next", ids[torch.arange(len(pick)), pick])


GROUPS = (ancestral, scores, chain)
GUIDED = (tilt, rerank)
