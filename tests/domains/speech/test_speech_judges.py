"""Judges that listen, on recordings and noise. Each is skipped where its package is absent."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from xdistill.domains.speech import corpus, judges
from xdistill.domains.speech.griffin_lim import GriffinLim
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.metrics import recordings
from xdistill.domains.speech.resampling import resample
from xdistill.errors import UsageError, XDistillError

VOCODER = GriffinLim(MelSpec("vocos"), iterations=4)


def needs(judge: str) -> pytest.MarkDecorator:
    try:
        judges.require(judge)
    except UsageError as absent:
        return pytest.mark.skip(reason=str(absent))
    return pytest.mark.skipif(False, reason="")


def natural(n: int) -> list:
    """The first held-out recordings, to be heard as they were recorded."""
    audio = {c.id: c.audio() for c in corpus.clips("heldout")}
    return [replace(s, audio=resample(audio[s.id], corpus.RATE, 24000)) for s in recordings("vocos")[:n]]


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), (["ab", "cd"], ["cd"], 1)]
)
def test_edits(a: str, b: str, distance: int) -> None:
    assert judges.edits(a, b) == judges.edits(b, a) == distance


@needs("wer")
def test_the_recogniser_hears_what_was_said_and_errs_on_noise() -> None:
    two = natural(3)[1:]
    found = judges.intelligibility(two, VOCODER)
    assert found["cer"].value < 0.05
    assert found["wer"].n == 2
    swapped = [replace(a, text=b.text) for a, b in zip(two, two[::-1], strict=True)]
    assert judges.intelligibility(swapped, VOCODER)["wer"].value > 0.5


@needs("wer")
def test_clips_under_two_seconds_or_without_text_are_not_scored() -> None:
    one = natural(1)[0]
    short = replace(one, mel=one.mel[:150])
    assert judges.intelligibility([short, replace(one, text="")], VOCODER)["wer"].n == 0
    assert judges.intelligibility([], VOCODER)["cer"].n == 0


@needs("speaker")
def test_the_speaker_encoder_knows_its_voice() -> None:
    a, b = (corpus.clips("heldout")[i].audio() for i in (0, 5))
    deep = resample(a, 16000, 24000)  # played at 16 kHz: a slower, deeper voice
    assert judges.voice(a) @ judges.voice(b) > 0.75
    assert judges.voice(a) @ judges.voice(deep) < judges.voice(a) @ judges.voice(b) - 0.1
    assert judges.speaker(natural(1), VOCODER)["speaker"].value > 0.99


@needs("mos")
def test_opinion_prefers_speech_to_noise_and_leaves_no_module_behind() -> None:
    speech = judges.opinion(natural(1), VOCODER)["mos"].value
    noise = judges.predicted_mos(np.random.default_rng(0).normal(size=48000).astype(np.float32) * 0.1)
    assert speech > 3.5
    assert noise < 2.7
    assert getattr(sys.modules.get("torchaudio"), "__version__", None) or "torchaudio" not in sys.modules


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    for name, judge in judges.JUDGES.items():
        with pytest.raises(UsageError, match=rf"metrics={name} needs .*pip install"):
            judge([], VOCODER, 0)


def test_other_weights_are_refused(tmp_path) -> None:
    (tmp_path / "model.bin").write_bytes(b"other")
    with pytest.raises(XDistillError, match=r"sha256 .* expected 1a5afae06a4d"):
        judges.checked(tmp_path / "model.bin")


def test_sound_is_the_recording_or_the_vocoded_mel_and_gain_is_undone() -> None:
    one = recordings("vocos")[0]
    sample = replace(one, mel=one.mel[:40])
    plain, loud = judges.heard(sample, VOCODER), judges.heard(replace(sample, gain=0.5), VOCODER)
    assert len(plain) == 39 * 256 * 2 // 3
    assert np.abs(loud - 2 * plain).max() < 1e-5
    broken = replace(sample, mel=np.full_like(sample.mel, np.nan))
    assert np.isfinite(judges.heard(broken, VOCODER)).all()
