"""Utterances in files: sound with tags, mels, packed shards; what cannot be read or written."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speech_student import hum, write_sound

from xdistill.domains.speech import codec
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.sound_stream import SoundRecorder
from xdistill.domains.speech.spoken import Spoken
from xdistill.errors import UsageError, XDistillError

SPEC, CHOICE = MelSpec("vocos"), "griffin_lim"


def utterance(seconds: float = 0.3, text: str = "Hm, Grüße.", **more: object) -> Spoken:
    found = mel(torch.from_numpy(hum(seconds)), SPEC).T.contiguous().numpy()
    return replace(Spoken(text, found), **more)


def same(a: Spoken, b: Spoken) -> None:
    assert np.array_equal(a.mel, b.mel)
    assert (a.text, a.kind, a.gain, a.id) == (b.text, b.kind, b.gain, b.id)


def test_sound_says_what_it_is() -> None:
    sample = utterance()
    data = codec.encode(sample, "wav", CHOICE)
    with soundfile.SoundFile(BytesIO(data)) as file:
        assert (file.samplerate, file.channels, file.subtype) == (24000, 1, "PCM_16")
        assert (file.comment, file.title) == (codec.COMMENT, "Hm, Grüße.")
        found = file.read(dtype="int16")
    assert len(found) == round(sample.seconds * 24000)
    assert np.array_equal(found, codec.whole(codec.waveform(sample, CHOICE)))
    assert codec.encode(sample, "wav", CHOICE) == data
    flac = codec.encode(sample, "flac", CHOICE)
    assert np.array_equal(soundfile.read(BytesIO(flac), dtype="int16")[0], found)
    assert codec.encode(sample, "flac", CHOICE) == flac


def test_gain_is_undone_in_the_sound() -> None:
    sample = utterance()
    plain, soft = (codec.waveform(s, CHOICE) for s in (sample, replace(sample, gain=4.0)))
    np.testing.assert_allclose(soft * 4, plain, atol=1e-6)


def test_files_come_back(tmp_path: Path) -> None:
    sample = utterance(gain=2.0, id="clip-7")
    assert codec.write(sample, tmp_path / "a", CHOICE) == tmp_path / "a.wav"
    codec.write(sample, tmp_path / "b.npz", CHOICE)
    heard, kept = codec.load(tmp_path / "a.wav", SPEC), codec.load(tmp_path / "b.npz", SPEC)
    same(kept, sample)
    assert heard.text == sample.text
    assert abs(len(heard) - len(sample)) <= 1
    np.testing.assert_array_equal(codec.waveform(heard, CHOICE), heard.audio)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.npz"], "nothing half written is left"


def test_folders_of_anyone(tmp_path: Path) -> None:
    for name, rate in (("b", 8000), ("a", 44100), ("c", 24000)):
        write_sound(tmp_path / f"{name}.wav", np.stack([hum(0.4, rate)] * 2, 1), rate)
    (tmp_path / "a.txt").write_text("from a text\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"text": "from json"}), encoding="utf-8")
    found = codec.read(tmp_path, SPEC)
    assert [s.text for s in found] == ["from a text", "from json", ""]
    assert [len(s) for s in found] == [SPEC.frames(9600)] * 3
    np.testing.assert_allclose(found[1].levels[5:-5], found[2].levels[5:-5], atol=3)
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(XDistillError, match=r'b\.json: expected a JSON object with "text"'):
        codec.read(tmp_path, SPEC)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(XDistillError, match="files to read"):
        codec.read(empty, SPEC)


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    sample = utterance()
    for name in ("a.WAV", "b.Flac", "c.NPZ", "d.wav"):
        assert codec.write(sample, tmp_path / name, CHOICE) == tmp_path / name
    (tmp_path / f"e{codec.PACKED_SUFFIX.upper()}").write_bytes(codec.pack([sample], [0]))
    found = codec.read(tmp_path, SPEC)
    assert [s.text for s in found] == [sample.text] * 4
    assert [s.audio is None for s in found] == [False, False, True, False]


def test_packed_shards_are_exact() -> None:
    samples = [utterance(0.2, "one", id="x"), utterance(0.3, "zwei ß", gain=3.0), utterance(0.2, "", kind="bigvgan")]
    data = codec.pack(samples, [4, 2, 9])
    assert codec.pack(samples, [4, 2, 9]) == data
    found = codec.unpack(data)
    assert list(found) == [4, 2, 9]
    for a, b in zip(found.values(), samples, strict=True):
        same(a, b)
    assert codec.encode(found[2], "wav", CHOICE) == codec.encode(samples[1], "wav", CHOICE)
    assert codec.pack(list(found.values()), [4, 2, 9]) == data
    for broken in (b"", data[:-30], data[:200] + b"\0" * 50 + data[250:]):
        with pytest.raises(XDistillError, match="damaged"):
            codec.unpack(broken)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'mp3'"):
        codec.encode(utterance(), "mp3", CHOICE)
    broken = utterance()
    broken.mel[3] = np.nan
    with pytest.raises(XDistillError, match="NaN"):
        codec.encode(broken, "wav", CHOICE)
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(XDistillError, match="expected a mel"):
        codec.load(tmp_path / "x.npz", SPEC)


def quieter(wave: np.ndarray, rate: int) -> np.ndarray:
    """A watermark for the tests."""
    assert rate == 24000
    return wave * 0.5


def test_watermark() -> None:
    sample, mark = utterance(), codec.find_watermark(f"{__name__}:quieter")
    plain, marked = (
        soundfile.read(BytesIO(codec.encode(sample, "wav", CHOICE, function)))[0] for function in (None, mark)
    )
    np.testing.assert_allclose(marked, plain / 2, atol=1e-4)
    for wrong in ("nowhere:f", f"{__name__}:nothing", f"{__name__}:SPEC", "", ":"):
        with pytest.raises(UsageError, match="expected module:function"):
            codec.find_watermark(wrong)


class TestStream:
    @pytest.mark.parametrize("name", ["out.wav", "out.flac", "out"])
    def test_parts_are_cross_faded(self, tmp_path: Path, name: str) -> None:
        parts = [np.full(24000, level, np.float32) for level in (0.2, -0.1, 0.4)]
        waves = iter(parts)
        recorder = SoundRecorder(str(tmp_path / name), lambda _: next(waves))
        heard = []
        for _ in parts:
            recorder.add(utterance())
            heard.append(recorder.seconds)
        recorder.close()
        assert heard == pytest.approx([0.85, 1.7, 2.55]), "all but the end of a part is there at once"
        path = tmp_path / (name if "." in name else "out.wav")
        with soundfile.SoundFile(str(path)) as file:
            assert file.comment == codec.COMMENT
            found = file.read()
        assert len(found) / 24000 == pytest.approx(recorder.seconds) == pytest.approx(2.7)
        assert found[[100, 20399, 24001, 40799, 44500]] == pytest.approx([0.2, 0.2, -0.1, -0.1, 0.4], abs=1e-3)
        assert np.abs(np.diff(found)).max() < 3e-4, "no click"

    def test_the_standard_output_gets_samples(self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        recorder = SoundRecorder("-", lambda _: hum(0.5))
        recorder.add(utterance())
        recorder.close()
        found = np.frombuffer(capfdbinary.readouterr().out, "<i2")
        assert np.array_equal(found, codec.whole(hum(0.5)))

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.wav").mkdir()
        with pytest.raises(UsageError, match="is a folder"):
            SoundRecorder(str(tmp_path / "x.wav"), lambda _: hum(0.5))
