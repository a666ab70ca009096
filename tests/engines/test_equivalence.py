"""Single process, DDP and ZeRO 0 to 3 train the same weights, on one rank bit for bit, and resume exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import CLIFF, ENGINES, STEPS, Concatenated, Resume, Source, fit, module, weights
from engine_launch import launch
from torch import Tensor

from xdistill import checkpoint
from xdistill.errors import XDistillError

#: Engines under which a network can be differentiated forwards.
DIFFERENTIABLE = ("ddp", "zero0", "zero1", "zero2")
#: Flow maps on two ranks: with a derivative, without one, and with a difference under ZeRO-3.
FLOW_MAPS = (("meanflow", "ddp"), ("meanflow", "zero2"), ("difference", "zero3"), ("split", "zero3"), ("cmt", "ddp"))
# Derivatives come first: ZeRO-3 replaces torch's linear, for the rest of a process, by one without forward mode.
ONE_RANK = [
    *(f"train:meanflow:{engine}" for engine in ("single", *DIFFERENTIABLE)),
    *(f"train:{objective}:{engine}" for objective in ("dmd", "sid", "didi") for engine in ("single", *ENGINES)),
    *(f"resume:dmd:{engine}" for engine in ("single", *ENGINES)),
    *(f"{case}:follows:{engine}" for case in ("train", "resume") for engine in ("single", "ddp", "zero3")),
    *(f"bf16:sid:{engine}" for engine in ("single", *ENGINES)),
    *(f"recompute:sid:{engine}" for engine in ("single", "ddp", "zero3")),
    *(f"{case}:{engine}" for case in ("train:sid", "discard:flow") for engine in ("offload2", "offload3")),
    "discard:flow:single",
    *(f"train:{objective}:{engine}" for objective in ("difference", "cmt") for engine in ("single", "zero3")),
]
SHARDED = ("ddp", "zero1", "zero2", "zero3")
TWO_RANKS = [
    *(f"train:{objective}:{engine}" for objective, engine in FLOW_MAPS),
    *(f"train:{objective}:{engine}" for objective in ("dmd", "sid", "didi") for engine in ENGINES),
    "train:flow:ddp",
    *(f"resume:dmd:{engine}" for engine in SHARDED),
    *(f"{case}:follows:{engine}" for case in ("train", "resume") for engine in ("ddp", "zero3")),
    *(f"{case}:flow:{engine}" for case in ("bad_loss", "bad_gradient", "discard") for engine in SHARDED),
    "diverge:flow:ddp",
    "diverge:flow:zero3",
    "depth:sid:zero3",
    "violation:trains_another:ddp",
    "violation:trains_another:zero3",
    "violation:through_owner:zero3",
    "violation:sid:plain",
    "recompute:sid:zero3",
    "bf16:sid:zero2",
    "bf16:sid:zero3",
    "resume:difference:zero3",
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all cases on one rank."""
    return launch(ONE_RANK, tmp_path_factory.mktemp("one"), devices=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all cases on two ranks, launched by torchrun."""
    return launch(TWO_RANKS, tmp_path_factory.mktemp("two"), devices=2)


def result(folder: Path, case: str) -> Any:
    return torch.load(folder / f"{case}.pt", weights_only=True)


def tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in values.items() if isinstance(v, Tensor)}


def assert_identical(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    different = [k for k, v in tensors(a).items() if not torch.equal(v, b[k])]
    assert not different


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest relative difference of any parameter."""
    return max(float((v - b[k]).norm() / v.norm()) for k, v in tensors(a).items())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("objective", ["dmd", "sid"])
def test_one_rank_is_the_single_engine_bit_for_bit(one: Path, objective: str, engine: str) -> None:
    assert_identical(result(one, f"train:{objective}:single"), result(one, f"train:{objective}:{engine}"))


@pytest.mark.parametrize("engine", ENGINES)
def test_one_rank_of_a_transformer_differs_by_rounding_where_gradients_are_partitioned(one: Path, engine: str) -> None:
    """Bit for bit where they are not; ZeRO 1 to 3 sum a gradient of many tensors in another order."""
    single, found = result(one, "train:didi:single"), result(one, f"train:didi:{engine}")
    if engine in ("ddp", "zero0"):
        assert_identical(single, found)
    assert distance(single, found) < 1e-6


@pytest.mark.parametrize("objective", ["dmd", "sid", "didi"])
def test_every_role_has_moved(one: Path, objective: str) -> None:
    start, end = module(objective), result(one, f"train:{objective}:single")
    for role in start.trainable:
        name, before = next(iter(start.networks[role].named_parameters()))
        assert not torch.allclose(before, end[f"{role}.{name}"], rtol=1e-3)


@pytest.mark.parametrize(("objective", "rounding"), [("dmd", 1e-6), ("sid", 1e-6), ("didi", 2e-5)])
def test_two_ranks_are_one_rank_with_the_concatenated_batch(two: Path, objective: str, rounding: float) -> None:
    """didi trains a transformer of 40 tensors, some of whose gradients are so small that Adam magnifies rounding."""
    reference = weights(fit(module(objective, kind=Concatenated), "single"))
    for engine in ENGINES:
        assert distance(reference, result(two, f"train:{objective}:{engine}")) < rounding, engine


@pytest.mark.parametrize("engine", DIFFERENTIABLE)
def test_forward_mode_in_every_engine_that_keeps_parameters_whole(one: Path, engine: str) -> None:
    assert_identical(result(one, "train:meanflow:single"), result(one, f"train:meanflow:{engine}"))


@pytest.mark.parametrize("objective", ["difference", "cmt"])
def test_flow_maps_without_forward_mode_under_zero3(one: Path, objective: str) -> None:
    assert_identical(result(one, f"train:{objective}:single"), result(one, f"train:{objective}:zero3"))


def test_a_difference_is_the_derivative(one: Path) -> None:
    """Nearly the same weights, but not the same: a step of 1e-2 shows."""
    apart = distance(result(one, "train:meanflow:single"), result(one, "train:difference:single"))
    assert 1e-9 < apart < 1e-2


def test_flow_maps_on_two_ranks(two: Path) -> None:
    for objective, engine in FLOW_MAPS:
        reference = weights(fit(module(objective, kind=Concatenated), "single"))
        assert distance(reference, result(two, f"train:{objective}:{engine}")) < 1e-6, (objective, engine)
    assert_identical(result(two, "train:difference:zero3"), result(two, "resume:difference:zero3"))


@pytest.mark.parametrize("engine", ["single", *ENGINES])
def test_resume_on_one_rank_is_exact(one: Path, engine: str) -> None:
    assert_identical(result(one, f"train:dmd:{engine}"), result(one, f"resume:dmd:{engine}"))


@pytest.mark.parametrize("engine", SHARDED)
def test_resume_on_two_ranks_is_exact(two: Path, engine: str) -> None:
    assert_identical(result(two, f"train:dmd:{engine}"), result(two, f"resume:dmd:{engine}"))


@pytest.mark.parametrize("engine", ["single", "ddp", "zero3"])
def test_a_promoted_role_has_the_student_s_weights_and_survives_a_resume(one: Path, engine: str) -> None:
    """Promotions before and after the checkpoint: the target is part of it."""
    found = result(one, f"train:follows:{engine}")
    assert_identical(result(one, "train:follows:single"), found)
    assert_identical(found, result(one, f"resume:follows:{engine}"))
    before = module("follows").networks["target"].state_dict()
    assert not torch.equal(before["out.weight"], found["target.out.weight"])


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_promotion_on_two_ranks(two: Path, engine: str) -> None:
    found = result(two, f"train:follows:{engine}")
    assert distance(weights(fit(module("follows", kind=Concatenated), "single")), found) < 1e-6
    assert_identical(found, result(two, f"resume:follows:{engine}"))


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_autocast_is_the_same_in_every_engine(one: Path, engine: str) -> None:
    single = result(one, "bf16:sid:single")
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in single.values())
    assert distance(single, result(one, "train:sid:single")) > 1e-5  # bf16 did happen
    assert_identical(single, result(one, f"bf16:sid:{engine}"))


