"""Audio files: what is written is read again, at any rate, and nothing is ever overwritten."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from xdistill.domains.speech import audio
from xdistill.errors import UsageError, XDistillError


def tone(rate: int, hertz: float = 440.0, seconds: float = 0.5, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_written_audio_is_read_again(tmp_path: Path, suffix: str) -> None:
    samples = tone(24000)
    path = audio.write(samples, 24000, tmp_path / "deep" / f"a.{suffix}")
    assert np.abs(audio.read(path, 24000) - samples).max() < 1 / 32000
    assert audio.info(path) == audio.Info(12000, 24000, 1)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = audio.write(tone(24000), 24000, tmp_path / "a.wav")
    before = path.read_bytes()
    with pytest.raises(XDistillError, match="exists already"):
        audio.write(tone(24000, 200.0), 24000, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_any_rate_becomes_24_khz_in_place(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    ours, true = audio.read(tmp_path / "a.wav", 24000), tone(24000)
    assert len(ours) == -(-int(rate * 0.5) * 24000 // rate)
    middle = slice(1000, 11000)
    assert np.abs(ours[middle] - true[middle]).max() < 2e-3


def test_what_lies_above_the_new_band_is_gone(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(48000, 15000.0), 48000, subtype="FLOAT")
    assert np.abs(audio.read(tmp_path / "a.wav", 24000)[1000:-1000]).max() < 1e-3


def test_channels_are_averaged(tmp_path: Path) -> None:
    samples = tone(24000)
    soundfile.write(tmp_path / "a.wav", np.stack([samples, -samples, samples], 1), 24000, subtype="FLOAT")
    assert np.allclose(audio.read(tmp_path / "a.wav", 24000), samples / 3, atol=1e-6)


def test_loud_samples_clip_and_do_not_wrap() -> None:
    import io

    read, _ = soundfile.read(io.BytesIO(audio.encode(np.array([0.0, 1.0, -1.0, 3.0, -3.0]), 24000)))
    assert np.allclose(read, [0, 1, -1, 1, -1], atol=1e-4)


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown audio format 'mp4'"):
        audio.encode(tone(24000), 24000, "mp4")
    with pytest.raises(XDistillError, match="finite samples"):
        audio.encode(np.array([0.0, np.nan]), 24000)
    with pytest.raises(XDistillError, match="is no file"):
        audio.info(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("not a sound")
    for reader in (audio.info, lambda path: audio.read(path, 24000)):
        with pytest.raises(XDistillError, match="cannot be read as audio"):
            reader(tmp_path / "text.wav")
