"""A user's own recordings with transcripts: found, checked one by one, and read at the rate a network needs."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdistill.domains.speech import audio
from xdistill.domains.speech.folder_report import FolderReport
from xdistill.domains.speech.transcripts import Transcribed, transcribed
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


@dataclass(frozen=True)
class Limits:
    """What a recording has to be.

    shortest, longest: seconds. vocabulary: the characters a network knows, None for any. holdout: share of the
    sentences for evaluation, chosen by a hash of the text, so that one sentence is never on both sides.
    """

    shortest: float = 0.5
    longest: float = 30.0
    vocabulary: frozenset[str] | None = None
    holdout: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < self.longest:
            raise UsageError(f"shortest={self.shortest:g}, longest={self.longest:g}: expected 0 <= shortest < longest")
        if not 0 <= self.holdout < 1:
            raise UsageError(f"holdout={self.holdout:g}: expected a share, 0 or more and below 1")


def scan(source: str | Path, limits: Limits | None = None) -> tuple[list[Recording], FolderReport]:
    """The usable recordings of a folder (see `transcripts.transcribed`), sorted as found, and what was left out.

    Files are judged by their header first, so that a recording of hours is never read. Raises XDistillError when there
    is no recording or none is usable.
    """
    limits, report = limits or Limits(), FolderReport()
    kept = []
    for item in transcribed(Path(source), report):
        reason, seconds = _judge(item, limits)
        if reason:
            report.skip(reason, item.name)
            continue
        split = "heldout" if _fraction(item.text) < limits.holdout else "train"
        kept.append(Recording(item.name, item.path, item.text, seconds, split))
    if not kept:
        raise XDistillError(report.nothing(str(source)))
    report.recordings, report.seconds = len(kept), sum(r.seconds for r in kept)
    report.held_out = sum(r.split == "heldout" for r in kept)
    return kept, report


def _judge(item: Transcribed, limits: Limits) -> tuple[str, float]:
    """(reason to leave it out or "", seconds)."""
    if not item.text:
        return "empty text", 0.0
    if limits.vocabulary is not None and set(item.text) - limits.vocabulary:
        return "unknown characters", 0.0
    if item.path.stat().st_size == 0:
        return "empty", 0.0
    try:
        seconds = audio.info(item.path).seconds
        if seconds == 0:
            return "empty", 0.0
        if not limits.shortest <= seconds <= limits.longest:
            return "too short" if seconds < limits.shortest else "too long", seconds
        return _sound(audio.read_channels(item.path)[0]), seconds
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
