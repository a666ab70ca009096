"""Recorded speech as utterances of an aligned network: mels in its units, phones at frame rate."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from xdistill.domains.speech import corpus
from xdistill.domains.speech.data import Utterance
from xdistill.domains.speech.frames import frame_rate
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.phones import Phones
from xdistill.domains.speech.resampling import resample
from xdistill.errors import XDistillError

ALIGNMENT = corpus.FOLDER / "phones.tsv"


@dataclass(frozen=True)
class Scale:
    """A network's units: (mel - mean) / std; official networks take log mels as they are."""

    mean: float = 0.0
    std: float = 1.0

    def normal(self, mel: Tensor) -> Tensor:
        """Natural-log mel to the network's units."""
        return (mel - self.mean) / self.std

    def natural(self, value: Tensor) -> Tensor:
        """The network's units to natural-log mel."""
        return value * self.std + self.mean


@dataclass(frozen=True)
class Aligned:
    """A recorded sentence of the corpus: its clip, phones and their frames."""

    clip: corpus.Clip
    phones: Phones
    durations: tuple[int, ...]


@lru_cache(maxsize=1)
def alignment() -> dict[str, tuple[Phones, tuple[int, ...]]]:
    """Clip id -> phones and durations in vocos frames, of the clips that could be aligned."""
    with ALIGNMENT.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {row["id"]: _row(row) for row in rows}


def _row(row: dict[str, str]) -> tuple[Phones, tuple[int, ...]]:
    marks = tuple("" if m == "-" else m for m in row["marks"].split())
    phones = Phones(tuple(row["phones"].split()), tuple(map(int, row["words"].split())), marks)
    return phones, tuple(map(int, row["durations"].split()))


def aligned(split: str) -> list[Aligned]:
    """The aligned sentences of a split, `train` or `heldout`, sorted by id."""
    known = alignment()
    return [Aligned(c, *known[c.id]) for c in corpus.clips(split) if c.id in known]


def waveform(samples: np.ndarray, rate: int, spec: MelSpec) -> Tensor:
    """[n] float32 at the rate of `spec`."""
    return torch.from_numpy(np.ascontiguousarray(resample(samples, rate, spec.sample_rate), dtype=np.float32))


@lru_cache(maxsize=8)
def utterances(split: str, spec: MelSpec, scale: Scale) -> tuple[Utterance, ...]:
    """The split with its mels; computed once a process."""
    return tuple(_utterances(split, spec, scale))


def _utterances(split: str, spec: MelSpec, scale: Scale) -> Iterator[Utterance]:
    for sentence in aligned(split):
        value = scale.normal(mel(waveform(sentence.clip.audio(), corpus.RATE, spec), spec)).mT.contiguous()
        ids, frames = frame_rate(sentence.phones, sentence.durations)
        if len(value) != len(ids):
            raise XDistillError(
                f"{ALIGNMENT}: {sentence.clip.id} has {len(ids)} frames, its audio {len(value)}: rebuild it with "
                f"tools/align_speech_corpus.py"
            )
        yield Utterance(sentence.clip.id, value, ids, frames, sentence.clip.text)


def silent(utterance: Utterance) -> Utterance:
    """The same text without its recording."""
    return replace(utterance, mel=torch.zeros_like(utterance.mel))
