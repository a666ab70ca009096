"""A user's recordings as utterances: mels and phones are made once, a shard at a time, and found again on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xdistill.cache import alone, cache_folder, digest, writing
from xdistill.domains.speech import alignment, lexicon, planning
from xdistill.domains.speech.data import Utterance
from xdistill.domains.speech.folders import Recording
from xdistill.domains.speech.frames import frame_rate
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.normalise import tokens
from xdistill.domains.speech.phones import Phones
from xdistill.domains.speech.utterances import Scale
from xdistill.errors import XDistillError

SCHEMA = 1
SHARD = 128  # recordings: what an interrupted run makes again at most, and a change of one recording costs
SLOW = 32  # recordings: from here on a progress bar is shown
ALIGNERS = {
    "pocketsphinx": "phones aligned by pocketsphinx",
    "durations": "phones spread by predicted durations: pip install 'xdistill[align]' aligns them with the sound",
    "": "characters",
}


@dataclass(frozen=True)
class LeftOut:
    """Why a recording cannot be used: a key of `FolderReport.hints`, and what to show of it."""

    reason: str
    example: str


@dataclass(frozen=True)
class Preparation:
    """What is made of a recording: its mel in a network's units, and its phones by an aligner (a key of ALIGNERS)."""

    spec: MelSpec
    scale: Scale
    aligner: str

    def of(self, recordings: Sequence[Recording]) -> Iterator[Utterance | LeftOut]:
        """One a recording, in order; mels are read from disk when they are looked at. Character ids are left empty.

        Raises XDistillError when the cache folder cannot be written to.
        """
        columns = TextColumn("preparing recordings"), BarColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), disable=len(recordings) < SLOW) as progress:
            task = progress.add_task("", total=len(recordings))
            for start in range(0, len(recordings), SHARD):
                part = recordings[start : start + SHARD]
                yield from self._shard(part)
                progress.advance(task, len(part))

    def _shard(self, recordings: Sequence[Recording]) -> list[Utterance | LeftOut]:
        settings = [self.spec.kind, self.scale.mean, self.scale.std, self.aligner]
        name = digest([SCHEMA, settings, [r.identity() for r in recordings]])[:24]
        path = cache_folder("mels") / f"{name}.safetensors"
        if (found := _open(path, recordings)) is None:
            with alone(path.with_suffix(".lock"), "these mels"):
                if (found := _open(path, recordings)) is None:
                    self._make(path, recordings)
                    found = _open(path, recordings)
        assert found is not None
        return found

    def _make(self, path: Path, recordings: Sequence[Recording]) -> None:
        tensors: dict[str, Tensor] = {}
        left: dict[str, list[str]] = {}
        for i, recording in enumerate(recordings):
            made = self._one(recording)
            if isinstance(made, LeftOut):
                left[str(i)] = [made.reason, made.example]
            else:
                tensors |= {f"{i}.{name}": value for name, value in made.items()}
        with writing(path) as part:
            save_file(tensors, part, metadata={"left_out": json.dumps(left)})

    def _one(self, recording: Recording) -> dict[str, Tensor] | LeftOut:
        samples = recording.audio(self.spec.sample_rate)
        value = self.scale.normal(mel(torch.from_numpy(samples), self.spec)).mT.contiguous()
        if not self.aligner:
            return {"mel": value}
        words = tokens(recording.text)
        if not words:
            return LeftOut("empty text", recording.id)
        if unknown := list(dict.fromkeys(t.word for t in words if not lexicon.pronunciations(t))):
            return LeftOut("unknown words", f"{recording.id} ({' '.join(unknown[:8])})")
        try:
            ids, frames = frame_rate(*self._aligned(recording, samples, len(value)))
        except XDistillError:
            return LeftOut("text does not fit", recording.id)
        return {"mel": value, "ids": ids, "frames": frames}

    def _aligned(self, recording: Recording, samples: Any, frames: int) -> tuple[Phones, list[int]]:
        if self.aligner == "pocketsphinx":
            return alignment.align_to_mel(samples, self.spec.sample_rate, recording.text, self.spec)
        phones = lexicon.phones(recording.text)
        return phones, planning.fitted(phones, frames, recording.id)


def _open(path: Path, recordings: Sequence[Recording]) -> list[Utterance | LeftOut] | None:
    """The shard if it is there, whole."""
    found: list[Utterance | LeftOut] = []
    try:
        with safe_open(path, "pt") as file:
            left = json.loads(file.metadata()["left_out"])
            known = set(file.keys())
            for i, r in enumerate(recordings):
                if str(i) in left:
                    found.append(LeftOut(*left[str(i)]))
                    continue
                aligned = f"{i}.ids" in known
                ids = file.get_tensor(f"{i}.ids") if aligned else torch.empty(0, dtype=torch.int64)
                frames = file.get_tensor(f"{i}.frames") if aligned else None
                found.append(Utterance(r.id, file.get_tensor(f"{i}.mel"), ids, frames, r.text))
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        Console(stderr=True).print(f"{path} is damaged ({error}): making it again")
        return None
    return found
