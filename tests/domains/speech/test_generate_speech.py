"""`xdistill generate domain=speech`: texts, files of texts, voices, streams, shards; its bits and its messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from speech_student import CHARACTERS, SYMBOLS, hum, random_flow, write_checkpoint, write_sound

from xdistill.cli import main
from xdistill.domains.speech.requests import parse_request
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.vocos import Vocos, VocosConfig, save_vocos
from xdistill.evaluation import read_samples
from xdistill.generation import Engine, Job, generate
from xdistill.generation.maker import Artist
from xdistill.student import Loaded, load_student


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("speech") / "student", random_flow())


@pytest.fixture(scope="session")
def vocos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocoder of random weights: fast."""
    folder = tmp_path_factory.mktemp("vocos")
    save_vocos(Vocos(VocosConfig(dim=8, intermediate=8, layers=1), torch.Generator().manual_seed(0)), folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Loaded:
    return load_student(checkpoint)


def job(loaded: Loaded, num: int = 6, **request: object) -> Job:
    return Job(loaded, num, batch=32, options={"steps": 1}, request=request or {"text": "No, thanks."}, format="npz")


def drawn(job: Job) -> dict[int, Spoken]:
    artist = Artist(job)
    try:
        made = [artist.draw(job.plan[n]).designs for n in range(job.plan.shards)]
    finally:
        artist.close()
    return {i: design.sample for part in made for i, design in part.items()}


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "timings.jsonl"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_a_text_becomes_sound(checkpoint: Path, vocos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = ["generate", "domain=speech", f"ckpt={checkpoint}", "text=No.", "steps=2", f"vocoder=vocos:{vocos}"]
    assert main([*base, "num=2", f"out={tmp_path / 'a'}"]) == 0
    assert "2 network calls each" in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "a" / "manifest.parquet").to_pylist()
    sounds = [soundfile.read(tmp_path / "a" / row["file"]) for row in rows]
    assert all(
        rate == 24000 and abs(len(wave) / rate - row["seconds"]) < 1e-6
        for (wave, rate), row in zip(sounds, rows, strict=True)
    )
    assert not np.array_equal(sounds[0][0], sounds[1][0])
    assert main([*base, "num=1", "format=flac", f"out={tmp_path / 'b'}"]) == 0
    assert np.array_equal(soundfile.read(tmp_path / "b" / "sample_000000.flac")[0], sounds[0][0])


def test_a_line_each_with_voices(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("pocketsphinx")
    write_sound(tmp_path / "voice.wav", hum(1.0))
    lines = [
        {"text": "No.", "duration": 1},
        {"text": "Yes, blorptic.", "speed": 2},
        {"text": "No.", "ref": "voice.wav", "ref_text": "hum"},
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "\nHello.\n")
    base = ["generate", "domain=speech", f"ckpt={checkpoint}", "format=npz", "say.blorptic=B L AH"]
    assert main([*base, f"texts={tmp_path / 'texts.jsonl'}", f"out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr()
    assert "4 samples" in said.out
    assert "the person it belongs to" in said.err
    found = read_samples(load_student(checkpoint).domain, tmp_path / "out")
    assert [s.text for s in found] == ["No.", "Yes, blorptic.", "No.", "Hello."]
    assert len(found[0]) == round(93.75)
    assert found[2].gain > 1
    (tmp_path / "texts.jsonl").write_text(json.dumps(lines[0]))
    assert main([*base, f"texts={tmp_path / 'texts.jsonl'}", f"out={tmp_path / 'out'}"]) == 2, "another file"
    assert "texts" in capsys.readouterr().err


def test_bits_do_not_depend_on_the_batch(loaded: Loaded) -> None:
    for request in ({"text": "No, thanks."}, {}):
        base = replace(job(loaded, 7), request=request)
        whole = drawn(base)
        for other in (replace(base, batch=2, num=3), replace(base, batch=5, num=6)):
            for i, sample in drawn(other).items():
                assert np.array_equal(sample.mel, whole[i].mel), i
        assert not np.array_equal(drawn(replace(base, num=1, seed=1))[0].mel, whole[0].mel)


@pytest.mark.parametrize("format", ["npz", "packed"])
def test_folder_does_not_depend_on_processes_and_resumes(loaded: Loaded, tmp_path: Path, format: str) -> None:
    base = replace(job(loaded, 8), batch=2, shard=2, format=format)
    generate(base, tmp_path / "one")
    generate(base, tmp_path / "two", Engine(workers=2, devices=["cpu"]))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(read_samples(loaded.domain, tmp_path / "one")) == 8
    victim = sorted(p for p in (tmp_path / "two").rglob("*.npz"))[1]
    victim.unlink()
    assert generate(base, tmp_path / "two").made == 2
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_packed_shards_are_extracted_with_any_vocoder(
    checkpoint: Path, vocos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = ["generate", "domain=speech", f"ckpt={checkpoint}", "text=No.", "num=2"]
    assert main([*base, "format=packed", f"out={tmp_path / 'packed'}"]) == 0
    chosen = [f"vocoder=vocos:{vocos}", "format=flac"]
    assert main(["extract", str(tmp_path / "packed"), *chosen, f"out={tmp_path / 'some'}"]) == 0
    assert main([*base, *chosen, f"out={tmp_path / 'direct'}"]) == 0
    for name in ("sample_000000.flac", "sample_000001.flac"):
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()


def test_stream(checkpoint: Path, vocos: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    text = "Thank you for calling. Please hold while I try to connect you, or press zero now. Good bye!"
    base = ["generate", "domain=speech", f"ckpt={checkpoint}", f"text={text}", "stream=true", f"vocoder=vocos:{vocos}"]
    assert main([*base, f"out={tmp_path / 'all.wav'}"]) == 0
    said = capfd.readouterr().err
    assert "in 3 parts, the first after" in said
    wave, rate = soundfile.read(tmp_path / "all.wav", dtype="int16")
    assert f"{len(wave) / rate:.1f} s" in said
    assert main([*base, "duration=3"]) == 2
    assert "leave it out with stream=true" in capfd.readouterr().err


def voices(folder: Path) -> None:
    """Recordings that are no voice prompt."""
    write_sound(folder / "good.wav", hum(2.0))
    write_sound(folder / "stereo8k.wav", np.stack([hum(2.0, 8000)] * 2, 1), 8000)
    write_sound(folder / "empty.wav", np.zeros(0, np.float32))
    write_sound(folder / "silent.wav", np.zeros(48000, np.float32))
    write_sound(folder / "clipped.wav", hum(2.0, level=5.0).clip(-1, 1))
    write_sound(folder / "short.wav", hum(0.1))
    write_sound(folder / "broken.wav", np.full(48000, np.nan, np.float32), subtype="FLOAT")
    write_sound(folder / "telegraph.wav", hum(2.0, 4000), 4000)
    with soundfile.SoundFile(folder / "long.flac", "w", 8000, 1) as file:
        for _ in range(180):
            file.write(np.zeros(8000 * 60, np.int16))
    (folder / "text.wav").write_text("no sound")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "empty.txt").write_text("\n\n")
    (folder / "lines.jsonl").write_text('{"text": "No."}\n{"txet": "No."}\n')
    (folder / "odd.jsonl").write_text('{"text": "No.", "sped": 2}\n')
    (folder / "json.jsonl").write_text('{"text": "No."\n')
    for name, row in TYPES.items():
        (folder / f"{name}.jsonl").write_text(f"Yes.\n{row}\n")


#: Rows whose values are of another type than a line's.
TYPES = {
    "ref": '{"text": "No.", "ref": 5, "ref_text": "a hum"}',
    "refs": '{"text": "No.", "ref": ["a.wav"]}',
    "said": '{"text": "No.", "ref": "good.wav", "ref_text": {"a": 1}}',
    "fast": '{"text": "No.", "speed": "2"}',
    "true": '{"text": "No.", "duration": true}',
    "huge": '{"text": "No.", "duration": 1e999}',
    "null": '{"text": null, "ref": "good.wav"}',
    "number": '{"text": 5}',
    "half": '{"text": "No \\ud800"}',
    "deep": '{"text": ' + "[" * 99_999,
    "breaks": '{"text": "No.", "a\\nb": 1}',
    "name": '{"text": "No.", "ref": "' + "x" * 300 + '.wav", "ref_text": "a hum"}',
}


HUM = "ref_text=a hum"


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["text=No.", "ref=DIR/empty.wav", HUM], 1, "empty.wav is empty: give 2 to 12 seconds"),
        (["text=No.", "ref=DIR/silent.wav", HUM], 1, "silent.wav: the prompt is silent"),
        (["text=No.", "ref=DIR/clipped.wav", HUM], 1, "of it at full scale): record it with less gain"),
        (["text=No.", "ref=DIR/short.wav", HUM], 1, "0.10 s long, too short for a voice"),
        (["text=No.", "ref=DIR/long.flac", HUM], 1, "3.0 hours long, a voice prompt has at most 12 s: cut out a part"),
        (["text=No.", "ref=DIR/broken.wav", HUM], 1, "NaN or infinite samples"),
        (["text=No.", "ref=DIR/telegraph.wav", HUM], 1, "4000 samples a second: expected 8000 or more"),
        (["text=No.", "ref=DIR/text.wav", HUM], 1, "text.wav cannot be read as audio"),
        (["text=No.", "ref=DIR/none.wav", HUM], 1, "none.wav is no file"),
        (["text=No.", "ref=DIR/none.wav"], 1, "none.wav is no file"),
        (["text=No.", "steps=0"], 2, "steps=0: expected at least 1"),
        (["text=No.", "ref=DIR/good.wav"], 2, 'has no transcript: add ref_text="what it says"'),
        (["text=No.", "ref=DIR/good.wav", "ref_text= "], 2, "the transcript of ref="),
        (["text=No.", HUM], 2, "add ref=voice.wav"),
        (["ref=DIR/good.wav", HUM], 2, "says how, but not what: add text= or texts="),
        (["text="], 2, "text= is empty"),
        (["text=..."], 2, "nothing to say in '...'"),
        (["text=blorptic"], 2, "no pronunciation for the word blorptic"),
        (["text=Привет"], 2, "no pronunciation for the word"),
        (["text=blorptic", "say.blorptic=XX"], 2, "say.blorptic: unknown phones XX"),
        (["text=No.", "say.=B"], 2, "unknown key 'say.'"),
        (["text=No. " + "Press one, or press two. " * 20], 2, "the network says at most 22 s at once"),
        (["text=No.", "speed=9"], 2, "speed=9: expected 0.25 (slow) to 4 (fast)"),
        (["text=No.", "speed=fast"], 2, "speed=fast: expected a positive number"),
        (["text=No.", "duration=-1"], 2, "duration=-1: expected a positive number"),
        (["text=No.", "duration=0.01"], 2, "give it more time"),
        (["text=No.", "steps=-1"], 2, "steps=-1"),
        (["text=No.", "texts=DIR/lines.jsonl"], 2, "choose one"),
        (["texts=DIR/lines.jsonl"], 2, 'lines.jsonl line 2 has no "text"'),
        (["texts=DIR/odd.jsonl"], 2, "odd.jsonl line 1: unknown key 'sped': did you mean 'speed'"),
        (["texts=DIR/json.jsonl"], 2, "json.jsonl line 1 is no JSON object"),
        (["texts=DIR/ref.jsonl"], 2, "ref.jsonl line 2: ref is 5: expected a text in quotes"),
        (["texts=DIR/refs.jsonl"], 2, 'refs.jsonl line 2: ref is ["a.wav"]: expected a text in quotes'),
        (["texts=DIR/said.jsonl"], 2, 'said.jsonl line 2: ref_text is {"a": 1}: expected a text in quotes'),
        (["texts=DIR/fast.jsonl"], 2, 'fast.jsonl line 2: speed is "2": expected a number'),
        (["texts=DIR/true.jsonl"], 2, "true.jsonl line 2: duration is true: expected a number"),
        (["texts=DIR/huge.jsonl"], 2, "huge.jsonl line 2, duration=inf: expected a positive number"),
        (["texts=DIR/null.jsonl"], 2, 'null.jsonl line 2 has no "text"'),
        (["texts=DIR/number.jsonl"], 2, "number.jsonl line 2: text is 5: expected a text in quotes"),
        (["texts=DIR/half.jsonl"], 2, "half.jsonl line 2 is no JSON object"),
        (["texts=DIR/deep.jsonl"], 2, "deep.jsonl line 2 is no JSON object"),
        (["texts=DIR/breaks.jsonl"], 2, "breaks.jsonl line 2: unknown key"),
        (["texts=DIR/name.jsonl"], 2, "name.jsonl line 2: ref cannot be read (File name too long)"),
        (["texts=DIR/latin.txt"], 2, "latin.txt is not UTF-8"),
        (["texts=DIR/empty.txt"], 2, "has no line"),
        (["texts=DIR/none.txt"], 2, "No such file"),
        (["text=No.", "format=mp3"], 2, "unknown format 'mp3'"),
        (["text=No.", "vocoder=wavenet"], 2, "unknown vocoder 'wavenet'"),
        (["text=No.", "vocoder=vocos:DIR"], 1, "DIR"),
        (["text=No.", "watermark=nowhere:mark"], 2, "watermark=nowhere:mark"),
        (["stream=true"], 2, "give text="),
        (["text=No.", "stream=true", "format=wav"], 2, "leave it out"),
        (["length=4"], 2, "unknown key 'length'"),
    ],
)
def test_bad_input(
    checkpoint: Path,
    voices_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    given: list[str],
    code: int,
    message: str,
) -> None:
    given = [text.replace("DIR", str(voices_folder)) for text in given]
    out = tmp_path / "out"
    assert main(["generate", "domain=speech", f"ckpt={checkpoint}", f"out={out}", *given]) == code
    said = capsys.readouterr().err.strip()
    assert message.replace("DIR", str(voices_folder)) in said
    assert "\n" not in said
    assert not list(out.rglob("*.wav"))


@pytest.fixture(scope="module")
def voices_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    voices(folder)
    return folder


def test_null_in_a_line_is_absent(voices_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "No.", "ref": None, "ref_text": None, "duration": None, "speed": None},
        {"text": "No.", "ref": str(voices_folder / "good.wav"), "ref_text": "a hum", "speed": None},
        {"text": "No."},
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for common in ({}, {"speed": 2.0, "ref": str(voices_folder / "stereo8k.wav"), "ref_text": 5}):
        asked = parse_request({"texts": str(tmp_path / "texts.jsonl"), **common})
        assert asked is not None
        assert replace(asked.asks[0], where="") == replace(asked.asks[2], where="")
        assert [ask.speed for ask in asked.asks] == [common.get("speed", 1.0)] * 3
        assert [ask.voice.text if ask.voice else None for ask in asked.asks[:2]] == ["5" if common else None, "a hum"]


def test_stereo_and_telephone_recordings_are_taken(checkpoint: Path, voices_folder: Path, tmp_path: Path) -> None:
    request = ["text=No.", f"ref={voices_folder / 'stereo8k.wav'}", HUM, "format=npz", "say.blorptic=B"]
    assert main(["generate", "domain=speech", f"ckpt={checkpoint}", f"out={tmp_path / 'out'}", *request]) == 0


def test_a_vocoder_of_the_other_mel(vocos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flow = random_flow(**CHARACTERS, mel_spec_type="bigvgan")
    path = write_checkpoint(tmp_path / "student", flow, SYMBOLS)
    base = ["generate", "domain=speech", f"ckpt={path}", "text=How do you do", "duration=1", f"out={tmp_path / 'out'}"]
    assert main([*base, f"vocoder=vocos:{vocos}"]) == 1
    said = capsys.readouterr().err
    assert "mel kind 'bigvgan' met 'vocos'" in said
    assert "use two parts of one kind" in said
    assert main([*base, "num=1", "format=npz"]) == 0
    base[3] = "text=Ça va"
    assert main([*base[:-1], f"out={tmp_path / 'two'}"]) == 2
    assert "outside the network's vocabulary: 'Ç'" in capsys.readouterr().err
