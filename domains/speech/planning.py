"""From a text to what the network is given: phones or characters, frames, and the prompt's mel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xdistill.domains.speech import alignment, durations, lexicon
from xdistill.domains.speech.data import Utterance
from xdistill.domains.speech.flow import SpeechCond
from xdistill.domains.speech.frames import frame_rate
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.network import F5Config
from xdistill.domains.speech.phones import Phones
from xdistill.domains.speech.prompting import MAX_FRAMES, WINDOW_SECONDS, closed, generated_frames
from xdistill.domains.speech.requests import Ask
from xdistill.domains.speech.resampling import resample
from xdistill.domains.speech.spoken import Line, Script
from xdistill.domains.speech.tokens import PADDING, SpeechTokenizer
from xdistill.domains.speech.utterances import Scale
from xdistill.domains.speech.voices import RATE, Voice
from xdistill.errors import UsageError
from xdistill.models import Batch
from xdistill.state import Field

WIDTH = 8  # frames: batches are padded to a multiple, see `generation.plan.BUCKET`
VOICES = 1024  # remembered with their mels, which take up to 1 MB each


@dataclass(frozen=True)
class Reader:
    """How a network reads text: its configuration, and of character networks the tokenizer."""

    config: F5Config
    tokenizer: SpeechTokenizer | None = None

    @property
    def spec(self) -> MelSpec:
        """The front-end."""
        return MelSpec(self.config.mel_spec_type)

    @property
    def scale(self) -> Scale:
        """The units of the network's mels."""
        return Scale(self.config.mel_mean, self.config.mel_std)

    def ids(self, text: str, where: str) -> list[int]:
        """Of a character network; raises UsageError for characters that its vocabulary lacks."""
        if self.tokenizer is None:
            raise UsageError("this network came without its vocabulary: put vocab.txt beside its checkpoint")
        if unknown := self.tokenizer.unknown(text):
            shown = " ".join(repr(symbol) for symbol in unknown[:8])
            raise UsageError(f"{where} has characters outside the network's vocabulary: {shown}; spell them out")
        return self.tokenizer.encode(text)


@dataclass(frozen=True, eq=False)
class Item:
    """One row of a batch: ids and features of `SpeechCond`, its frames, and the prompt in the network's units."""

    line: Line
    ids: Tensor
    frames: int
    features: Tensor | None = None
    prompt: Tensor | None = None


@lru_cache(maxsize=4096)
def item(ask: Ask, reader: Reader) -> Item:
    """What the network is given for one request; raises UsageError when it cannot say it."""
    spec, voice = reader.spec, ask.voice
    natural, prompt = (None, None) if voice is None else _mels(voice, spec, reader.scale)
    cut = 0 if voice is None else len(voice.wave) // spec.hop
    line = Line(ask.text, "", natural, cut, 1.0 if voice is None else voice.gain)
    asked = None if ask.duration is None else _frames(ask, ask.duration, spec)
    if not reader.config.aligned:
        ids, total = _characters(ask, reader, cut, asked)
        return Item(line, torch.tensor(ids), total, None, prompt)
    own = lexicon.phones(ask.text, dict(ask.say))
    lengths = durations.predict(own, ask.speed) if asked is None else fitted(own, asked, ask.where)
    parts = [(own, lengths)]
    if voice is not None and natural is not None:
        # the aligner has its own dictionary, which lacks the user's words
        aligned = not ask.say and find_spec("pocketsphinx") is not None
        parts.insert(0, _prompt_phones(voice, len(natural), ask.say, spec, aligned))
    _check_length(sum(lengths), sum(sum(d) for _, d in parts), ask, spec)
    read = [frame_rate(phones, each) for phones, each in parts]
    ids_, features = (torch.cat(rows) for rows in zip(*read, strict=True))
    return Item(line, ids_, len(ids_), features, prompt)


def again(utterance: Utterance) -> Item:
    """A recorded sentence with its true durations and without its recording."""
    return Item(Line(utterance.text, utterance.id), utterance.ids, len(utterance.mel), utterance.frames)


