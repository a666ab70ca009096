"""Replay of the recorded training step of DiDi-Instruct: discriminator, spectral norm, all terms, both gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from xdistill import rng
from xdistill.domains.text.recording import HEAD, Recording
from xdistill.models import Batch, NoCond
from xdistill.objectives import didi_losses as terms
from xdistill.objectives.didi import DiDi
from xdistill.objectives.didi_rollout import Jumps
from xdistill.roles import RoleView
from xdistill.state import Tokens
from xdistill.testing.results import CaseResult

OMEGA_RTOL = 2e-3  # recorded by finite differences


@torch.no_grad()
def discriminator(r: Recording) -> Iterator[CaseResult]:
    """Logits of hard and soft tokens, in evaluation mode."""
    net, z, t = r.discriminator(), r.tokens("disc.x"), r.time("disc.sigma")
    yield r.check("disc.logits", net(z, t, NoCond()))
    yield r.check("disc.logits_soft", net(z, t, NoCond(), soft=r["backbone.soft_input"]))


@torch.no_grad()
def spectral(r: Recording) -> Iterator[CaseResult]:
    """One forward in training mode, which makes one power iteration."""
    before = f"spectral.before.{HEAD}"
    net = r.discriminator({HEAD + k: r[before + k] for k in r.keys(before)}).train()
    yield r.check("spectral.train_logits", net(r.tokens("spectral.x"), r.time("spectral.sigma"), NoCond()))
    for key, value in net.output_layer.state_dict().items():
        yield r.check(f"spectral.after.{HEAD}{key}", value)


def published(r: Recording) -> DiDi:
    """The objective with the recorded hyper-parameters."""
    d = r.config["didi"]
    return DiDi.paper(
        r.process,
        group=d["G"],
        end=d["t0"],
        label_smoothing=d["label_smoothing"],
        advantage_clip=d["advantage_clip"],
        odds_clip=d["reward_clip"],
        omega_min=d["omega_min"],
        omega_max=d["omega_max"],
        kl_first=d["kl_beta"] * d["kl_hi"],
        kl_second=d["kl_beta"] * d["kl_lo"],
        entropy=d["entropy_beta"],
    )


def jumps(r: Recording, model: nn.Module) -> Jumps:
    """Both jumps of the recorded rollout."""
    objective, real = published(r), r.tokens("train.x0_real")
    batch = Batch(Tokens(real.ids[:: objective.group], real.mask[:: objective.group]), NoCond())
    draws = rng.Recorded([r["train.uniform_step1"], r["train.uniform_step2"]])
    return objective.jumps(model, batch, r["train.tau"].double(), draws)  # type: ignore[arg-type]


@torch.no_grad()
def rollout(r: Recording) -> Iterator[CaseResult]:
    """Times, tokens after both jumps with their log-probabilities, and the corruption of both kinds of sequences."""
    p, tau = r.process, r["train.tau"].double()
    objective = published(r)
    yield r.check("train.alpha_tau", p.keep(tau))
    yield r.check("train.sigma_tau", p.sigma(tau))
    yield r.check("train.omega", objective.omega(tau), rtol=OMEGA_RTOL)
    yield r.check("train.omega_unclipped", p.weight(tau), rtol=OMEGA_RTOL)
    first, last = jumps(r, r.student)
    yield r.check("train.x_tau", first.after.ids)
    yield r.check("train.x0_fake", last.after.ids)
    for name, j in (("train.logp_step1", first), ("train.logp_step2", last)):
        changed = j.log_prob().sum(1)
        yield r.check(f"{name}_changed_only", changed)
        yield r.check(name, changed + terms.kept_constant(p.masked(j.after)))
    for kind in ("real", "fake"):
        kept = 1 - r[f"train.uniform_corrupt_{kind}"].double()
        z = p.corrupt(r.tokens(f"train.x0_{kind}"), tau, rng.Recorded([kept]))
        yield r.check(f"train.zt_{kind}", z.ids)
        yield r.check(f"train.mask_{kind}", p.masked(z))


def discriminator_step(r: Recording) -> Iterator[CaseResult]:
    """Logits of real and generated sequences, the loss and its gradient."""
    net, objective, losses = r.discriminator().requires_grad_(True), published(r), []
    for kind, target in (("real", 1 - objective.label_smoothing), ("fake", objective.label_smoothing)):
        z = r.tokens(f"train.zt_{kind}")
        logits = net(z, r["train.tau"].double(), NoCond())
        yield r.check(f"train.disc_{kind}_logits", logits)
        losses.append(terms.discriminator_loss(logits, objective.judged(z), target).mean())
        yield r.check(f"train.loss_disc_{kind}", losses[-1])
    loss = torch.stack(losses).mean()
    yield r.check("train.loss_disc", loss)
    loss.backward()
    yield from gradients(r, net, "train.grad_disc")


@torch.no_grad()
def reward(r: Recording) -> Iterator[CaseResult]:
    """From the discriminator's logits to advantages."""
    objective, z = published(r), r.tokens("train.zt_fake")
    odds = terms.log_odds(r["train.disc_fake_logits"][..., 0], objective.odds_clip)
    yield r.check("train.log_odds", odds)
    mean = terms.row_mean(odds, objective.judged(z))
    yield r.check("train.reward", mean)
    for key, clip in (("train.advantage_unclipped", 0.0), ("train.advantage", objective.advantage_clip)):
        yield r.check(key, terms.advantage(mean, objective.group, objective.advantage, clip))


def student_step(r: Recording) -> Iterator[CaseResult]:
    """The loss and its gradient, with the recorded omega and advantage as the README asks."""
    objective = published(r)
    student = r.network(r.weights, timed=r.config["time_conditioning"]).requires_grad_(True)
    both, z = jumps(r, student), r.tokens("train.zt_fake")
    policy = -(r["train.omega"] * objective.credited(both, z, r["train.advantage"][:, None])).mean()
    yield r.check("train.loss_pg", policy)
    modules = {"teacher": r.role("teacher"), "student": student}
    for j, key in zip(both, ("train.kl_step1", "train.kl_step2"), strict=True):
        log_teacher = modules["teacher"](*j.inputs, at=j.at, raw=True).log_softmax(-1)
        yield r.check(key, terms.divergence(log_teacher, j.log_p, objective.kl).mean())
    kl, nats = objective.regularisers(both, RoleView(modules, modules, "student", torch.Generator()))
    beta = r.config["didi"]["kl_beta"]
    yield r.check("train.loss_kl", kl / beta if beta else kl)
    yield r.check("train.entropy", nats)
    total = policy + kl - objective.entropy * nats
    yield r.check("train.loss_total", total)
    total.backward()
    yield from gradients(r, student.net, "train.grad_student")


def gradients(r: Recording, net: nn.Module, prefix: str) -> Iterator[CaseResult]:
    """Recorded gradients by name, and the norm of all."""
    found = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    for name in r.keys(f"{prefix}."):
        yield r.check(f"{prefix}.{name}", found[name])
    yield r.check(f"{prefix}_norm", torch.nn.utils.get_total_norm(list(found.values())))


GROUPS = (discriminator, spectral, rollout, discriminator_step, reward, student_step)
