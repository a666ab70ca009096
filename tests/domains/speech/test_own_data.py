"""A user's own recordings: prepared, cached, trained on, measured against; by networks of phones and of characters."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors.torch import save_file
from speech_student import SIZES, hum, random_flow

from xdistill.cli import main
from xdistill.cli.student import options
from xdistill.config import compose
from xdistill.domains.speech import SpeechDomain, corpus, own_data, prepared
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.network import PRESETS, F5Config
from xdistill.domains.speech.resampling import resample
from xdistill.domains.speech.utterances import utterances
from xdistill.errors import UsageError
from xdistill.run import fit
from xdistill.student import load_network, load_student

CLIPS = sorted(corpus.clips("heldout"), key=lambda c: c.seconds)[:6]
ALIGNED = {"vocab_size": 64, "tokenizer": "phones", "aligned": True, "mel_mean": -1.85, "mel_std": 2.8}
TINY = {
    "aligned": F5Config.from_dict({**SIZES, **ALIGNED}),
    "char": F5Config.from_dict({**SIZES, "tokenizer": "char"}),
    "pinyin": F5Config.from_dict({**SIZES, "tokenizer": "pinyin"}),
}


FIT = "fit domain=speech domain.size=aligned objective=flow_matching eval=none logger=none train.steps=1"


@pytest.fixture(autouse=True)
def _own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
    for kind, config in TINY.items():
        monkeypatch.setitem(PRESETS, kind, config)
    own_data.load_own.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips as stereo WAV of 22.05 kHz with LJSpeech's list, one word of which no dictionary has."""
    path = tmp_path_factory.mktemp("mine")
    (path / "wavs").mkdir()
    lines = []
    for i, clip in enumerate(CLIPS):
        wave = resample(clip.audio(), corpus.RATE, 22050)
        soundfile.write(path / "wavs" / f"{i}.wav", np.stack([wave, wave], 1), 22050)
        lines.append(f"{i}|{clip.text}")
    soundfile.write(path / "wavs" / "odd.wav", hum(1.0, 8000), 8000)
    (path / "metadata.csv").write_text("\n".join([*lines, "odd|Xqzzt."]) + "\n")
    return path


def domain(path: Path, **options: object) -> SpeechDomain:
    found = SpeechDomain(options)
    found.data_path = str(path)
    return found


def config(path: Path, out: Path, size: str) -> DictConfig:
    data = [f"data.path={path}", "data.batch=2", f"domain.size={size}", "domain.holdout=0.2"]
    short = ["eval=none", "logger=none", "train.steps=2", f"out={out}"]
    return compose(["domain=speech", "objective=flow_matching", *data, *short])


@pytest.mark.parametrize("size", ["aligned", "char"])
def test_fit_and_sample(folder: Path, tmp_path: Path, size: str) -> None:
    run = fit(config(folder, tmp_path / "run", size))
    report = json.loads((run / "data_report.json").read_text())
    known = {"aligned": 6, "char": 7}[size]
    assert report["recordings"] == known
    assert 1 <= report["held_out"] <= 3
    assert report["text"] == {"aligned": "phones aligned by pocketsphinx", "char": "characters (char)"}[size]
    left = {"unknown words": {"count": 1, "examples": ["wavs/odd.wav (xqzzt)"]}}
    assert report["skipped"] == ({} if size == "char" else left)
    loaded = load_student(run)
    assert isinstance(loaded.domain, SpeechDomain)
    batch = loaded.domain.plan(range(2), 0)
    texts = batch.like.layout.texts
    assert set(texts) <= {c.text for c in CLIPS} | {"Xqzzt."}
    with torch.no_grad():
        state = loaded.objective.sample(loaded.model, batch.like, batch.cond, torch.Generator().manual_seed(0), steps=1)
    samples = loaded.domain.decode(state)
    assert [s.text for s in samples] == list(texts)
    found = loaded.domain.metrics(samples)
    assert found["duration_ratio"].value == pytest.approx(1.0)
    assert np.isfinite(found["score"].value)
    perfect = loaded.domain.metrics(loaded.domain.reference_samples(2, 0))
    assert perfect["mcd"].value == 0
    if size == "char":
        assert loaded.domain.vocabulary[0] == " "
        assert set(loaded.domain.vocabulary) == set("".join(c.text for c in CLIPS) + "Xqzzt. ")
        again = SpeechDomain({"holdout": 0.2})
        again.teacher_weights, again.data_path = str(run), str(folder)
        again.teacher()
        assert list(again.vocabulary) == list(loaded.domain.vocabulary)
        assert again.sentences("train")[0].ids.tolist() == loaded.domain.sentences("train")[0].ids.tolist()


