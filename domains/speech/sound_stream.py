"""Speech that is written part by part while the next one is made, each cross-faded into the one before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from xdistill.domains.speech.codec import Watermark, tag, whole
from xdistill.domains.speech.prompting import FADE_SECONDS
from xdistill.domains.speech.spoken import Spoken
from xdistill.errors import UsageError

FORMATS = {".wav": "WAV", ".flac": "FLAC"}


class SoundRecorder:
    """A `Recorder` of utterances.

    out: a .wav or .flac file (.wav where it names neither), or `-`: 16-bit little-endian mono samples on the standard
    output. The end of each part is held back until the next is there to be faded into; watermarks mark whole parts.
    Raises UsageError where `out` is a folder, or a file that is there already.
    """

    def __init__(
        self, out: str, waveform: Callable[[Spoken], NDArray[np.float32]], watermark: Watermark | None = None
    ) -> None:
        self.waveform, self.watermark, self.rate, self.written = waveform, watermark, 0, 0
        self.path = None if out == "-" else Path(out)
        if self.path is not None and self.path.suffix.lower() not in FORMATS:
            self.path = self.path.with_name(f"{self.path.name}.wav")
        if self.path is not None and self.path.is_dir():
            raise UsageError(f"out={out} is a folder: stream=true writes one file, give its name")
        if self.path is not None and self.path.exists():
            raise UsageError(f"out={self.path} is there already, and nothing is overwritten: give another name")
        self.file: soundfile.SoundFile | None = None
        self.held: NDArray[np.float32] = np.empty(0, np.float32)

    @property
    def seconds(self) -> float:
        return self.written / self.rate if self.rate else 0.0

    def add(self, sample: Spoken) -> None:
        wave = self.waveform(sample)
        if not self.rate:
            self._open(sample)
        if self.watermark is not None:
            wave = np.asarray(self.watermark(wave, self.rate), np.float32)
        n = min(len(self.held), len(wave))
        up = np.linspace(0, 1, n, dtype=np.float32)
        faded = self.held[len(self.held) - n :] * (1 - up) + wave[:n] * up
        joined = np.concatenate([self.held[: len(self.held) - n], faded, wave[n:]])
        keep = max(len(joined) - int(FADE_SECONDS * self.rate), 0)
        self._write(joined[:keep])
        self.held = joined[keep:]

    def close(self) -> None:
        self._write(self.held)
        self.held = self.held[:0]
        if self.file is not None:
            self.file.close()

    def _open(self, sample: Spoken) -> None:
        self.rate = sample.spec.sample_rate
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = soundfile.SoundFile(
                str(self.path), "w", self.rate, 1, "PCM_16", format=FORMATS[self.path.suffix.lower()]
            )
            tag(self.file, "")

    def _write(self, wave: NDArray[np.float32]) -> None:
        self.written += len(wave)
        if self.file is not None:
            self.file.write(whole(wave))
            self.file.flush()
        elif self.path is None:
            sys.stdout.buffer.write(whole(wave).astype("<i2").tobytes())
            sys.stdout.buffer.flush()
