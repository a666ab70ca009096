"""The embedded speech corpus: `assets/asterisk_en`, one English voice, 18 minutes (CC-BY-SA 3.0, see its LICENSE.md)."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

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