def test_a_character_run_is_trained_on(folder: Path, tmp_path: Path) -> None:
    """Its vocabulary comes with it, whatever the data say now; another teacher's is refused."""
    run = fit(config(folder, tmp_path / "first", "char"))
    on = fit(OmegaConf.merge(config(folder, tmp_path / "on", "aligned"), {"student": {"init": str(run)}}))
    first, second = (load_student(path).domain for path in (run, on))
    assert list(second.vocabulary) == list(first.vocabulary)
    other = SpeechDomain({})
    other.vocabulary = [" ", "a"]
    with pytest.raises(UsageError, match="other vocabularies"):
        load_network(run, other)


def test_an_official_checkpoint_is_distilled(folder: Path, tmp_path: Path) -> None:
    """F5-TTS as its authors publish it, but small, and one's own recordings: what comes out speaks its vocabulary, and
    listens to the guidance it is told.
    """
    symbols = sorted(set("".join(c.text for c in CLIPS) + "Xqzt"), key=lambda c: (c != " ", c))
    config = replace(PRESETS["F5TTS_v1_Base"], **SIZES, vocab_size=len(symbols))
    official = tmp_path / "F5TTS_v1_Base" / "model_1250000.safetensors"
    official.parent.mkdir()
    state = random_flow(**config.to_dict()).net.state_dict()
    save_file({f"ema_model.transformer.{k}": v.contiguous() for k, v in state.items()}, official)
    (official.parent / "vocab.txt").write_text("\n".join(symbols) + "\n")
    command = ["domain=speech", "objective=cmt", "guidance=f5", f"teacher.weights={official}", f"data.path={folder}"]
    command += ["guidance.range=[1,4]"]
    short = ["data.batch=2", "train.steps=1", "objective.trajectories=2", "objective.points=3", "eval=none"]
    run = fit(compose([*command, *short, "domain.holdout=0.2", "logger=none", f"out={tmp_path / 'run'}"]))
    loaded = load_student(run)
    assert list(loaded.domain.vocabulary) == symbols
    assert loaded.model.net.config.second_time == "added"
    assert loaded.model.net.config.text_mask_padding
    asked = [options(loaded, 2, {} if scale is None else {"guidance": scale}) for scale in (None, 3.0, 1.0)]
    batch, draws = loaded.domain.plan([0], 0), torch.Generator().manual_seed(0)
    made = [loaded.objective.sample(loaded.model, batch.like, batch.cond, draws.manual_seed(0), **o) for o in asked]
    assert torch.equal(made[0].value, made[1].value), "F5-TTS's own guidance where none is told"
    assert not torch.equal(made[0].value, made[2].value)
    with pytest.raises(UsageError, match="learned scales from 1 to 4"):
        options(loaded, 2, {"guidance": 5.0})
    assert "CC-BY-NC-4.0" in loaded.domain.licence
    assert loaded.domain.notice() == loaded.domain.licence
    with pytest.raises(UsageError, match="deepspeed_z2"):
        fit(compose([*command, *short, "strategy=deepspeed_z3", f"out={tmp_path / 'sharded'}"]))
    table, held_out = tmp_path / "table.json", len(loaded.domain.sentences("heldout"))
    asked = ["num=8", "steps=1", "teacher=pruned@1", "metrics=paired", f"json={table}"]
    assert main(["evaluate", "domain=speech", f"ckpt={run}", *asked]) == 0
    real = json.loads(table.read_text())["real"]
    assert real["mcd"]["n"] == held_out, "the run's own recordings are what is real"


def test_utterances_are_the_recordings(folder: Path) -> None:
    own = domain(folder, holdout=0.2)
    train, held = own.sentences("train"), own.sentences("heldout")
    assert not {u.text for u in train} & {u.text for u in held}
    for u in (*train, *held):
        wave = soundfile.read(folder / u.id, dtype="float32")[0].mean(1)
        wanted = own.scale.normal(mel(torch.from_numpy(resample(wave, 22050, 24000)), MelSpec("vocos"))).mT
        torch.testing.assert_close(u.mel, wanted)
        assert u.ids.shape == (len(u.mel),)
        assert u.frames.shape == (len(u.mel), 3)


