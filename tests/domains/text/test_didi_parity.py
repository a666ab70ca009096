"""The published training step of DiDi-Instruct: every recorded tensor and both gradients, through the objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xdistill import rng
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.discriminator import TokenDiscriminator
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.models import Batch, NoCond
from xdistill.objectives import didi_losses as terms
from xdistill.objectives.didi import DiDi
from xdistill.process import MaskProcess
from xdistill.roles import RoleView, phase_grads
from xdistill.state import Tokens

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
STUDENT = ("blocks.0.attn_qkv.weight", "output_layer.linear.bias")
DISCRIMINATOR = ("blocks.1.attn_out.weight", "output_layer.main.2.weight_orig")


class Case:
    """The recorded networks, numbers, and the objective with the published settings."""

    def __init__(self, name: str) -> None:
        folder = FIXTURES / name
        self.config = json.loads((folder / "config.json").read_text())
        self.io = {k[6:]: v for k, v in load_file(folder / "didi_io.safetensors").items() if k.startswith("train.")}
        c, models = self.config, load_file(folder / "didi_models.safetensors")
        self.process = MaskProcess(c["mask_index"], c["noise_eps"])
        model = load_file(folder / "model.safetensors")
        teacher = {k[8:]: v for k, v in models.items() if k.startswith("teacher.")}
        self.modules = {
            "student": self.network(model, timed=c["time_conditioning"]),
            "teacher": self.network({**model, **teacher}, timed=True).requires_grad_(False),
            "discriminator": self.discriminator(model, models),
        }
        self.objective = DiDi.paper(self.process, group=c["didi"]["G"])

    def network(self, weights: dict[str, Tensor], *, timed: bool) -> TextDenoiser:
        c = self.config
        sizes = TextConfig(c["vocab_size"], c["hidden_size"], c["n_blocks"], c["n_heads"], c["cond_dim"], 0.0)
        net = TextDiT(sizes)
        net.load_state_dict({k: v for k, v in weights.items() if k in net.state_dict()})
        return TextDenoiser(net, self.process, timed=timed)

    def discriminator(self, model: dict[str, Tensor], models: dict[str, Tensor]) -> TokenDiscriminator:
        trunk = self.network(model, timed=True).requires_grad_(False)
        net = TokenDiscriminator(trunk, trainable=self.config["discriminator_unfreeze_blocks"]).eval()
        head = {k[14:]: v for k, v in models.items() if k.startswith("discriminator.output_layer.")}
        own = {k: head.get(k, model.get(k)) for k in net.state_dict()}
        net.load_state_dict(own)
        return net

    def tokens(self, name: str) -> Tokens:
        ids = self.io[name]
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    @property
    def tau(self) -> Tensor:
        return self.io["tau"].double()

    def batch(self) -> Batch[Tokens]:
        """The sequences before they were repeated."""
        ids = self.io["x0_real"][:: self.objective.group]
        return Batch(Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), NoCond())


@pytest.fixture(scope="module", params=["tiny_a", "tiny_b"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def close(found: Tensor, recorded: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach().float().reshape(recorded.shape), recorded, rtol=rtol, atol=atol)


def replayed(case: Case) -> Any:
    draws = rng.Recorded([case.io["uniform_step1"], case.io["uniform_step2"]])
    return case.objective.jumps(case.modules["student"], case.batch(), case.tau, draws)


def test_both_jumps(case: Case) -> None:
    first, last = replayed(case)
    assert torch.equal(first.after.ids, case.io["x_tau"])
    assert torch.equal(last.after.ids, case.io["x0_fake"])
    for j, name in ((first, "logp_step1"), (last, "logp_step2")):
        kept = terms.kept_constant(case.process.masked(j.after))
        close(j.log_prob().sum(1), case.io[f"{name}_changed_only"])
        close(j.log_prob().sum(1) + kept, case.io[name])


def test_times(case: Case) -> None:
    close(case.process.keep(case.tau), case.io["alpha_tau"])
    close(case.process.sigma(case.tau), case.io["sigma_tau"])
    close(case.objective.omega(case.tau), case.io["omega"], rtol=2e-3)  # recorded by finite differences
    close(case.process.weight(case.tau), case.io["omega_unclipped"], rtol=2e-3)


def test_corruption(case: Case) -> None:
    for kind in ("real", "fake"):
        draws = rng.Recorded([1 - case.io[f"uniform_corrupt_{kind}"].double()])
        clean = case.tokens("x0_real" if kind == "real" else "x0_fake")
        kept = Tokens(clean.ids, case.io[f"uniform_corrupt_{kind}"] >= 1 - case.io["alpha_tau"][:, None])
        z = case.process.corrupt(clean, case.tau, draws, kept)
        assert torch.equal(z.ids, case.io[f"zt_{kind}"])
        assert torch.equal(case.process.masked(z), case.io[f"mask_{kind}"].bool())


def test_discriminator_and_its_gradient(case: Case) -> None:
    net = case.modules["discriminator"].requires_grad_(True)
    net.zero_grad()
    losses = {}
    for kind, target in (("real", 1 - case.objective.label_smoothing), ("fake", case.objective.label_smoothing)):
        logits = net(case.tokens(f"zt_{kind}"), case.tau, NoCond())
        close(logits, case.io[f"disc_{kind}_logits"])
        losses[kind] = terms.discriminator_loss(logits, case.io[f"mask_{kind}"].bool(), target).mean()
        close(losses[kind], case.io[f"loss_disc_{kind}"])
    loss = (losses["real"] + losses["fake"]) / 2
    close(loss, case.io["loss_disc"])
    loss.backward()
    gradients_match(net, case, DISCRIMINATOR, "disc")


def gradients_match(module: torch.nn.Module, case: Case, names: tuple[str, ...], kind: str) -> None:
    parameters = dict(module.named_parameters())
    prefix = "net." if isinstance(module, TextDenoiser) else ""
    for name in names:
        if f"grad_{kind}.{name}" in case.io:
            close(parameters[prefix + name].grad, case.io[f"grad_{kind}.{name}"])
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
    close(norm, case.io[f"grad_{kind}_norm"])


def test_reward_and_advantage(case: Case) -> None:
    odds = terms.log_odds(case.io["disc_fake_logits"].squeeze(2), case.config["didi"]["reward_clip"])
    close(odds, case.io["log_odds"])
    reward = terms.row_mean(odds, case.io["mask_fake"].bool())
    close(reward, case.io["reward"])
    close(terms.advantage(reward, case.objective.group, "group", 0), case.io["advantage_unclipped"])
    close(terms.advantage(reward, case.objective.group, "group", 3.0), case.io["advantage"])


def test_student_loss_and_its_gradient(case: Case) -> None:
    """The recorded omega and advantage, and everything else from the objective."""
    case.modules["student"].zero_grad()
    jumps, z = replayed(case), case.tokens("zt_fake")
    credited = case.objective.credited(jumps, z, case.io["advantage"][:, None])
    policy = (-case.io["omega"] * credited).mean()
    close(policy, case.io["loss_pg"])
    with phase_grads(case.modules, "student"):
        view = RoleView(case.modules, case.modules, "student", torch.Generator())
        kl, nats = case.objective.regularisers(jumps, view)
        close(kl, case.io["loss_kl"])
        close(nats, case.io["entropy"])
        total = policy + kl - case.objective.entropy * nats
        close(total, case.io["loss_total"])
        total.backward()
    gradients_match(case.modules["student"], case, STUDENT, "student")


def test_divergences_of_the_jumps(case: Case) -> None:
    for j, name in zip(replayed(case), ("kl_step1", "kl_step2"), strict=True):
        log_teacher = case.modules["teacher"](*j.inputs, at=j.at, raw=True).log_softmax(1)
        close(terms.divergence(log_teacher, j.log_p).mean(), case.io[name])