def test_bf16_on_two_ranks(two: Path) -> None:
    assert distance(result(two, "bf16:sid:zero2"), result(two, "bf16:sid:zero3")) < 1e-6


@pytest.mark.parametrize("engine", ["single", "ddp", "zero3"])
def test_activation_checkpointing_changes_nothing(one: Path, engine: str) -> None:
    assert_identical(result(one, "train:sid:single"), result(one, f"recompute:sid:{engine}"))


def test_activation_checkpointing_on_two_ranks(two: Path) -> None:
    assert_identical(result(two, "train:sid:zero3"), result(two, "recompute:sid:zero3"))


@pytest.mark.parametrize(("case", "bad"), [("bad_loss", {(3, 1): float("nan")}), ("bad_gradient", {(4, 1): CLIFF})])
def test_bad_numbers_on_one_rank_skip_the_update_everywhere(two: Path, case: str, bad: dict) -> None:
    reference = fit(module("flow", kind=Concatenated), "single", source=Source(bad))
    assert reference.health.skipped == {"student": 1}
    for engine in SHARDED:
        found = result(two, f"{case}:flow:{engine}")
        assert found["skipped"] == {"student": 1}, engine
        assert (found["updates"], found["macro_step"]) == ({"student": STEPS - 1}, STEPS), engine
        assert distance(weights(reference), found) < 1e-6, engine


