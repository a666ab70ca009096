"""The two front-ends against recorded mels and banks, their frame counts, and the refusal to mix them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from xdistill.domains.speech.mel import KINDS, MelSpec, filterbank, mel, same_mel
from xdistill.errors import UsageError, XDistillError

RECORDED = load_file(Path(__file__).parents[2] / "fixtures/speech/mel.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_banks_are_the_recorded_ones(kind: str) -> None:
    theirs = RECORDED[f"{kind}.fb100"].double().numpy()
    np.testing.assert_allclose(filterbank(MelSpec(kind)), theirs.T if kind == "vocos" else theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [100, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mels_are_the_recorded_ones(kind: str, bins: int, dtype: torch.dtype) -> None:
    found = mel(RECORDED["waveform"].to(dtype), MelSpec(kind, bins=bins))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), RECORDED[f"{kind}.mel{bins}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_samples(kind: str) -> None:
    spec = MelSpec(kind)
    for samples in (600, 1023, 1024, 2559, 2560, 2561):
        assert mel(torch.zeros(2, 3, samples), spec).shape == (2, 3, 100, spec.frames(samples))
    assert all(spec.frames(spec.samples(n)) == n for n in range(1, 9))


def test_silence_is_the_floor_and_has_a_gradient() -> None:
    waveform = torch.zeros(2048, requires_grad=True)
    found = mel(waveform, MelSpec("vocos"))
    assert torch.allclose(found, torch.tensor(1e-5).log())
    found.sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.isfinite().all()


def test_small_types_are_heard_in_float32() -> None:
    found = mel(RECORDED["waveform"].bfloat16(), MelSpec("bigvgan"))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mel(RECORDED["waveform"].bfloat16().float(), MelSpec("bigvgan")))


def test_refusals() -> None:
    with pytest.raises(XDistillError, match="too short"):
        mel(torch.zeros(512), MelSpec("vocos"))
    with pytest.raises(UsageError, match="unknown mel kind 'vocs'"):
        MelSpec("vocs")
    vocos, bigvgan = MelSpec("vocos"), MelSpec("bigvgan")
    same_mel(vocos, "vocos", "teacher and vocoder")
    same_mel("bigvgan", bigvgan, "teacher and vocoder")
    with pytest.raises(XDistillError, match=r"teacher and vocoder: mel kind 'vocos' met 'bigvgan'.*4 nats"):
        same_mel(vocos, "bigvgan", "teacher and vocoder")
    with pytest.raises(XDistillError, match="bins 100 and 80"):
        same_mel(vocos, MelSpec("vocos", bins=80), "teacher and vocoder")


def test_the_scales_really_differ_by_about_four_nats() -> None:
    a, b = RECORDED["vocos.mel100"][:, :-1], mel(RECORDED["waveform"], MelSpec("bigvgan"))
    loud = b > -10
    assert 3 < (a - b)[loud].mean() < 5
