"""The embedded speech corpus: `assets/asterisk_en`, one English voice, 18 minutes (CC-BY-SA 3.0; see LICENSE.md)."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from xdistill.domains.speech.phones import Phones

FOLDER = Path(__file__).parent / "assets" / "asterisk_en"
RATE = 16000


@dataclass(frozen=True)
class Clip:
    """One recorded sentence. `split` is "train" or "heldout" (never trained on)."""

    id: str
    file: str
    seconds: float
    text: str
    cer: float
    split: str

    def audio(self) -> np.ndarray:
        """Samples, float32 [n] in [-1, 1], 16 kHz mono."""
        import soundfile

        samples, _ = soundfile.read(FOLDER / self.file, dtype="float32")
        return samples


@cache
def _all() -> tuple[Clip, ...]:
    with (FOLDER / "transcripts.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return tuple(Clip(r["id"], r["file"], float(r["seconds"]), r["text"], float(r["cer"]), r["split"]) for r in rows)


def clips(split: str | None = None) -> list[Clip]:
    """Clips of a split ("train", "heldout"; None: all), sorted by id."""
    return [clip for clip in _all() if split in (None, clip.split)]


@dataclass(frozen=True)
class Aligned:
    """A clip with its phones and their durations in `vocos` mel frames (93.75 a second), which sum to the mel."""

    clip: Clip
    phones: Phones
    durations: tuple[int, ...]


def aligned(split: str | None = None) -> list[Aligned]:
    """The clips that could be aligned (all but two), by tools/align_speech_corpus.py; otherwise as `clips`."""
    with (FOLDER / "phones.tsv").open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    return [_aligned(clip, rows[clip.id]) for clip in clips(split) if clip.id in rows]


def _aligned(clip: Clip, row: dict[str, str]) -> Aligned:
    marks = tuple("" if mark == "-" else mark for mark in row["marks"].split())
    phones = Phones(tuple(row["phones"].split()), tuple(map(int, row["words"].split())), marks)
    return Aligned(clip, phones, tuple(map(int, row["durations"].split())))
