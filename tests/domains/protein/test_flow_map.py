"""Protein networks with a second time input: no effect at first, checkpoints, invariances, derivatives, training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xdistill.config import compose
from xdistill.derivatives import total_derivative
from xdistill.domains.protein import ProteinCond, ProteinDomain, ProteinFlow
from xdistill.domains.protein.network import Proteina, ProteinaConfig, straightforward
from xdistill.domains.protein.teacher import MINI, with_second_time
from xdistill.errors import XDistillError
from xdistill.models import FlowMapModel, average_velocity, velocity
from xdistill.run import fit
from xdistill.state import Field, Padded
from xdistill.student import load_student

SMALL = {**MINI, "token_dim": 32, "nlayers": 3, "pair_repr_dim": 8, "dim_cond": 24, "refine_after": 2}
SMOOTH = {"feats_pair_repr": ["rel_seq_sep"], "vector_channels": 0, "refine_after": 0}
DOMAIN = ProteinDomain({})
T = torch.tensor([0.9, 0.5, 0.4], dtype=torch.float64)
R = torch.tensor([0.2, 0.0, 0.4], dtype=torch.float64)
COND = ProteinCond(labels=torch.tensor([[0, 0, 0], [4, 2, 1], [1, 1, 1]]))


def network(target_pred: str = "v", **changes: object) -> ProteinFlow:
    """Small, without a second time, every parameter random."""
    torch.manual_seed(0)
    net = Proteina(ProteinaConfig.from_dict({**SMALL, **changes}), (5, 4, 3))
    return randomise(ProteinFlow(net, target_pred)).eval()


def randomise(flow: ProteinFlow) -> ProteinFlow:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return flow


def state(lengths: tuple[int, ...] = (12, 9, 7), width: int = 12) -> Field:
    """Sample i depends on i and its length only."""
    layout, value = Padded.from_lengths(lengths, width, zero_com=True), torch.zeros(len(lengths), width, 3)
    for i, n in enumerate(lengths):
        value[i, :n] = torch.randn(n, 3, generator=torch.Generator().manual_seed(i))
    return Field(value, layout).project()


@pytest.mark.parametrize("target_pred", ["v", "x_1"])
def test_no_effect_at_first(target_pred: str) -> None:
    plain = network(target_pred)
    grown = DOMAIN.flow_map(plain)
    assert isinstance(grown, FlowMapModel)
    assert grown.flow_map
    x, before = state(), plain(state(), T, COND).value
    assert torch.equal(grown(x, T, COND, r=R).value, before)
    assert torch.equal(grown(x, T, COND).value, before)
    assert torch.equal(ProteinFlow.features(grown, x, T, COND), plain.features(x, T, COND))
    u, v = average_velocity(grown, DOMAIN.process, x, T, R, COND), velocity(plain, DOMAIN.process, x, T, COND)
    assert torch.equal(u.value, v.value)


def test_trained_it_matters_but_not_without_a_jump() -> None:
    grown, x = randomise(DOMAIN.flow_map(network())), state()
    told, plain = grown(x, T, COND, r=R).value, grown(x, T, COND).value
    moved = (told - plain).abs().amax((1, 2))
    assert (moved[:2] > 1e-3).all()
    assert torch.equal(told[2], plain[2]), "r = t is the instantaneous velocity"


def test_it_is_grown_once_and_the_same_each_time() -> None:
    plain = network()
    a, b = DOMAIN.flow_map(plain), DOMAIN.flow_map(plain)
    assert DOMAIN.flow_map(a) is a
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert all(p.requires_grad for p in a.parameters())
    assert not plain.flow_map
    added = set(a.state_dict()) - set(plain.state_dict())
    assert {name.split(".")[1] for name in added} == {"jump_embed"}
    with pytest.raises(XDistillError, match="no second time input"):
        plain(state(), T, COND, r=R)


def test_round_trip_of_its_description() -> None:
    grown = randomise(DOMAIN.flow_map(network("x_1")))
    again = DOMAIN.from_description(DOMAIN.describe(grown)).eval()
    again.load_state_dict(grown.state_dict())
    assert torch.equal(again(state(), T, COND, r=R).value, grown(state(), T, COND, r=R).value)
    described = DOMAIN.describe(network())
    old = {**described, "config": {k: v for k, v in described["config"].items() if k != "flow_map"}}
    assert DOMAIN.from_description(old).state_dict().keys() == network().state_dict().keys()


def test_padding_does_not_matter() -> None:
    grown = randomise(DOMAIN.flow_map(network()))
    alone = grown(state((9,), 9), T[:1], replace(COND, labels=COND.labels[:1]), r=R[:1]).value
    padded = state((9, 12), 16)
    padded.value[0, 9:] = 7.0
    pair = grown(padded, T[:2], replace(COND, labels=COND.labels[:2]), r=R[:2]).value
    torch.testing.assert_close(pair[0, :9], alone[0], atol=2e-5, rtol=1e-4)


def test_rotating_the_state_rotates_the_average() -> None:
    grown, x = randomise(DOMAIN.flow_map(network())), state()
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4)))[0]
    q = q * torch.linalg.det(q)
    turned = grown(Field(x.value @ q, x.layout), T, COND, r=R).value
    torch.testing.assert_close(turned, grown(x, T, COND, r=R).value @ q, atol=2e-4, rtol=1e-3)


def slope(flow: ProteinFlow, x: Field, backend: str = "func", step: float = 2e-5) -> Field:
    """du/dt along the flow, tangent (v, 1, 0) of (x_t, t, r): what MeanFlow asks for."""
    v = velocity(flow, DOMAIN.process, x, T, COND).value.detach()

    def u(value: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return average_velocity(flow, DOMAIN.process, Field(value, x.layout), t, R, COND).value

    found = total_derivative(u, (x.value, T), (v, torch.ones_like(T)), backend=backend, step=step)[1]
    return Field(found, x.layout)


@pytest.mark.parametrize("target_pred", ["v", "x_1"])
def test_forward_mode_is_the_limit_of_finite_differences(target_pred: str) -> None:
    """Of a network without distance bins, which jump: there a difference has no limit."""
    grown, x = randomise(DOMAIN.flow_map(network(target_pred, **SMOOTH))), state()
    exact, near = slope(grown, x), slope(grown, x, "finite_difference")
    error = (near - exact).mean_square().sqrt() / exact.mean_square().sqrt()
    assert (error < 0.01).all()
    assert (exact.mean_square() > 1).all(), "time enters 2000-fold"


def test_forward_mode_leaves_no_trace_in_the_table_of_biases() -> None:
    grown, x = randomise(DOMAIN.flow_map(network())), state()
    first = slope(grown, x).value
    with torch.no_grad():
        after = grown(x, T, COND, r=R).value
    with straightforward(grown.net), torch.no_grad():
        plain = grown(x, T, COND, r=R).value
        torch.testing.assert_close(first, slope(grown, x).value, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(after, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["splitmeanflow", "meanflow", "shortcut"])
def test_one_training_step_and_its_checkpoint(objective: str, tmp_path: Path) -> None:
    options = ["train.steps=1", "train.max_minutes=0", "eval=none", "ema=none", "optim.student={lr: 1e-3, warmup: 0}"]
    options += ["domain.min_length=40", "domain.max_length=44", "data.batch=2", "precision=fp32", "strategy.threads=1"]
    # Rows without a jump teach nothing yet: there the student still is its teacher, and the loss is exactly zero.
    options += ["logger.progress=false", "objective.instant=0", f"out={tmp_path / 'run'}"]
    run = fit(compose(["domain=protein", f"objective={objective}", *options]))
    loaded = load_student(run)
    assert loaded.model.flow_map
    before = with_second_time(DOMAIN.teacher()).state_dict()
    moved = {k for k, w in loaded.model.state_dict().items() if not torch.equal(w, before[k])}
    assert "net.jump_embed.mlp.2.weight" in moved
    like = loaded.domain.plan([0, 1], 0, length=40).like
    sample = loaded.objective.sample(loaded.model, like, ProteinCond(), torch.Generator().manual_seed(0), steps=1)
    assert sample.value.isfinite().all()