def test_pocketsphinx_places_phones_as_the_corpus_has_them(folder: Path) -> None:
    own = domain(folder)
    known = {u.text: u for u in utterances("heldout", own.spec, own.scale)}
    for u in (*own.sentences("train"), *own.sentences("heldout")):
        n = min(len(u.ids), len(known[u.text].ids))
        assert abs(len(u.ids) - len(known[u.text].ids)) <= 1
        assert (u.ids[:n] == known[u.text].ids[:n]).float().mean() > 0.9


def test_without_the_aligner_phones_are_spread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "find_spec", lambda name: None)
    own = domain(folder)
    rows = own.sentences("train")
    assert all(len(u.ids) == len(u.mel) and u.ids.min() > 0 for u in rows)
    console = Console(file=io.StringIO(), width=200)
    console.print(own.data_report.table())
    assert "pip install 'xdistill[align]'" in " ".join(console.file.getvalue().split())


def test_the_second_run_makes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = domain(folder)
    before = {u.id: u for u in first.sentences("train")}
    shard = next(prepared.cache_folder("mels").glob("*.safetensors"))
    own_data.load_own.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(prepared.Preparation, "_one", lambda *_: pytest.fail("made again"))
        second = domain(folder)
        after = {u.id: u for u in second.sentences("train")}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k].mel, after[k].mel) and torch.equal(before[k].ids, after[k].ids) for k in before)
    assert first.data_report.to_dict() == second.data_report.to_dict()
    own_data.load_own.cache_clear()
    cut = shard.read_bytes()[:-100]
    shard.unlink()  # the utterances above map the old file
    shard.write_bytes(cut)
    assert domain(folder).sentences("train")[0].mel.shape == second.sentences("train")[0].mel.shape


def test_all_in_one_side_where_there_is_one_sentence(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", "The one sentence.")
    own = domain(tmp_path, size="char")
    own.network()
    assert [u.id for u in own.sentences("heldout")] == ["a.wav"] == [u.id for u in own.sentences("train")]
    assert own.own.report.held_out == 0


def sound(path: Path, text: str | None, seconds: float = 1.0, rate: int = 24000) -> None:
    soundfile.write(path, hum(seconds, rate), rate)
    if text is not None:
        path.with_suffix(".txt").write_text(text)


def hours(d: Path) -> None:
    with soundfile.SoundFile(d / "long.wav", "w", 8000, 1, "PCM_U8") as file:
        for _ in range(180):
            file.write(np.zeros(8000 * 60))
    (d / "long.txt").write_text("A long day.")


@pytest.mark.parametrize(
    ("options", "prepare", "code", "says"),
    [
        ("", None, 1, ("mine does not exist", "folder of recordings")),
        ("", lambda d: None, 1, ("no recording in", ".wav")),
        ("", lambda d: sound(d / "a.wav", None), 1, ("no transcript 1x", "a.wav", "metadata.csv")),
        ("", hours, 1, ("too long 1x", "long.wav", "cut it")),
        ("", lambda d: sound(d / "a.wav", "Xqzzt."), 1, ("unknown words 1x", "a.wav (xqzzt)", "dictionary")),
        ("", lambda d: sound(d / "a.wav", "..."), 1, ("empty text 1x", "a.wav")),
        ("", lambda d: sound(d / "a.wav", "A sentence of many words."), 1, ("text does not fit 1x", "transcript")),
        ("domain.holdout=1", lambda d: sound(d / "a.wav", "One."), 2, ("holdout=1", "below 1")),
        ("domain.size=pinyin", lambda d: sound(d / "a.wav", "好。"), 2, ("pypinyin",)),
    ],
)
def test_bad_recordings(
    options: str,
    prepare: Callable[[Path], object] | None,
    code: int,
    says: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    mine = tmp_path / "mine"
    if prepare is not None:
        mine.mkdir()
        prepare(mine)
    assert main([*FIT.split(), *options.split(), f"data.path={mine}", f"out={tmp_path / 'new'}"]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert [part for part in says if part not in lines[0]] == [], lines[0]
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_characters_outside_a_vocabulary(folder: Path) -> None:
    own = domain(folder)
    own.network_config = replace(TINY["char"], vocab_size=60)
    own.vocabulary = tuple(" " + "".join(sorted(set("".join(c.text for c in CLIPS)) - {" "})))
    assert len(own.sentences("train")) + len(own.sentences("heldout")) == 6
    assert own.data_report.examples == {"unknown characters": ["wavs/odd.wav ('X' 'q' 'z')"]}