def batch(items: Sequence[Item], reader: Reader) -> Batch[Field]:
    """A data-free batch; its width is a multiple of 8 frames, so that it does not depend on a sample's neighbours."""
    width = -(-max(i.frames for i in items) // WIDTH) * WIDTH
    layout = Script.from_lengths([i.frames for i in items], width, lines=tuple(i.line for i in items))
    like = torch.zeros(1).expand(len(items), width, reader.config.mel_dim)  # takes no memory: only its shape is used
    aligned = reader.config.aligned
    ids = pad_sequence([i.ids for i in items], batch_first=True, padding_value=0 if aligned else PADDING)
    features = None
    if aligned:
        spare = width - ids.shape[1]
        ids = torch.nn.functional.pad(ids, (0, spare))
        features = pad_sequence([i.features for i in items if i.features is not None], batch_first=True)
        features = torch.nn.functional.pad(features, (0, 0, 0, spare))
    return Batch(Field(like, layout), SpeechCond(ids, features, _prompts(items, width)), real=False)


def _prompts(items: Sequence[Item], width: int) -> Tensor | None:
    known = [i.prompt for i in items]
    like = next((p for p in known if p is not None), None)
    if like is None:
        return None
    out = like.new_zeros(len(items), width, like.shape[1])
    for row, prompt in zip(out, known, strict=True):
        if prompt is not None:
            row[: len(prompt)] = prompt
    return out


def _characters(ask: Ask, reader: Reader, prompt: int, asked: int | None) -> tuple[list[int], int]:
    """(ids, frames of prompt and speech) by F5-TTS's rule (speech spec 1.6)."""
    voice, before = ask.voice, "" if ask.voice is None else closed(ask.voice.text)
    ids = reader.ids(before + ask.text, ask.where)
    if asked is not None:
        total = max(prompt + asked, len(ids) + 1)
    elif voice is None:
        raise UsageError(f"{ask.where}: this network takes its pace from a voice: add ref=voice.wav, or duration=")
    else:
        wide = 2**40  # a longer one is an error here, not cut
        total = generated_frames(prompt, before, ask.text, speed=ask.speed, symbols=len(ids), limit=wide)
    _check_length(total - prompt, total, ask, reader.spec)
    return ids, total


def _frames(ask: Ask, seconds: float, spec: MelSpec) -> int:
    """Of a duration that the user gives; absurd ones are refused here, before phones are fitted to them."""
    wished = seconds * spec.frame_rate
    if wished > MAX_FRAMES:
        _check_length(wished, wished, ask, spec)
    return max(round(wished), 2)


def _check_length(spoken: float, total: float, ask: Ask, spec: MelSpec) -> None:
    most = min(MAX_FRAMES, round(WINDOW_SECONDS * spec.frame_rate))
    if total > most:
        with_voice = "" if ask.voice is None else ", the voice included"
        raise UsageError(
            f"{ask.where} takes {spoken / spec.frame_rate:.1f} s to say, the network says at most {WINDOW_SECONDS:g} s "
            f"at once{with_voice}: give it part by part (a line each in texts=), or stream=true"
        )


@lru_cache(maxsize=VOICES)
def _mels(voice: Voice, spec: MelSpec, scale: Scale) -> tuple[Tensor, Tensor]:
    """The voice's mel [P, D] in nats and in the network's units; shared by all that is said in it, never written to."""
    natural = mel(voice.wave, spec).mT.contiguous()
    return natural, scale.normal(natural)


@lru_cache(maxsize=VOICES)
def _prompt_phones(
    voice: Voice, frames: int, say: tuple[tuple[str, str], ...], spec: MelSpec, aligned: bool
) -> tuple[Phones, list[int]]:
    """The voice's phones and their frames: as pocketsphinx aligns them, else at the pace of the durations."""
    phones = lexicon.phones(voice.text, dict(say))
    if not aligned:
        return phones, fitted(phones, frames, "ref_text=")
    found = alignment.align(resample(voice.wave.numpy(), RATE, alignment.RATE), voice.text)
    return alignment.phones_of(found), alignment.durations(found, frames, spec.frame_rate)


def fitted(phones: Phones, frames: int, where: str) -> list[int]:
    """Predicted durations stretched to `frames` in all; raises UsageError for fewer frames than phones."""
    if frames < len(phones):
        raise UsageError(f"{where} has {len(phones)} phones, too many for {frames} frames: give it more time")
    wished = durations.predict(phones)
    found = durations.rounded([n * frames / sum(wished) for n in wished])
    while (excess := sum(found) - frames) != 0:
        found[max(range(len(found)), key=found.__getitem__)] -= 1 if excess > 0 else -1
    return found
