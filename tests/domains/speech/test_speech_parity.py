"""All speech recordings replay, and a replay of something else fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdistill.domains.speech import parity
from xdistill.testing.results import CaseResult

FIXTURES = Path(__file__).parents[2] / "fixtures/speech"


def failures(results: list[CaseResult]) -> list[str]:
    return [r.name for r in results if not r.ok]


def copy(tmp_path: Path, tag: str = "f5_tiny_v0") -> Path:
    for suffix in (".json", "_ckpt.safetensors", "_io.safetensors"):
        shutil.copyfile(FIXTURES / f"{tag}{suffix}", tmp_path / f"{tag}{suffix}")
    return tmp_path / f"{tag}_io.safetensors"


@pytest.mark.parametrize(("tag", "outputs"), [("f5_tiny_v0", 53), ("f5_tiny_v1", 61)])
def test_recorded_networks(tag: str, outputs: int) -> None:
    results = list(parity.F5Replay(FIXTURES / f"{tag}_io.safetensors").run())
    assert failures(results) == []
    assert len(results) == outputs
    exact = [r.max_error for r in results if r.name.endswith("f64")]
    assert max(exact) < 1e-14, "far inside the recorded tolerance"


def test_mels_and_grids() -> None:
    for group, name in ((parity.mels, "mel.safetensors"), (parity.grids, "timesteps.json")):
        results = list(group(FIXTURES / name))
        assert results
        assert failures(results) == []


def change(path: Path, **tensors: Tensor) -> None:
    save_file(load_file(path) | tensors, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def test_a_tensor_that_nothing_looks_at_fails(tmp_path: Path) -> None:
    path = copy(tmp_path)
    change(path, extra=torch.zeros(1))
    assert failures(list(parity.F5Replay(path).run())) == ["f5_tiny_v0_io/tensors that nothing looks at (extra)"]


def test_other_weights_fail(tmp_path: Path) -> None:
    path = copy(tmp_path)
    name = "ema_model.transformer.transformer_blocks.1.attn.to_q.weight"
    weights = path.with_name("f5_tiny_v0_ckpt.safetensors")
    change(weights, **{name: load_file(weights)[name] * 1.01})
    failed = failures(list(parity.F5Replay(path).run()))
    assert {"f5_tiny_v0_io/out.null.mask.f32", "f5_tiny_v0_io/sample0.out", "f5_tiny_v0_io/loss2.pred"} <= set(failed)
    assert not any("mid." in name for name in failed), "what comes before the block is right"


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert parity.replay(tmp_path) == []


def test_all_of_a_folder(tmp_path: Path) -> None:
    copy(tmp_path)
    shutil.copyfile(FIXTURES / "timesteps.json", tmp_path / "timesteps.json")
    names = {r.name.split("/")[0] for r in parity.replay(tmp_path)}
    assert names == {"f5_tiny_v0_io", "timesteps"}
