"""Recorded runs of the reference implementations, through the front end a user calls."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xdistill import registry
from xdistill.domains.protein.parity_flow import replay_samplers, replay_sid
from xdistill.testing.parity import main

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protein"


def test_every_recording_is_within_its_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protein", str(FIXTURES)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("0 out of tolerance")
    for kind in ("denoiser_a_notri", "denoiser_b_tri", "sampler/", "sid_multistep", "sid_padded", "tiny_lightning"):
        assert any(kind in line and line.startswith("ok") for line in lines), kind


def test_an_altered_recording_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in FIXTURES.glob("sid_padded*"):
        shutil.copy(file, tmp_path)
    stored = load_file(tmp_path / "sid_padded.safetensors")
    stored["step6/gen/loss"] = stored["step6/gen/loss"] + 1e-4
    save_file(stored, tmp_path / "sid_padded.safetensors")
    assert main(["protein", str(tmp_path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert "gen/loss" in failed[0]


@pytest.mark.parametrize("argv", [[], ["protein", "/nowhere"], ["toy", "."], ["protien", "."]])
def test_wrong_usage_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_empty_folder_is_a_failure(tmp_path: Path) -> None:
    assert main(["protein", str(tmp_path)]) == 1


def test_padded_centring_is_only_reproduced_behind_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correct masked centring must not match the padded recording: else the switch tests nothing."""
    from xdistill.domains.protein import parity_flow

    right = parity_flow.Padded
    monkeypatch.setattr(parity_flow, "Padded", lambda mask, zero_com, padded_mean=False: right(mask, zero_com=zero_com))
    wrong = [r.name for r in replay_sid(FIXTURES) if not r.ok]
    assert any("sid_padded/step6/gen/loss" in name for name in wrong)


def test_samplers_cover_both_modes_and_every_schedule() -> None:
    names = " ".join(r.name for r in replay_samplers(FIXTURES))
    for schedule in ("uniform", "power", "log", "loglinear", "edm", "cos_sch_v_snr"):
        assert f"schedule/{schedule}" in names
    assert "cfg_w2" in names
    assert "mix_w15_r04" in names


def test_domain_offers_the_replay() -> None:
    results = registry.load("domains", "protein").replay(FIXTURES)
    assert len(results) > 80
    assert torch.tensor([r.max_error for r in results]).isfinite().all()
