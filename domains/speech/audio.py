"""Audio files in and out: any format and rate that libsndfile reads, as mono float32; WAV and FLAC written."""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdistill.domains.speech.resampling import resample
from xdistill.errors import UsageError, XDistillError

FORMATS = {"wav": "PCM_16", "flac": "PCM_16"}
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")


@dataclass(frozen=True)
class Info:
    """What an audio file's header says. frames: samples of each channel."""

    frames: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def info(path: str | Path) -> Info:
    """Length and rate from the header alone; raises XDistillError when the file is missing or no audio."""
    import soundfile

    try:
        found = soundfile.info(str(path))
    except (OSError, soundfile.LibsndfileError) as error:
        raise XDistillError(_unreadable(path, error)) from None
    return Info(found.frames, found.samplerate, found.channels)


def read(path: str | Path, rate: int) -> NDArray[np.float32]:
    """Samples [n] at `rate` Hz, the mean of all channels, full scale 1; raises XDistillError as `info`.

    The whole file is read: look at `info` first where it may be long.
    """
    samples, original = read_channels(path)
    return resample(samples.mean(axis=1, dtype=np.float32), original, rate)


def read_channels(path: str | Path) -> tuple[NDArray[np.float32], int]:
    """([n, channels] as recorded, Hz); raises XDistillError as `info`."""
    import soundfile

    try:
        return soundfile.read(str(path), dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise XDistillError(_unreadable(path, error)) from None


def encode(samples: NDArray[np.floating], rate: int, format: str = "wav") -> bytes:
    """A 16-bit mono file of samples [n] in [-1, 1]; what lies beyond is clipped.

    Raises UsageError for a format other than wav and flac, XDistillError for NaN, infinity, or another shape than [n].
    """
    import soundfile

    if format not in FORMATS:
        raise UsageError(f"unknown audio format '{format}': expected {' or '.join(FORMATS)}")
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise XDistillError(f"cannot write audio of shape {list(samples.shape)}: expected finite samples [n], mono")
    buffer = io.BytesIO()
    # Rounded here: libsndfile's own float conversion wraps or clips by version.
    whole = np.round(np.clip(samples.astype(np.float64), -1, 1) * 32767).astype(np.int16)
    soundfile.write(buffer, whole, rate, format=format.upper(), subtype=FORMATS[format])
    return buffer.getvalue()


def write(samples: NDArray[np.floating], rate: int, path: str | Path) -> Path:
    """Write a .wav or .flac file (`encode`), whole or not at all; raises XDistillError rather than overwrite one."""
    path = Path(path)
    payload = encode(samples, rate, path.suffix.lower().removeprefix("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would outlive the link
        # A link fails where the name is taken, which a rename would not.
        os.link(temporary, path)
    except FileExistsError:
        raise XDistillError(f"{path} exists already: choose another name or remove it") from None
    finally:
        Path(temporary).unlink()
    return path


def _unreadable(path: str | Path, error: Exception) -> str:
    if not os.path.isfile(path):
        return f"{path} is no file: give an audio file ({' '.join(SUFFIXES)})"
    return f"{path} cannot be read as audio ({str(error).splitlines()[0]}): give {' '.join(SUFFIXES)}"
