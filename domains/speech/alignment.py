"""Forced phone alignment of speech with its text by pocketsphinx (optional extra `align`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from xdistill.domains.speech.lexicon import pronunciations
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.normalise import Token, tokens
from xdistill.domains.speech.phones import INDEX, SILENCE, Phones
from xdistill.domains.speech.resampling import resample
from xdistill.errors import UsageError, XDistillError

RATE = 16000
_STEP = RATE // 100
# Analysis windows of 25.6 ms start every 10 ms: a boundary between two of them lies between their centres.
_CENTRE = 0.0128 - 0.005
# Padding (frames of noise) and beams, tried in turn: the phone pass keeps the word pass's times and fails where these
# leave a word too little room; another search usually gives it room.
_NARROW = {"beam": 1e-40, "pbeam": 1e-40, "wbeam": 1e-20}
_ATTEMPTS: tuple[tuple[int, dict[str, float]], ...] = ((30, {}), (20, _NARROW), (40, _NARROW), (20, {}), (40, {}))


@dataclass(frozen=True)
class Segment:
    """A phone in time, seconds; `word` is the word's index (-1: silence); see phones.Phones for `mark`."""

    phone: str
    start: float
    end: float
    word: int
    mark: str


def align(samples: np.ndarray, text: str) -> list[Segment]:
    """Segments of 16 kHz mono float samples [n] in [-1, 1] that say `text`; gapless from 0 to n / 16000 s,
    silence at both ends.

    Raises UsageError without pocketsphinx; XDistillError when a word is unknown or the text does not fit the sound.
    """
    words = tokens(text)
    missing = [token.word for token in words if not pronunciations(token)]
    if missing or not words:
        raise XDistillError(
            f"words without a pronunciation: {' '.join(missing)}" if missing else f"no words in {text!r}"
        )
    problem = XDistillError("")
    for padding, beams in _ATTEMPTS:
        try:
            decoder = _decoder(**beams)
            found = _recognise(decoder, _padded(samples, padding), [_entry(decoder, token) for token in words])
            return _segments(found, words, len(samples) / RATE, padding)
        except _MisfitError as error:
            problem = error
    raise problem


def align_to_mel(samples: np.ndarray, rate: int, text: str, spec: MelSpec) -> tuple[Phones, list[int]]:
    """Phones of float samples [n] at `rate` Hz and their durations, which sum to the frames of the recording's mel.

    Raises as `align` and `durations`.
    """
    segments = align(resample(samples, rate, RATE), text)
    frames = spec.frames(-(-len(samples) * spec.sample_rate // rate))
    return phones_of(segments), durations(segments, frames, spec.frame_rate)


def phones_of(segments: Sequence[Segment]) -> Phones:
    """The segments without their times."""
    return Phones(*(tuple(getattr(s, name) for s in segments) for name in ("phone", "word", "mark")))


def durations(segments: Sequence[Segment], frames: int, rate: float) -> list[int]:
    """Frames of each segment, summing to `frames`, at least one each; frame k lies at k / rate seconds.

    Raises XDistillError when there are fewer frames than segments.
    """
    if frames < len(segments):
        raise XDistillError(f"{len(segments)} phones do not fit into {frames} frames")
    starts = [0]
    for position, segment in enumerate(segments[1:], start=1):
        latest = frames - (len(segments) - position)
        starts.append(min(max(round(segment.start * rate), starts[-1] + 1), latest))
    return np.diff([*starts, frames]).tolist()


class _MisfitError(XDistillError):
    """One search did not place all words."""


@cache
def _decoder(**beams: float) -> Any:
    try:
        import pocketsphinx
    except ImportError:
        raise UsageError("alignment needs pocketsphinx: pip install 'xdistill[align]'") from None
    return pocketsphinx.Decoder(lm=None, loglevel="FATAL", samprate=RATE, **beams)


def _entry(decoder: Any, token: Token) -> str:
    """The decoder's own entry of a word; words that our lexicon says otherwise are added to it."""
    own = pronunciations(token)[0]
    known = decoder.lookup_word(token.word)
    if known is not None and tuple(known.split()) == own:
        return token.word
    name = f"{token.word}~{'-'.join(own)}"
    if decoder.lookup_word(name) is None:
        decoder.add_word(name, " ".join(own), True)
    return name


def _padded(samples: np.ndarray, padding: int) -> bytes:
    """16-bit samples between two stretches of the recording's own noise level: speech may begin at the first sample."""
    generator = np.random.default_rng(0)
    blocks = samples[: len(samples) // _STEP * _STEP].reshape(-1, _STEP)
    floor = max(float(np.quantile(np.sqrt((blocks**2).mean(axis=1)), 0.02)), 1e-4)
    noise = [generator.standard_normal(padding * _STEP) * floor for _ in range(2)]
    joined = np.concatenate([noise[0], samples + generator.standard_normal(len(samples)) * 3e-5, noise[1]])
    return (np.clip(joined, -1, 1) * 32767).astype("<i2").tobytes()


def _recognise(decoder: Any, audio: bytes, entries: list[str]) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """Words with their phones (name, first frame, frames), fillers included: word pass, then phone pass."""
    try:
        decoder.set_align_text(" ".join(entries))
        _process(decoder, audio)
        decoder.set_alignment()
        _process(decoder, audio)
        return [(w.name, [(p.name, p.start, p.duration) for p in w]) for w in decoder.get_alignment()]
    except (RuntimeError, TypeError) as error:
        raise _MisfitError(f"the text does not fit the sound: {error}") from None


def _process(decoder: Any, audio: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(audio, full_utt=True)
    decoder.end_utt()


def _segments(
    found: list[tuple[str, list[tuple[str, int, int]]]], words: list[Token], seconds: float, padding: int
) -> list[Segment]:
    rows: list[tuple[str, int, int, str]] = []
    word = -1
    for _, phones in found:
        filler = all(name not in INDEX or name == SILENCE for name, _, _ in phones)
        word += not filler
        if filler:
            if not rows or rows[-1][0] != SILENCE:
                rows.append((SILENCE, phones[0][1], -1, words[word].mark if word >= 0 else ""))
            continue
        last = len(phones) - 1
        rows += [
            (name, first, word, words[word].mark if i == last else "") for i, (name, first, _) in enumerate(phones)
        ]
    if word + 1 != len(words):
        raise _MisfitError(f"the text does not fit the sound: {word + 1} of {len(words)} words were placed")
    if rows[0][0] != SILENCE:
        rows.insert(0, (SILENCE, padding, -1, ""))
    if rows[-1][0] != SILENCE:
        rows.append((SILENCE, padding + round(seconds * 100), -1, rows[-1][3]))
    begins = [max((first - padding) / 100 + _CENTRE, 0.0) for _, first, _, _ in rows[1:]]
    times = np.minimum([0.0, *begins, seconds], seconds).tolist()
    return [Segment(name, times[i], times[i + 1], index, mark) for i, (name, _, index, mark) in enumerate(rows)]
