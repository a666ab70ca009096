"""What streaming must not do to files, and what makes two voices the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from speech_student import hum, random_flow, write_checkpoint, write_sound

from xdistill.cli import main
from xdistill.domains.speech.voices import read_voice


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("stream") / "student", random_flow())
    return ["generate", "domain=speech", f"ckpt={checkpoint}", "stream=true", "steps=1"]


def test_nothing_is_overwritten(stream: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = write_sound(tmp_path / "call.wav", hum(1.0))
    before = out.read_bytes()
    assert main([*stream, "text=No.", f"out={out}"]) == 2
    assert "nothing is overwritten" in capfd.readouterr().err
    assert out.read_bytes() == before


def test_what_cannot_be_said_leaves_no_file(
    stream: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "call.WAV"
    long = "Please hold while I try to connect your call to the person that you have asked for, and thank you. " * 2
    assert main([*stream, f"text={long} Zorblaxqq.", f"out={out}"]) != 0
    assert "zorblaxqq" in capfd.readouterr().err.lower()
    assert not out.exists()
    assert main([*stream, "text=No.", f"out={out}"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["call.WAV"]


def test_a_corrected_transcript_is_another_voice(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "voice.wav", hum(2.0))
    voices = [read_voice(str(sound), text) for text in ("Good day.", "Good  day.", "Good night.")]
    assert voices[0].identity == voices[1].identity != voices[2].identity
