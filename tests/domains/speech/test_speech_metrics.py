"""Metrics of speech against sounds and mels whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xdistill.domains.speech import spectra
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.metrics import evaluate_speech, paired, recording_of, recordings
from xdistill.domains.speech.spoken import Spoken
from xdistill.errors import XDistillError

RATE = 24000


def heard(wave: np.ndarray, kind: str = "vocos") -> np.ndarray:
    """[N, D] log-mel of a waveform."""
    return mel(torch.from_numpy(wave), MelSpec(kind)).mT.numpy().astype(np.float64)


def voice(hertz: np.ndarray) -> np.ndarray:
    """Ten harmonics, falling, of a pitch [n] in Hz."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    return 0.1 * sum(np.sin(k * phase + k) / k for k in range(1, 11))


@pytest.mark.parametrize("kind", ["vocos", "bigvgan"])
@pytest.mark.parametrize("hertz", [100.0, 140.0, 205.0, 310.0, 420.0])
def test_pitch_of_a_steady_voice(kind: str, hertz: float) -> None:
    found = spectra.pitch(heard(voice(np.full(RATE // 2, hertz)), kind), MelSpec(kind))[4:-4]
    assert np.isfinite(found).all()
    assert np.abs(found / hertz - 1).max() < 0.015


def test_pitch_follows_a_glide_and_noise_and_silence_have_none() -> None:
    glide = np.geomspace(150, 300, RATE)
    noise = 0.05 * np.random.default_rng(0).normal(size=RATE // 2)
    found = spectra.pitch(heard(np.concatenate([voice(glide), noise, np.zeros(RATE // 2)])), MelSpec("vocos"))
    frames = np.arange(6, 88)
    assert np.abs(np.log(found[frames] / glide[frames * 256])).max() < 0.03
    assert np.isfinite(found[98:]).mean() < 0.05


def test_distortion_is_the_root_mean_square_of_a_ripple_in_decibel() -> None:
    """A cosine of a nats over the bands is a / sqrt(2) nats of amplitude rms; loudness is no distortion."""
    bands = (np.arange(100) + 0.5) / 100
    flat = np.zeros((3, 100))
    rippled = flat + 0.3 * np.cos(np.pi * 5 * bands)
    a, b = spectra.cepstra(flat), spectra.cepstra(rippled + 2.0)
    assert np.diag(spectra.distortion(a, b)) == pytest.approx(0.3 / np.sqrt(2) * 20 / np.log(10))
    high = spectra.cepstra(flat + 0.3 * np.cos(np.pi * 14 * bands))
    assert spectra.distortion(a, high).max() < 1e-5


def test_alignment_undoes_repeated_frames() -> None:
    """A path of no cost through frames of which some are said twice; corners, single steps."""
    a = np.random.default_rng(1).normal(size=(12, 100))
    b = np.repeat(a, [1, 2, 1, 1, 3, 1, 1, 1, 2, 1, 1, 1], axis=0)
    path = spectra.matched(a, b)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [11, 15]
    assert np.abs(a[path[:, 0]] - b[path[:, 1]]).max() == 0
    assert set(map(tuple, np.diff(path, axis=0).tolist())) <= {(1, 1), (0, 1), (1, 0)}


def test_recordings_score_perfectly_against_themselves() -> None:
    found = evaluate_speech(recordings("vocos")[:3])
    assert {name: found[name].value for name in ("score", "mcd", "log_f0_rmse", "voicing_error")} == {
        "score": 0, "mcd": 0, "log_f0_rmse": 0, "voicing_error": 0,
    }  # fmt: skip
    assert found["duration_ratio"].value == found["variance_ratio"].value == 1
    assert 0.02 < found["silence"].value < 0.3


def test_blur_shift_and_speed_show_where_they_should() -> None:
    three = recordings("vocos")[:3]
    kernel = np.ones(9) / 9
    blurred = [np.apply_along_axis(np.convolve, 0, s.mel, kernel, "same").astype(np.float32) for s in three]
    blur = evaluate_speech([replace(s, mel=m) for s, m in zip(three, blurred, strict=True)])
    assert blur["variance_ratio"].value < 0.9
    assert blur["score"].value < -blur["mcd"].value - 0.4
    slow = evaluate_speech([replace(s, mel=np.repeat(s.mel, 2, axis=0)) for s in three])
    assert slow["duration_ratio"].value == 2
    assert slow["mcd"].value < 0.5 < blur["mcd"].value


def test_recordings_are_found_by_id_or_words() -> None:
    first = recordings("vocos")[0]
    shouted = Spoken(first.text.upper().replace(",", ""), first.mel)
    assert recording_of(shouted) is first
    assert recording_of(Spoken("something else", first.mel, id=first.id)) is first
    assert recording_of(Spoken("never recorded", first.mel)) is None
    assert recording_of(replace(shouted, kind="bigvgan")).kind == "bigvgan"


def test_samples_without_a_recording_or_broken_ones_leave_no_nan_behind() -> None:
    first = recordings("vocos")[0]
    unknown = evaluate_speech([Spoken("never recorded", first.mel)])
    assert unknown["mcd"].n == 0
    assert unknown["silence"].n == 1
    broken = evaluate_speech([replace(first, mel=np.full_like(first.mel, np.nan))])
    assert np.isfinite(broken["score"].value)
    assert broken["score"].value < -10
    assert evaluate_speech([])["score"].n == 0


def test_paired_is_the_root_mean_square_over_all_frames() -> None:
    a, b = recordings("vocos")[:2]
    moved = [replace(a, mel=a.mel.clip(-11, 7) + 0.5), replace(b, mel=b.mel.clip(-11, 7))]
    still = [replace(s, mel=s.mel.clip(-11, 7)) for s in (a, b)]
    expected = 0.5 * np.sqrt(len(a) / (len(a) + len(b)))
    assert paired(moved, still).value == pytest.approx(expected, rel=1e-5)
    assert paired(still, still).value == 0
    assert paired([], []).n == 0
    with pytest.raises(XDistillError, match="one noise and one request"):
        paired([a], [b])