def test_discarding_leaves_no_residue(two: Path) -> None:
    reference = result(two, "discard:flow:ddp")
    for engine in SHARDED:
        assert distance(reference, result(two, f"discard:flow:{engine}")) < 1e-6, engine


@pytest.mark.parametrize("engine", ["offload2", "offload3"])
def test_an_optimizer_on_the_cpu(one: Path, engine: str) -> None:
    assert distance(result(one, "train:sid:single"), result(one, f"train:sid:{engine}")) < 1e-6
    assert distance(result(one, "discard:flow:single"), result(one, f"discard:flow:{engine}")) < 1e-6


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_divergence_stops_all_ranks_and_keeps_the_checkpoint(two: Path, engine: str) -> None:
    found = result(two, f"diverge:flow:{engine}")
    assert "2 updates of 'student' in a row" in found["error"]
    saved = checkpoint.open_checkpoint(two / "checkpoints" / f"diverge-{engine}")
    assert saved.manifest["macro_step"] == 2
    assert all(w.isfinite().all() for w in saved.role("student").values())


def test_the_rollout_depth_is_the_same_on_every_rank(two: Path) -> None:
    first, second = result(two, "depth:sid:zero3")
    assert first == second
    assert len(set(first)) > 1


def test_role_rules_hold_under_engines(two: Path) -> None:
    assert result(two, "violation:trains_another:ddp") == "RoleError"
    assert result(two, "violation:trains_another:zero3") == "RoleError"
    assert result(two, "violation:through_owner:zero3") == "RoleError"


def test_a_plain_strategy_on_two_processes_is_refused(two: Path) -> None:
    assert result(two, "violation:sid:plain") == "UsageError"


def test_lightnings_own_launcher(two: Path, tmp_path: Path) -> None:
    launch(["train:flow:ddp"], tmp_path, devices=2, torchrun=False, timeout=120)
    assert_identical(result(two, "train:flow:ddp"), result(tmp_path, "train:flow:ddp"))


def test_another_number_of_ranks_is_refused(two: Path) -> None:
    with pytest.raises(XDistillError, match="written by 2 processes, this run has 1"):
        fit(module("dmd"), "single", callbacks=(Resume(two / "checkpoints" / "dmd-ddp"),))


def test_another_zero_stage_is_refused(one: Path) -> None:
    with pytest.raises(XDistillError, match="layout 'zero2' but this run uses 'replicated'"):
        fit(module("dmd"), "single", callbacks=(Resume(one / "checkpoints" / "dmd-zero2"),))
