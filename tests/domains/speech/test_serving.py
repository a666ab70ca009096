"""Plans of speech: held-out sentences, texts, voices; samplers; numbers of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_student import ALIGNED, CHARACTERS, SYMBOLS, hum, random_flow, speech_domain, write_sound

from xdistill import rng
from xdistill.domains.speech import SpeechDomain, alignment, corpus, durations, lexicon, planning
from xdistill.domains.speech.flow import SpeechCond, SpeechFlow
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.requests import Ask
from xdistill.domains.speech.spoken import Script, Spoken
from xdistill.domains.speech.voices import read_voice
from xdistill.errors import UsageError
from xdistill.evaluation import draw, teacher_sampler
from xdistill.generation.plan import design_sizes
from xdistill.guidance import Guided
from xdistill.models import Batch

TEXT = "Press one, please."


@pytest.fixture(scope="module")
def flow() -> SpeechFlow:
    return random_flow()


@pytest.fixture(scope="module")
def domain(flow: SpeechFlow) -> SpeechDomain:
    return speech_domain(flow)


@pytest.fixture(scope="module")
def characters() -> SpeechDomain:
    return speech_domain(random_flow(**CHARACTERS), symbols=SYMBOLS)


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "voice.wav", hum(2.0))


def condition(batch: Batch) -> SpeechCond:
    assert isinstance(batch.cond, SpeechCond)
    assert isinstance(batch.like.layout, Script)
    return batch.cond


def test_without_a_request_samples_are_the_held_out_sentences(domain: SpeechDomain) -> None:
    known = domain.sentences("heldout")
    batch = domain.plan([1, len(known) + 1, 2], 0)
    texts = {clip.id: clip.text for clip in corpus.clips("heldout")}
    lines = batch.like.layout.lines
    assert [line.id for line in lines] == [known[1].id, known[1].id, known[2].id]
    assert batch.like.layout.texts == tuple(texts[line.id] for line in lines)
    assert batch.like.elements.tolist() == [len(known[i].mel) for i in (1, 1, 2)]
    cond = condition(batch)
    assert cond.mel is None
    assert not batch.real
    assert torch.equal(cond.ids[2, : len(known[2].ids)], known[2].ids)
    assert not cond.ids[2, len(known[2].ids) :].any()
    assert torch.equal(cond.frames[2, : len(known[2].ids)], known[2].frames)
    assert batch.like.value.shape == (*batch.like.layout.mask.shape, 100)
    assert len(known[0].mel) % 8
    assert domain.plan([0], 0).like.layout.mask.shape[1] == -(-len(known[0].mel) // 8) * 8
    assert batch.like.value.untyped_storage().nbytes() < 100, "many samples are planned at once"


def test_the_layout_survives_what_samplers_do(domain: SpeechDomain) -> None:
    x = domain.plan([0, 1], 0, text=TEXT).like
    moved = (x + x.randn(rng.per_sample(0, [0, 1]))).project().to("cpu")
    assert isinstance(moved.layout, Script)
    assert moved.layout.texts == (TEXT, TEXT)
    assert isinstance(replace(moved.layout, scored=None), Script)


def test_a_text_takes_its_predicted_durations(domain: SpeechDomain) -> None:
    phones = lexicon.phones(TEXT)
    assert domain.plan([0], 0, text=TEXT).like.elements.item() == sum(durations.predict(phones))
    fast = domain.plan([0], 0, text=TEXT, speed=2).like.elements.item()
    assert fast == sum(durations.predict(phones, 2.0)) < 0.6 * sum(durations.predict(phones))
    assert domain.plan([0], 0, text=TEXT, duration=3).like.elements.item() == round(3 * 93.75)


def test_durations_are_fitted_exactly() -> None:
    phones = lexicon.phones(TEXT)
    for frames in (len(phones), len(phones) + 1, 100, 501):
        found = planning.fitted(phones, frames, "text=")
        assert sum(found) == frames
        assert min(found) >= 1
    with pytest.raises(UsageError, match="give it more time"):
        planning.fitted(phones, len(phones) - 1, "text=")


def test_words_may_be_said_by_the_user(domain: SpeechDomain) -> None:
    with pytest.raises(UsageError, match=r"say\.blorptic="):
        domain.plan([0], 0, text="blorptic")
    said = condition(domain.plan([0], 0, text="blorptic", say={"blorptic": "P R EH S"})).ids
    known = condition(domain.plan([0], 0, text="press")).ids
    assert torch.equal(said.unique(), known.unique())


@pytest.mark.parametrize("aligner", [True, False])
def test_a_voice_is_shown_and_cut_off_again(
    domain: SpeechDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligner: bool
) -> None:
    clip = next(c for c in corpus.clips("heldout") if c.seconds < 3)
    path = write_sound(tmp_path / "voice.wav", np.stack([0.2 * clip.audio()] * 2, 1), corpus.RATE)
    if aligner:
        pytest.importorskip("pocketsphinx")
    else:
        monkeypatch.setattr(planning, "find_spec", lambda name: None)
    planning.item.cache_clear()
    batch = domain.plan([0, 1], 0, text=TEXT, ref=str(path), ref_text=clip.text)
    line, cond = batch.like.layout.lines[0], condition(batch)
    frames, own = len(line.prompt), sum(durations.predict(lexicon.phones(TEXT)))
    assert batch.like.elements.tolist() == [frames + own] * 2
    assert line.cut == frames - 1
    assert line.gain > 1, "a quiet voice is raised"
    shown = domain.scale.normal(line.prompt)
    torch.testing.assert_close(cond.mel[0, :frames], shown)
    assert not cond.mel[0, frames:].any()
    assert bool((cond.ids[0, : frames + own] > 0).all()), "every frame of voice and speech has its phone"
    state = replace(batch.like, value=torch.ones_like(batch.like.value))
    sample = domain.decode(state)[0]
    assert len(sample) == own + 1
    np.testing.assert_allclose(sample.mel[0], line.prompt[-1].numpy())
    np.testing.assert_allclose(sample.mel[1:], -1.85 + 2.8, rtol=1e-6)
    assert (sample.text, sample.gain) == (TEXT, line.gain)


def test_lines_in_one_voice_share_it(domain: SpeechDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pocketsphinx")
    clip = next(c for c in corpus.clips("heldout") if c.seconds < 3)
    path = write_sound(tmp_path / "voice.wav", 0.3 * clip.audio(), corpus.RATE)
    align, calls = alignment.align, []
    monkeypatch.setattr(alignment, "align", lambda *args: calls.append(1) or align(*args))
    asks = [Ask(text, read_voice(str(path), clip.text)) for text in (TEXT, "No, thanks.", "Hold the line.")]
    first, *others = [planning.item(ask, domain.reader) for ask in asks]
    assert len(calls) == 1, "the voice is aligned once, not once a line"
    assert first.frames != others[0].frames
    for other in others:
        assert other.prompt is first.prompt
        assert other.line.prompt is first.line.prompt
    said = read_voice(str(path), "Press one.")
    assert torch.equal(planning.item(Ask(TEXT, said), domain.reader).prompt, first.prompt)
    assert len(calls) == 2, "other words, other phones"


def test_absurd_durations_are_refused_at_once(domain: SpeechDomain) -> None:
    for seconds in (22.01, 1e300, 1e308, 10**30):
        with pytest.raises(UsageError, match="at most 22 s at once"):
            domain.plan([0], 0, text=TEXT, duration=seconds)
    with pytest.raises(UsageError, match="expected a positive number"):
        domain.plan([0], 0, text=TEXT, duration=10**400)
    assert domain.plan([0], 0, text=TEXT, duration=22.0).like.elements.item() == round(22 * 93.75)


def test_sizes_are_planned_a_few_at_a_time(domain: SpeechDomain, voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"text": TEXT, "ref": str(voice), "ref_text": "A hum", "say": {"blorptic": "B L AH"}}
    plan, wide = SpeechDomain.plan, []

    def watched(self: SpeechDomain, indices: Sequence[int], seed: int, **asked: object) -> Batch:
        batch = plan(self, indices, seed, **asked)
        wide.append(condition(batch).mel.nbytes)
        return batch

    monkeypatch.setattr(SpeechDomain, "plan", watched)
    sizes = design_sizes(domain, 1000, 0, request)
    assert sum(wide) > 1e8, "prompts of all samples together"
    assert max(wide) < 5e7
    assert sizes.tolist() == [plan(domain, [0], 0, **request).like.elements.item()] * 1000


def test_characters_follow_the_rule_of_f5(characters: SpeechDomain, voice: Path) -> None:
    batch = characters.plan([0], 0, text="How do you do, then", ref=str(voice), ref_text="A hum of mine")
    line, cond, said = batch.like.layout.lines[0], condition(batch), "A hum of mine. How do you do, then"
    assert cond.ids[0].tolist() == [SYMBOLS.index(c) for c in said]
    assert cond.frames is None
    assert batch.like.elements.item() == line.cut + int(line.cut / len("A hum of mine. ") * len("How do you do, then"))
    longer = characters.plan([0], 0, text="How do you do", ref=str(voice), ref_text="A hum of mine", duration=4)
    assert longer.like.elements.item() == line.cut + 375
    alone = characters.plan([0], 0, text="How do you do", duration=2)
    assert condition(alone).mel is None
    assert alone.like.elements.item() == round(2 * 93.75)


def test_characters_that_cannot_be_said(characters: SpeechDomain, voice: Path) -> None:
    with pytest.raises(UsageError, match=r"outside the network's vocabulary: 'ß' '7'"):
        characters.plan([0], 0, text="Maß 7", duration=2)
    with pytest.raises(UsageError, match=r"add ref=voice.wav, or duration="):
        characters.plan([0], 0, text="How do you do")
    with pytest.raises(UsageError, match=r"at most 22 s at once, the voice included: .*texts=.*stream=true"):
        characters.plan([0], 0, text="How do you do " * 20, ref=str(voice), ref_text="A hum")


def test_text_is_embedded_once(flow: SpeechFlow, domain: SpeechDomain) -> None:
    calls = []
    hook = flow.net.text_embed.register_forward_hook(lambda *_: calls.append(1))
    sample = domain.teacher_samplers()["reference"]
    batch, model = domain.plan([0, 1], 0, text=TEXT), Guided(flow, 3.0)
    with torch.no_grad():
        plain = sample(model, batch, rng.per_sample(0, [0, 1]), steps=3)
        assert len(calls) == 6
        once = sample(model, domain.prepare(model, batch), rng.per_sample(0, [0, 1]), steps=3)
        assert len(calls) == 8, "the text, and its absence"
        domain.prepare(flow, batch)
        assert len(calls) == 9, "a student is not guided"
        domain.prepare(Guided(flow, 2.0, weak=random_flow(), autoguidance_ratio=1.0), batch)
        assert len(calls) == 9, "two networks embed by themselves"
    hook.remove()
    assert torch.equal(plain.value, once.value)


@pytest.mark.parametrize("options", [ALIGNED, CHARACTERS])
def test_a_sample_is_the_same_alone_and_among_others(options: dict[str, object]) -> None:
    flow = random_flow(**options)
    domain = speech_domain(flow, symbols=SYMBOLS)
    sampler = teacher_sampler(domain.teacher_samplers()["euler"], 2)
    request = {"text": "How do you do", "duration": 1}
    together = draw(domain, flow, sampler, 6, seed=3, batch_size=6, request=request).samples
    apart = draw(domain, flow, sampler, 6, seed=3, batch_size=4, request=request).samples
    assert not np.array_equal(together[0].mel, together[1].mel)
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a.mel, b.mel, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "steps", "times"),
    [
        ("reference", 2, (0.0, 1 - 0.5**0.5)),
        ("euler", 2, (0.0, 0.5)),
        ("pruned", 5, tuple(1 - np.cos(np.pi / 2 * np.array([0, 2, 4, 8, 16]) / 32))),
    ],
)
def test_samplers_choose_times(
    flow: SpeechFlow, domain: SpeechDomain, name: str, steps: int, times: tuple[float, ...]
) -> None:
    seen: list[float] = []
    hook = flow.register_forward_pre_hook(lambda _, args: seen.append(1 - float(args[1][0])))
    drawn = draw(domain, flow, teacher_sampler(domain.teacher_samplers()[name], steps), 1, request={"text": "No."})
    hook.remove()
    assert drawn.calls == steps
    np.testing.assert_allclose(seen, times, atol=1e-9)


def test_the_reference_takes_the_steps_of_the_configuration(flow: SpeechFlow) -> None:
    domain = SpeechDomain({"reference_steps": 3})
    domain.network_config = flow.net.config
    assert (
        draw(domain, flow, teacher_sampler(domain.teacher_samplers()["reference"]), 1, request={"text": "No."}).calls
        == 3
    )


def utterance(make: Callable[[float], np.ndarray], gain: float = 1.0) -> Spoken:
    wave = torch.from_numpy(make(1.0))
    return Spoken("hum", mel(wave, MelSpec("vocos")).T.numpy().copy(), gain=gain)


def test_numbers_of_a_sample(domain: SpeechDomain) -> None:
    loud, quiet = utterance(hum), utterance(lambda s: hum(s, level=0.005))
    found, soft = domain.design_metrics(loud), domain.design_metrics(quiet)
    assert tuple(found) == tuple(domain.design_columns)
    assert found["level_db"] - soft["level_db"] == pytest.approx(20, abs=0.5)
    assert found["seconds"] == pytest.approx(1.0, abs=0.02)
    assert domain.design_metrics(replace(loud, gain=10.0))["level_db"] == pytest.approx(soft["level_db"], abs=0.5)
    half = replace(loud, mel=np.concatenate([loud.mel, np.full_like(loud.mel, -11.5)]))
    assert domain.design_metrics(half)["silence"] == pytest.approx(0.5, abs=0.02)
    judge = domain.filters()["audible"](silence=0.4)
    broken = replace(loud, mel=loud.mel * np.nan)
    assert [v.passed for v in judge([loud, half, broken])] == [True, False, False]


def test_likeness_and_collapse(domain: SpeechDomain) -> None:
    a, b = utterance(hum), utterance(lambda s: np.random.default_rng(0).normal(0, 0.05, 24000).astype(np.float32))
    assert domain.similarity(a, a) == 1
    assert domain.similarity(a, b) == pytest.approx(domain.similarity(b, a))
    assert 0 <= domain.similarity(a, b) < 0.6
    flat = replace(a, mel=np.repeat(a.mel.mean(0, keepdims=True), len(a.mel), 0))
    assert domain.watch([flat])["spread"] < 1e-5 < domain.watch([a])["spread"]
    assert set(domain.watch([a])) == set(domain.watched)
