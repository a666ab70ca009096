"""A user's folder: three kinds of transcripts, every reason to leave a recording out, and clear last words."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from xdistill.domains.speech import audio, folders
from xdistill.domains.speech.tokens import SpeechTokenizer
from xdistill.errors import UsageError, XDistillError


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


def voice(path: Path, seconds: float = 1.0, level: float = 0.3, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(int(rate * seconds)) * level / 4
    soundfile.write(path, noise.clip(-level, level), rate)
    return path


def test_ljspeech(tmp_path: Path) -> None:
    voice(tmp_path / "wavs" / "LJ001.wav")
    voice(tmp_path / "wavs" / "LJ002.wav")
    voice(tmp_path / "wavs" / "LJ003.wav")
    (tmp_path / "metadata.csv").write_text('LJ001|Dr. "X"|Doctor "X"\nLJ002|Only one\nLJ009|Gone|Gone\nbroken\n\n')
    kept, report = folders.scan(tmp_path)
    assert [(r.path.name, r.text) for r in kept] == [("LJ001.wav", 'Doctor "X"'), ("LJ002.wav", "Only one")]
    assert report.counts == {"audio not found": 1, "bad line": 1, "no transcript": 1}
    assert report.examples["audio not found"] == ["metadata.csv line 3 (LJ009)"]
    assert kept[0].audio(24000).shape == (24000,)


def test_json_lines(tmp_path: Path) -> None:
    voice(tmp_path / "a.wav")
    rows = [{"audio": "a.wav", "text": "One."}, {"audio": "a.wav", "text": "Two."}, {"text": "x"}, [1]]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n")
    for source in (tmp_path, tmp_path / "all.jsonl"):
        kept, report = folders.scan(source)
        assert [(r.id, r.text) for r in kept] == [("a.wav", "One.")]
        assert report.counts == {"listed twice": 1, "bad line": 3}


def test_a_row_that_no_file_can_match_is_a_bad_line(tmp_path: Path) -> None:
    voice(tmp_path / "wavs" / "a.wav")
    (tmp_path / "metadata.csv").write_text(f"{'x' * 300}|Long\na|Good\n{'s/' * 3000}b|Deep\n")
    kept, report = folders.scan(tmp_path)
    assert [r.text for r in kept] == ["Good"]
    assert report.counts == {"bad line": 2}
    (tmp_path / "all.jsonl").write_text('{"audio": "wavs/a.wav", "text": "\\ud800"}\n{"audio": "a", "text": "Good"}')
    kept, report = folders.scan(tmp_path / "all.jsonl")
    assert [r.text for r in kept] == ["Good"]
    assert report.counts == {"bad line": 1}


def test_ids_of_several_recordings(tmp_path: Path) -> None:
    for name in ("s1/001", "s2/001", "s2/002", "003", "s1/003"):
        voice(tmp_path / f"{name}.wav")
    rows = "001|Whose?\ns2/001|Second\n002|Alone\n003|On top\ns1/003|Below\n"
    (tmp_path / "metadata.csv").write_text(rows)
    kept, report = folders.scan(tmp_path)
    assert {r.id: r.text for r in kept} == {
        "s2/001.wav": "Second",
        "s2/002.wav": "Alone",
        "003.wav": "On top",
        "s1/003.wav": "Below",
    }
    assert report.counts == {"audio not found": 1, "no transcript": 1}
    assert report.examples["audio not found"] == ["metadata.csv line 1 (ambiguous id 001: s1/001.wav or s2/001.wav)"]
    assert report.examples["no transcript"] == ["s1/001.wav"]


def test_texts_beside(tmp_path: Path) -> None:
    voice(tmp_path / "b" / "x.flac", rate=44100).with_suffix(".lab").write_text("Two\n words\n")
    voice(tmp_path / "a.wav").with_suffix(".txt").write_text("One.")
    voice(tmp_path / "alone.wav")
    voice(tmp_path / ".hidden" / "h.wav").with_suffix(".txt").write_text("Hidden.")
    kept, report = folders.scan(tmp_path)
    assert [(r.id, r.text) for r in kept] == [("a.wav", "One."), ("b/x.flac", "Two words")]
    assert report.counts == {"no transcript": 1}
    assert report.to_dict()["skipped"]["no transcript"] == {"count": 1, "examples": ["alone.wav"]}


def empty_header(path: Path) -> None:
    soundfile.write(path, np.zeros(0), 16000)


def square(path: Path) -> None:
    soundfile.write(path, np.sign(np.sin(np.arange(16000) / 20)), 16000)


REASONS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no samples": ("empty", empty_header),
    "no bytes": ("empty", lambda path: path.write_bytes(b"")),
    "text": ("not audio", lambda path: path.write_text("RIFF but no sound")),
    "cut header": ("not audio", lambda path: path.write_bytes(voice(path).read_bytes()[:30])),
    "square": ("clipped", square),
    "still": ("silent", lambda path: soundfile.write(path, np.zeros(16000), 16000)),
    "long": ("too long", lambda path: voice(path, 31.0)),
    "short": ("too short", lambda path: voice(path, 0.2)),
}


@pytest.mark.parametrize("case", REASONS)
def test_bad_recordings_are_named_and_the_good_one_stays(tmp_path: Path, case: str) -> None:
    reason, make = REASONS[case]
    voice(tmp_path / "good.wav").with_suffix(".txt").write_text("Good.")
    make(tmp_path / "bad.wav")
    (tmp_path / "bad.txt").write_text("Bad.")
    kept, report = folders.scan(tmp_path)
    assert [r.id for r in kept] == ["good.wav"]
    assert dict(report.counts) == {reason: 1}
    assert report.examples == {reason: ["bad.wav"]}


def test_bad_texts(tmp_path: Path) -> None:
    for name, text in {"good": b"Good.", "empty": b" \n", "latin": b"caf\xe9", "odd": "日本".encode()}.items():
        voice(tmp_path / f"{name}.wav").with_suffix(".txt").write_bytes(text)
    kept, report = folders.scan(tmp_path, folders.Limits(tokenizer=SpeechTokenizer("char", tuple("God."))))
    assert [r.id for r in kept] == ["good.wav"]
    assert report.counts == {"empty text": 1, "not UTF-8": 1, "unknown characters": 1}
    assert report.table().row_count == 3


def test_hours_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 8000, 1, "PCM_U8") as file:
        for _ in range(3):
            file.write(np.zeros(8000 * 20))
    (tmp_path / "long.txt").write_text("A long day.")
    monkeypatch.setattr(audio, "read_channels", lambda path: pytest.fail("read"))
    with pytest.raises(XDistillError, match=r"too long 1x, e\.g\. long\.wav: cut it"):
        folders.scan(tmp_path)


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(XDistillError, match="does not exist"):
        folders.scan(tmp_path / "none")
    with pytest.raises(XDistillError, match="no recording in"):
        folders.scan(tmp_path)
    voice(tmp_path / "a.wav")
    with pytest.raises(XDistillError, match=r"no transcript 1x, e\.g\. a\.wav: write its words"):
        folders.scan(tmp_path)
    (tmp_path / "metadata.csv").write_text("\n")
    with pytest.raises(XDistillError, match="no transcript"):
        folders.scan(tmp_path)


def test_an_empty_list_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("")
    with pytest.raises(XDistillError, match="no usable recording"):
        folders.scan(tmp_path)


def test_the_same_sentence_is_on_one_side(tmp_path: Path) -> None:
    for number in range(60):
        voice(tmp_path / f"{number:02}.wav", 0.5).with_suffix(".txt").write_text(f"Sentence {number // 2}.")
    kept, report = folders.scan(tmp_path, folders.Limits(holdout=0.3))
    sides = {text: {r.split for r in kept if r.text == text} for text in {r.text for r in kept}}
    assert all(len(side) == 1 for side in sides.values())
    assert 0 < report.held_out == sum(r.split == "heldout" for r in kept) < 60
    for wrong in ({"holdout": 1.0}, {"shortest": 3.0, "longest": 2.0}):
        with pytest.raises(UsageError):
            folders.Limits(**wrong)
