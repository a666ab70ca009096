"""Replay of what the reference implementations of masked diffusion recorded: network, SUBS, NELBO, times, EMA, metrics.

The text fixtures' README names every tensor; each is looked at, or the replay says so and fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from xdistill import rng
from xdistill.domains.text import parity_didi, parity_samplers
from xdistill.domains.text.denoiser import subs
from xdistill.domains.text.judges import counted, perplexity, target_log_probs
from xdistill.domains.text.metrics import token_entropy
from xdistill.domains.text.recording import Recording
from xdistill.ema import ema_update
from xdistill.models import NoCond
from xdistill.objectives.mdlm import mdlm_loss, stratified_times, token_nll
from xdistill.testing.results import CaseResult

EMA_DECAY = 0.9999
Group = Callable[[Recording], Iterator[CaseResult]]


def replay(directory: str | Path) -> list[CaseResult]:
    """Every recording of a folder, or of the folders in it; none gives an empty list."""
    directory = Path(directory)
    folders = [f for f in (directory, *sorted(directory.iterdir())) if (f / "mdlm_io.safetensors").is_file()]
    return [result for folder in folders for result in replay_folder(Recording(folder))]


def replay_folder(r: Recording) -> list[CaseResult]:
    """One result a recorded output, and one for what is left."""
    groups: list[Group] = [network, log_probs, nelbo, times, ema, metrics, *parity_samplers.GROUPS]
    if r.didi:
        groups += [*parity_samplers.GUIDED, *parity_didi.GROUPS]
    results = [result for group in groups for result in group(r)]
    return [*results, r.unchecked()]


@torch.no_grad()
def network(r: Recording) -> Iterator[CaseResult]:
    """Embedding, conditioning, every block's output, logits of hard and soft tokens."""
    net, x, sigma = r.student.net, r["backbone.x"], r["backbone.sigma"]
    c = net.condition(sigma)
    yield r.check("backbone.embed", net.vocab_embed(x))
    yield r.check("backbone.t_cond", c)
    for i in range(len(net.blocks)):
        yield r.check(f"backbone.block{i}", net.trunk(x, c, blocks=i + 1))
    yield r.check("backbone.logits", net(x, sigma))
    yield r.check("backbone.logits_sigma0", net(x, torch.zeros(1)))
    yield r.check("backbone.logits_soft", net(r["backbone.soft_input"], sigma))


@torch.no_grad()
def log_probs(r: Recording) -> Iterator[CaseResult]:
    """SUBS of recorded logits, and of a network that is told the time or not."""
    x = r.tokens("backbone.x")
    yield r.check_log("subs.log_probs", subs(r["backbone.logits"], x.ids, r.process.mask_id))
    yield r.check_log("module_forward.log_probs", r.student(x, r.time("backbone.sigma"), NoCond()))


@torch.no_grad()
def nelbo(r: Recording) -> Iterator[CaseResult]:
    """Schedule, corruption and the loss of a token, a batch, and a batch with uncounted tokens."""
    x0, t, p = r.tokens("nelbo.x0"), r["nelbo.t"].double(), r.process
    yield r.check("nelbo.alpha_t", p.keep(t))
    yield r.check("nelbo.sigma", p.sigma(t))
    yield r.check("nelbo.dalpha_t", -(p.weight(t) * (1 - p.keep(t))).mean())
    kept = 1 - r["nelbo.uniform"].double()  # the reference masks where u < 1 - alpha
    z_t = p.corrupt(x0, t, rng.Recorded([kept]))
    yield r.check("nelbo.xt", z_t.ids)
    nll = p.weight(t)[:, None] * token_nll(r.student, p, x0, z_t, t, NoCond())
    yield r.check("nelbo.nll_per_token", nll)
    recorded: rng.Generator = rng.Recorded([kept])
    per_sample = mdlm_loss(r.student, p, x0, t, NoCond(), recorded)  # type: ignore[arg-type]
    yield r.check("nelbo.mean_all", (per_sample / x0.elements).mean())
    valid = r["nelbo.valid"].double()
    yield r.check("nelbo.mean_valid", (nll * valid).sum() / valid.sum())


def times(r: Recording) -> Iterator[CaseResult]:
    """Stratified times of one rank."""
    uniform = r["sample_t.uniform"]
    yield r.check("sample_t.t", stratified_times(len(uniform), rng.Recorded([uniform])))  # type: ignore[arg-type]


class Weights(nn.Module):
    """A vector that is averaged."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())


def ema(r: Recording) -> Iterator[CaseResult]:
    """Averages with the warm-up min(decay, (1 + n) / (10 + n)), moved once a step, and twice as DiDi-Instruct did.

    Where an average starts is not recorded: it follows from its first value, so that the first row of `ema.shadow`
    checks nothing; that of the other does.
    """
    warm = [min(EMA_DECAY, (1 + n) / (10 + n)) for n in range(1, len(r["ema.params"]) + 1)]
    start = (r["ema.shadow"][0].double() - (1 - warm[0]) * r["ema.params"][0].double()) / warm[0]
    for name, again in (("ema", []), ("ema_didi_double", [EMA_DECAY])):
        average, shadow = Weights(start), []
        for weights, decay in zip(r[f"{name}.params"], warm, strict=True):
            for d in [decay, *again]:
                ema_update(average, {"value": weights}, d)
            shadow.append(average.value.detach().clone())
        yield r.check(f"{name}.shadow", torch.stack(shadow))


def metrics(r: Recording) -> Iterator[CaseResult]:
    """Entropy of samples, and a judge's perplexity of them."""
    yield r.check("metric.entropy_per_sample", torch.from_numpy(token_entropy(r["metric.entropy_tokens"])))
    ids = r["metric.judge_tokens"]
    valid = counted(ids, r.config["metric_eos_id"])
    yield r.check("metric.judge_valid", valid.float())
    nll = -target_log_probs(r["metric.judge_logits"], ids) * valid
    yield r.check("metric.judge_nll", nll)
    sums = torch.stack([nll.double().sum(1), valid.sum(1).double()], 1)
    yield r.check("metric.judge_ppl", torch.tensor(perplexity(sums.numpy())))
