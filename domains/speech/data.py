"""Batches of utterances as pure functions of (seed, index, rank, world): similar lengths together, prompts drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from xdistill import rng
from xdistill.domains.speech.flow import SpeechCond
from xdistill.errors import XDistillError
from xdistill.models import Batch
from xdistill.state import Field, Padded

JITTER = 0.15  # of log lengths when a lap is sorted: neighbours in length change from lap to lap


@dataclass(frozen=True)
class Utterance:
    """A sentence in the network's units: mel [N, D], and either ids [N] with features [N, 3] at frame rate, or
    characters ids [T]. text: what it says.
    """

    id: str
    mel: Tensor
    ids: Tensor
    frames: Tensor | None = None
    text: str = ""

    def crop(self, start: int, stop: int) -> Utterance:
        """Frames start to stop; only where text is at frame rate."""
        assert self.frames is not None
        return Utterance(self.id, self.mel[start:stop], self.ids[start:stop], self.frames[start:stop], self.text)


@dataclass(frozen=True)
class Prompting:
    """How training shows the recording (F5-TTS, speech spec 1.5).

    span: the masked share of an utterance, uniform between both; audio_drop: probability that a sample shows nothing.
    scored: losses count `all` frames, or only the masked `span`.
    """

    span: tuple[float, float] = (0.7, 1.0)
    audio_drop: float = 0.3
    scored: str = "all"


@dataclass(frozen=True, eq=False)
class UtteranceSource:
    """An endless deterministic stream of batches; `real=False` leaves the mels out of the states.

    batch: utterances at most, and frames: of a padded batch at most. Longer utterances of an aligned network are
    cropped to `longest` frames, each time elsewhere.
    """

    utterances: Sequence[Utterance]
    batch_size: int
    seed: int
    frames: int = 4096
    longest: int = 512
    prompting: Prompting = Prompting()
    real: bool = True

    def __post_init__(self) -> None:
        if not self.utterances:
            raise XDistillError("no utterance to train on: give audio with transcripts, see the report of your data")

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Slices of the sorted utterances that make a batch."""
        return _bounds(tuple(self.lengths.sort().values.tolist()), self.batch_size, self.frames)

    @property
    def lengths(self) -> Tensor:
        """[n] frames, cropped."""
        return torch.tensor(
            [min(len(u.mel), self.longest) if u.frames is not None else len(u.mel) for u in self.utterances]
        )

    def batch(self, index: int, rank: int, world: int) -> Batch[Field]:
        """Draw `index` of `rank`."""
        lap, place = divmod(index * world + rank, len(self.bounds))
        generator = rng.generator("lap", self.seed, lap)
        noise = torch.randn(len(self.utterances), generator=generator)
        order = (self.lengths.log() + JITTER * noise).argsort()
        start, stop = self.bounds[int(torch.randperm(len(self.bounds), generator=generator)[place])]
        draw = rng.generator("utterances", self.seed, index, rank, world)
        return self.collate([self._cropped(self.utterances[i], draw) for i in order[start:stop].tolist()], draw)

    def _cropped(self, u: Utterance, generator: torch.Generator) -> Utterance:
        spare = len(u.mel) - self.longest
        if u.frames is None or spare <= 0:
            return u
        start = rng.randint(0, spare + 1, generator)
        return u.crop(start, start + self.longest)

    def collate(self, utterances: Sequence[Utterance], generator: torch.Generator) -> Batch[Field]:
        """A padded batch; each sample's recording is shown up to a random masked span, or not at all."""
        known = [self._known(len(u.mel), generator) for u in utterances]
        batch = collate(utterances, known)
        layout = batch.like.layout
        assert isinstance(layout, Padded)
        if self.prompting.scored == "span":
            shown = torch.nn.utils.rnn.pad_sequence(known, batch_first=True)
            layout = Padded(layout.mask, scored=layout.mask & ~shown)
        value = batch.like.value if self.real else torch.zeros_like(batch.like.value)
        return Batch(Field(value, layout), batch.cond, self.real)

    def _known(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] bool: frames that are shown."""
        share, place, drop = rng.rand(3, generator).tolist()
        low, high = self.prompting.span
        length = min(n, max(1, round((low + (high - low) * share) * n)))
        start = int(place * (n - length + 1))
        known = torch.ones(n, dtype=torch.bool)
        known[start : start + length] = False
        return known & (drop >= self.prompting.audio_drop)


def collate(utterances: Sequence[Utterance], known: Sequence[Tensor]) -> Batch[Field]:
    """A padded batch of whole utterances of which the frames `known` (bool [N]) are shown."""
    pad = torch.nn.utils.rnn.pad_sequence
    mel = pad([u.mel for u in utterances], batch_first=True)
    shown = pad([u.mel * k[:, None] for u, k in zip(utterances, known, strict=True)], batch_first=True)
    aligned = all(u.frames is not None for u in utterances)
    ids = pad([u.ids for u in utterances], batch_first=True, padding_value=0 if aligned else -1)
    frames = pad([u.frames for u in utterances], batch_first=True) if aligned else None  # type: ignore[misc]
    layout = Padded.from_lengths([len(u.mel) for u in utterances])
    return Batch(Field(mel, layout), SpeechCond(ids, frames, shown))


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], batch: int, frames: int) -> tuple[tuple[int, int], ...]:
    """Consecutive slices of rising lengths with at most `batch` members and about `frames` padded frames."""
    bounds, start = [], 0
    while start < len(lengths):
        stop = start + 1
        while stop < len(lengths) and stop - start < batch and lengths[stop] * (stop - start + 1) <= frames:
            stop += 1
        bounds.append((start, stop))
        start = stop
    return tuple(bounds)
