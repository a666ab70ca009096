"""Configuration of engines and strategies: schedules, clipping, DeepSpeed options, and what is refused."""

from __future__ import annotations

import pytest
import torch
from engine_cases import TinyFlow, module

from xdistill.engine import OptimConfig, RolesDeepSpeed, SingleEngine, strategies
from xdistill.engine.base import clip
from xdistill.engine.zero import OWNED, zero_config
from xdistill.errors import UsageError, XDistillError


def test_warmup_is_linear_and_never_zero() -> None:
    config = OptimConfig(lr=1.0, warmup=4)
    assert [config.lr_at(i) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_restarts_double_their_cycle() -> None:
    config = OptimConfig(lr=1.0, lr_min=0.0, schedule="cosine_restarts", cycle=4)
    assert [round(config.lr_at(i), 6) for i in (0, 2, 4, 8, 12)] == [1.0, 0.5, 1.0, 0.5, 1.0]


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="constant or cosine_restarts"):
        OptimConfig(schedule="linear").lr_at(0)


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping_is_torchs(limit: float) -> None:
    ours, theirs = TinyFlow(0), TinyFlow(0)
    for i, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        q.grad = p.grad.clone()
    grads = [p.grad for p in ours.parameters() if p.grad is not None]
    clip(grads, limit, torch.nn.utils.get_total_norm(grads))
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_non_finite_gradient_moves_nothing() -> None:
    engine = SingleEngine(TinyFlow(0), OptimConfig(weight_decay=0.1))
    before = {k: v.clone() for k, v in engine.weights().items()}
    for p in engine.module.parameters():
        p.grad = torch.full_like(p, float("inf"))
    assert engine.step(1.0).skipped
    assert all(torch.equal(v, before[k]) for k, v in engine.weights().items())
    assert all(p.grad is None for p in engine.module.parameters())


def test_moments_of_another_network_are_refused() -> None:
    engine, other = SingleEngine(TinyFlow(0), OptimConfig()), SingleEngine(torch.nn.Linear(2, 2), OptimConfig())
    other.backward(other(torch.ones(1, 2)).sum(), last=True)
    other.step(1e-3)
    with pytest.raises(XDistillError, match="does not fit the network"):
        engine.load_state_dict(other.state_dict())


def test_hyperparameters_come_from_the_configuration_and_moments_from_the_state() -> None:
    before = SingleEngine(torch.nn.Linear(2, 2), OptimConfig(weight_decay=0.0))
    before.backward(before(torch.ones(1, 2)).sum(), last=True)
    before.step(1e-3)
    after = SingleEngine(torch.nn.Linear(2, 2), OptimConfig(weight_decay=0.5))
    after.load_state_dict(before.state_dict())
    assert after.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert after.optimizer.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("key", sorted(OWNED))
def test_options_that_xdistill_decides_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=f"strategy.config.{key} is decided by xdistill"):
        zero_config(TinyFlow(0), 2, "fp32", {key: 1})


def test_raw_options_are_merged() -> None:
    extra = {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True}
    config = zero_config(TinyFlow(0), 2, "fp32", extra)
    assert config["zero_optimization"]["overlap_comm"]
    assert config["zero_optimization"]["stage"] == 2
    assert config["wall_clock_breakdown"]
    assert "torch_autocast" not in config


def test_bf16_is_autocast_with_gradients_reduced_in_fp32() -> None:
    config = zero_config(TinyFlow(0), 2, "bf16", {})
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def test_offload_goes_to_the_cpu_from_stage_one() -> None:
    assert "offload_optimizer" not in zero_config(TinyFlow(0), 0, "fp32", {}, offload=True)["zero_optimization"]
    assert zero_config(TinyFlow(0), 1, "fp32", {}, offload=True)["zero_optimization"]["offload_optimizer"]


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="ZeRO stage 4 does not exist"):
        RolesDeepSpeed(4)


def test_every_trained_role_needs_a_stage() -> None:
    strategy = RolesDeepSpeed({"student": 3})
    with pytest.raises(UsageError, match="also trains 'critic'"):
        strategy.make_engine("critic", TinyFlow(0), OptimConfig(), "fp32")


def test_a_missing_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "find_spec", lambda name: None)
    with pytest.raises(XDistillError, match=r"pip install xdistill\[deepspeed\]"):
        RolesDeepSpeed(2)


def test_lightnings_checkpoints_of_shards_are_refused() -> None:
    with pytest.raises(XDistillError, match=r"xdistill\.checkpoint\.save"):
        RolesDeepSpeed(3).save_checkpoint({}, "anywhere.ckpt")


def test_draws_of_a_macro_step_are_reserved() -> None:
    assert module("sid", accumulate=2).slots == 2 * (2 + 1)
