"""A recorded voice to go on from: any sound file, checked, at the front-end's rate, mono, at the network's level."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdistill.domains.speech import audio
from xdistill.domains.speech.prompting import PROMPT_SECONDS, levelled, shortened
from xdistill.errors import UsageError, XDistillError

RATE = 24000  # of both front-ends
LEAST_RATE, LEAST_SECONDS = 8000, 0.5
CLIPPED, FULL_SCALE = 0.005, 0.999  # share of samples at full scale
ADVICE = f"give 2 to {PROMPT_SECONDS:g} seconds of one person speaking, as WAV, FLAC, OGG or MP3"


@dataclass(frozen=True)
class Voice:
    """A voice prompt. identity: `sha256:...` of its file; wave: [n] at 24 kHz, raised by `gain`; text: what it says."""

    identity: str
    text: str
    gain: float = 1.0
    wave: Tensor = field(default_factory=lambda: torch.empty(0), compare=False, repr=False)


def read_voice(path: str, text: str | None = None) -> Voice:
    """The voice of a sound file that says `text` (default: what stands in the .txt beside it).

    Raises UsageError without a text, XDistillError, one line, for a file that is no audio, empty, silent, clipped, too
    short or too long.
    """
    samples = read_audio(path, most=PROMPT_SECONDS)
    if text is None:
        beside = Path(path).with_suffix(".txt")
        if not beside.is_file():
            raise UsageError(f'ref={path} has no transcript: add ref_text="what it says", or write it to {beside}')
        text = beside.read_text(encoding="utf-8-sig", errors="replace")
    if not text.strip():
        raise UsageError(f'the transcript of ref={path} is empty: give ref_text="what it says"')
    seconds = len(samples) / RATE
    if seconds < LEAST_SECONDS:
        raise XDistillError(f"{path} is {seconds:.2f} s long, too short for a voice: {ADVICE}")
    loud = float((np.abs(samples) >= FULL_SCALE).mean())
    if loud > CLIPPED:
        raise XDistillError(f"{path} is clipped ({loud:.0%} of it at full scale): record it with less gain")
    try:
        wave, gain = levelled(shortened(torch.from_numpy(samples), RATE))
    except XDistillError as error:
        raise XDistillError(f"{path}: {error}; {ADVICE}") from error
    said = " ".join(text.split())
    digest = hashlib.sha256(Path(path).read_bytes() + b"\0" + said.encode()).hexdigest()
    return Voice(f"sha256:{digest}", said, gain, wave)


def read_audio(path: str | Path, rate: int = RATE, most: float | None = None) -> NDArray[np.float32]:
    """[n] float32 in [-1, 1] of any sound file, channels averaged, at `rate` Hz.

    most: seconds; longer files are refused before they are read. Raises XDistillError, one line, for what is missing,
    no audio, empty, not finite or longer.
    """
    info = audio.info(path)
    if not info.frames:
        raise XDistillError(f"{path} is empty: {ADVICE}")
    if most is not None and info.seconds > most:
        raise XDistillError(
            f"{path} is {_length(info.seconds)} long, a voice prompt has at most {most:g} s: cut out a part, and give "
            "what that part says"
        )
    if info.rate < LEAST_RATE:
        raise XDistillError(f"{path} has {info.rate} samples a second: expected {LEAST_RATE} or more")
    found = audio.read(path, rate)
    if not np.isfinite(found).all():
        raise XDistillError(f"{path} has NaN or infinite samples: {ADVICE}")
    return found


def _length(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds:.1f} s"
