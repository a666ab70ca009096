"""A user's own recordings with transcripts: found, checked one by one, and read at the rate a network needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdistill.cache import remembered
from xdistill.domains.speech import audio
from xdistill.domains.speech.folder_report import FolderReport
from xdistill.domains.speech.tokens import SpeechTokenizer
from xdistill.domains.speech.transcripts import transcribed
from xdistill.errors import UsageError, XDistillError

FULL_SCALE, CLIPPED = 0.999, 1e-3
SILENT = 1e-4


@dataclass(frozen=True)
class Recording:
    """A usable recording; `split` is "train" or "heldout"."""

    id: str
    path: Path
    text: str
    seconds: float
    split: str

    def audio(self, rate: int) -> NDArray[np.float32]:
        """Samples [n] at `rate` Hz, mono, full scale 1."""
        return audio.read(self.path, rate)

    def identity(self) -> list[Any]:
        """JSON values that change when the file or its text does."""
        return [*identity(self.path), self.text]


@dataclass(frozen=True)
class Limits:
    """What a recording has to be.

    shortest, longest: seconds. tokenizer: whose vocabulary has all its characters, None for any. holdout: share of the
    sentences for evaluation, chosen by a hash of the text, so that one sentence is never on both sides.
    """

    shortest: float = 0.5
    longest: float = 30.0
    tokenizer: SpeechTokenizer | None = None
    holdout: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < self.longest:
            raise UsageError(f"shortest={self.shortest:g}, longest={self.longest:g}: expected 0 <= shortest < longest")
        if not 0 <= self.holdout < 1:
            raise UsageError(f"holdout={self.holdout:g}: expected a share, 0 or more and below 1")


def scan(source: str | Path, limits: Limits | None = None) -> tuple[list[Recording], FolderReport]:
    """The usable recordings of a folder (see `transcripts.transcribed`), sorted as found, and what was left out.

    Files are judged by their header first, so that a recording of hours is never read; what was judged once is
    remembered. Raises XDistillError when there is no recording or none is usable, UsageError when its text needs a
    package that is missing.
    """
    limits, report, kept = limits or Limits(), FolderReport(), []
    items = list(transcribed(Path(source).expanduser(), report))
    made_of = {"limits": [limits.shortest, limits.longest], "files": [identity(item.path) for item in items]}
    judged = remembered("recordings", made_of, lambda: [_judge(item.path, limits) for item in items])
    for item, (reason, seconds) in zip(items, judged, strict=True):
        unknown = limits.tokenizer.unknown(item.text) if limits.tokenizer else ()
        if not item.text:
            report.skip("empty text", item.name)
        elif unknown:
            report.skip("unknown characters", f"{item.name} ({' '.join(map(repr, unknown[:8]))})")
        elif reason:
            report.skip(reason, item.name)
        else:
            kept.append(Recording(item.name, item.path, item.text, seconds, ""))
    return divided(kept, limits.holdout, report, source), report


def divided(kept: Sequence[Recording], holdout: float, report: FolderReport, source: str | Path) -> list[Recording]:
    """The recordings with their splits, counted in `report`; of several sentences each side has at least one.

    Nothing is held out where `holdout` is 0. Raises XDistillError when there are no recordings.
    """
    if not kept:
        raise XDistillError(report.nothing(str(source)))
    numbers = sorted({_fraction(r.text) for r in kept})
    count = sum(number < holdout for number in numbers)
    held = set(numbers[: min(max(count, int(holdout > 0)), len(numbers) - 1)])
    found = [replace(r, split="heldout" if _fraction(r.text) in held else "train") for r in kept]
    report.recordings, report.seconds = len(found), round(sum(r.seconds for r in found), 3)
    report.held_out = sum(r.split == "heldout" for r in found)
    return found


def identity(path: Path) -> list[Any]:
    """JSON values that change when the file does."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _judge(path: Path, limits: Limits) -> tuple[str, float]:
    """(reason to leave the recording out or "", seconds)."""
    if path.stat().st_size == 0:
        return "empty", 0.0
    try:
        seconds = audio.info(path).seconds
        if seconds == 0:
            return "empty", 0.0
        if not limits.shortest <= seconds <= limits.longest:
            return "too short" if seconds < limits.shortest else "too long", seconds
        return _sound(audio.read_channels(path)[0]), seconds
    except XDistillError:
        return "not audio", 0.0


def _sound(samples: NDArray[np.float32]) -> str:
    if not len(samples):
        return "empty"
    if not np.isfinite(samples).all():
        return "not audio"
    if float(np.sqrt(np.mean(samples**2))) < SILENT:
        return "silent"
    return "clipped" if float(np.mean(np.abs(samples) >= FULL_SCALE)) > CLIPPED else ""


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the words alone."""
    return int.from_bytes(blake2b(text.lower().encode(), digest_size=8).digest()) / 2**64
