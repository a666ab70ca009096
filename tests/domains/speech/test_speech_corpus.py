"""The embedded speech corpus: complete, honest about its split, and its alignment fits its audio."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from xdistill.domains.speech import alignment, corpus
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.normalise import plain
from xdistill.domains.speech.phones import SILENCE
from xdistill.errors import XDistillError


def test_every_file_is_as_summed_and_listed() -> None:
    sums = dict(line.split("  ")[::-1] for line in (corpus.FOLDER / "SHA256SUMS").read_text().splitlines())
    present = {path.name for path in corpus.FOLDER.iterdir()} - {"SHA256SUMS"}
    assert set(sums) == present
    assert {clip.file for clip in corpus.clips()} == {name for name in present if name.endswith(".opus")}
    for name in ("transcripts.tsv", "phones.tsv", "LICENSE.md", corpus.clips()[0].file):
        assert hashlib.sha256((corpus.FOLDER / name).read_bytes()).hexdigest() == sums[name]


def test_held_out_sentences_are_never_trained_on() -> None:
    heldout = corpus.clips("heldout")
    assert len(heldout) == 32
    assert all(2 <= clip.seconds <= 8 for clip in heldout)
    assert not {plain(clip.text) for clip in heldout} & {plain(clip.text) for clip in corpus.clips("train")}
    assert len(corpus.clips()) == 32 + len(corpus.clips("train")) > 450


def test_audio_has_the_listed_length_and_a_voice() -> None:
    for clip in corpus.clips()[::50]:
        samples = clip.audio()
        assert samples.dtype == np.float32
        assert len(samples) / corpus.RATE == pytest.approx(clip.seconds, abs=6e-4)
        assert 0.01 < np.sqrt(np.mean(samples**2)) < 0.5


def test_durations_sum_to_the_frames_of_the_mel() -> None:
    spec = MelSpec("vocos")
    sentences = corpus.aligned()
    assert len(corpus.aligned("heldout")) == 32
    assert len(sentences) >= len(corpus.clips()) - 2
    for sentence in sentences:
        assert min(sentence.durations) >= 1
        assert sentence.phones.phones[0] == sentence.phones.phones[-1] == SILENCE
        words = plain(sentence.clip.text).split()
        assert sum(sentence.phones.starts()) == sum(sentence.phones.ends()) == len(words)
    for sentence in sentences[::50]:
        samples = len(sentence.clip.audio()) * spec.sample_rate // corpus.RATE
        assert sum(sentence.durations) == spec.frames(samples)


def test_aligned_silences_are_quieter_than_their_clip() -> None:
    quiet, loud = [], []
    for sentence in corpus.aligned()[::10]:
        samples = sentence.clip.audio()
        ends = np.cumsum(sentence.durations) * corpus.RATE * 256 // 24000
        for name, start, end in zip(sentence.phones.phones, [0, *ends[:-1]], ends, strict=True):
            if end - start > 800:
                (quiet if name == SILENCE else loud).append(float(np.sqrt(np.mean(samples[start:end] ** 2))))
    assert np.median(quiet) < 0.05 * np.median(loud)


def test_durations_fill_the_frames_and_keep_every_phone() -> None:
    times = [0.0, 0.001, 0.002, 0.5, 1.0]
    segments = [alignment.Segment("AA", a, b, 0, "") for a, b in pairwise(times)]
    assert alignment.durations(segments, 100, 100.0) == [1, 1, 48, 50]
    assert alignment.durations(segments, 4, 100.0) == [1, 1, 1, 1]
    with pytest.raises(XDistillError, match="do not fit"):
        alignment.durations(segments, 3, 100.0)


def test_alignment_repeats_the_recorded_one() -> None:
    pytest.importorskip("pocketsphinx")
    known = corpus.aligned("heldout")[1]
    phones, durations = alignment.align_to_mel(known.clip.audio(), corpus.RATE, known.clip.text, MelSpec("vocos"))
    assert (phones, tuple(durations)) == (known.phones, known.durations)
    with pytest.raises(XDistillError, match="without a pronunciation: qwertz"):
        alignment.align(known.clip.audio(), "qwertz")
    with pytest.raises(XDistillError, match="does not fit the sound"):
        alignment.align(known.clip.audio()[:4000], known.clip.text)
