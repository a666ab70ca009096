"""Recorded runs of the reference implementations, through the front end a user calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xdistill.domains.text import parity
from xdistill.domains.text.recording import Recording
from xdistill.testing.parity import main

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"


def lines(capsys: pytest.CaptureFixture[str], outcome: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(outcome)]


def altered(tmp_path: Path, file: str, **changes: torch.Tensor) -> Path:
    folder = tmp_path / "unseen"
    shutil.copytree(FIXTURES / "tiny_b", folder)
    stored = load_file(folder / file)
    save_file({**stored, **{k.replace("__", "."): v for k, v in changes.items()}}, folder / file)
    return folder


def test_every_recorded_tensor_is_within_its_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", str(FIXTURES)]) == 0
    good = lines(capsys, "ok")
    for name in ("tiny_a", "tiny_b"):
        named = [line.split()[1].rstrip(":") for line in good if f" {name}/" in line]
        assert f"{name}/tensors" in named
        groups = {key.split("/")[1].split(".")[0] for key in named}
        assert groups >= {"backbone", "subs", "module_forward", "nelbo", "sample_t", "ema", "ema_didi_double", "metric"}
        assert groups >= {"ancestral", "noise_removal", "score", "analytic", "denoise", "chain"}
        assert groups >= {"disc", "spectral", "train", "rgas_tilt", "rgas_rerank"}
        for key in ("train.grad_student_norm", "train.grad_disc_norm", "chain.x", "rgas_rerank.x_next"):
            assert f"{name}/{key}" in named


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("mdlm_io.safetensors", "backbone.block1"),
        ("mdlm_io.safetensors", "chain.x"),
        ("mdlm_io.safetensors", "ema_didi_double.shadow"),
        ("didi_io.safetensors", "train.loss_total"),
        ("didi_io.safetensors", "train.mask_fake"),
        ("didi_io.safetensors", "train.grad_student.blocks.0.attn_qkv.weight"),
    ],
)
def test_an_altered_number_fails_alone(tmp_path: Path, file: str, key: str) -> None:
    value = load_file(FIXTURES / "tiny_b" / file)[key].clone()
    last = value.view(-1)[-1:]
    last += 1 if not value.is_floating_point() else 1e-3 * (1 + last.abs())
    folder = altered(tmp_path, file, **{key: value})
    assert [r.name for r in parity.replay(folder) if not r.ok] == [f"unseen/{key}"]


def test_a_tensor_that_nothing_looks_at_fails(tmp_path: Path) -> None:
    folder = altered(tmp_path, "mdlm_io.safetensors", new__tensor=torch.ones(1))
    (folder / "didi_io.safetensors").unlink()
    (failed,) = [r for r in parity.replay(folder) if not r.ok]
    assert "new.tensor" in failed.name
    assert failed.max_error == 1


def test_the_flag_of_time_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the wrong choice of sigma the recording must not match: else the switch tests nothing."""
    r = Recording(FIXTURES / "tiny_b")
    r.config["time_conditioning"] = False
    assert [x.name for x in parity.log_probs(r) if not x.ok] == ["tiny_b/module_forward.log_probs"]


def test_empty_folder_is_a_failure(tmp_path: Path) -> None:
    assert main(["text", str(tmp_path)]) == 1
