"""Natural-log mel spectrograms of the two incompatible 24 kHz front-ends of F5-TTS, `vocos` and `bigvgan`, and the
refusal to mix them (specs/speech.md 1.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdistill.domains.speech.stft import stft
from xdistill.errors import UsageError, XDistillError
from xdistill.registry import nearest

KINDS = ("vocos", "bigvgan")
FLOOR = 1e-5


@dataclass(frozen=True)
class MelSpec:
    """One front-end: window = n_fft, bins from 0 Hz to half the sample rate; raises UsageError for an unknown kind."""

    kind: str
    sample_rate: int = 24000
    n_fft: int = 1024
    hop: int = 256
    bins: int = 100

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown mel kind '{self.kind}'{nearest(self.kind, KINDS)}")

    @property
    def pad(self) -> int:
        """Samples reflected on each side before framing."""
        return self.n_fft // 2 if self.kind == "vocos" else (self.n_fft - self.hop) // 2

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop

    def frames(self, samples: int) -> int:
        """Frames that `mel` makes of so many samples."""
        return samples // self.hop + (self.kind == "vocos")

    def samples(self, frames: int) -> int:
        """Samples that a vocoder makes of so many frames; `frames(samples(n)) == n`."""
        return (frames - (self.kind == "vocos")) * self.hop

    def check(self, mel: Tensor) -> None:
        """Raise XDistillError unless `mel` is one utterance [bins, frames] of at least two frames."""
        if mel.ndim != 2 or mel.shape[0] != self.bins or mel.shape[1] < 2:
            raise XDistillError(
                f"a mel of shape {tuple(mel.shape)}: expected [{self.bins}, frames] of one utterance, 2 frames or more"
            )


def filterbank(spec: MelSpec) -> NDArray[np.float64]:
    """Triangles [bins, n_fft//2+1]: HTK scale without area norm (vocos), Slaney scale and area norm (bigvgan)."""
    nyquist = spec.sample_rate / 2
    edges = (_htk_edges if spec.kind == "vocos" else _slaney_edges)(nyquist, spec.bins)[:, None]
    hertz = np.linspace(0.0, nyquist, spec.n_fft // 2 + 1)
    rise = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0.0, np.minimum(rise, fall))
    return bank if spec.kind == "vocos" else bank * (2 / (edges[2:] - edges[:-2]))


@lru_cache(maxsize=16)
def bank_tensor(spec: MelSpec, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`filterbank` as a cached tensor; never written to."""
    return torch.from_numpy(filterbank(spec)).to(device, dtype)


def mel(waveform: Tensor, spec: MelSpec) -> Tensor:
    """Log-mel [..., bins, frames] (nats, floor ln 1e-5) of [..., samples] in [-1, 1] at `spec.sample_rate`.

    float32 or float64, smaller types as float32. Differentiable. All samples are heard: cut padding off first.
    Raises XDistillError for fewer samples than the reflection needs.
    """
    samples = waveform.shape[-1]
    if samples <= spec.pad:
        raise XDistillError(
            f"a waveform of {samples} samples is too short for a mel: {spec.pad + 1} samples "
            f"({(spec.pad + 1) / spec.sample_rate:.3f} s at {spec.sample_rate} Hz) are the least; give longer audio"
        )
    if waveform.dtype not in (torch.float32, torch.float64):
        waveform = waveform.float()
    spectrum = stft(waveform.reshape(-1, samples), spec.n_fft, spec.hop, spec.pad)
    if spec.kind == "vocos":
        magnitude = spectrum.abs()
    else:
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    banded = bank_tensor(spec, waveform.dtype, waveform.device) @ magnitude
    return banded.clamp(min=FLOOR).log().reshape(*waveform.shape[:-1], spec.bins, -1)


def same_mel(a: MelSpec | str, b: MelSpec | str, what: str) -> None:
    """Refuse two front-ends that differ; a bare kind is compared by kind alone, `what` says what was put together.

    Raises XDistillError: nothing else would notice, the two scales differ by about 4 nats and the sound is just broken.
    """
    kinds = [spec if isinstance(spec, str) else spec.kind for spec in (a, b)]
    if kinds[0] != kinds[1]:
        raise XDistillError(
            f"{what}: mel kind '{kinds[0]}' met '{kinds[1]}'; their scales differ by about 4 nats, which gives broken "
            "sound without any error; use two parts of one kind"
        )
    if isinstance(a, MelSpec) and isinstance(b, MelSpec) and a != b:
        names = [field.name for field in fields(MelSpec) if getattr(a, field.name) != getattr(b, field.name)]
        differ = ", ".join(f"{name} {getattr(a, name)} and {getattr(b, name)}" for name in names)
        raise XDistillError(f"{what}: the mels differ ({differ}); use two parts with the same mel")


def _htk_edges(nyquist: float, bins: int) -> NDArray[np.float64]:
    """Hertz [bins + 2]. In float32, as the official bank was made: rounding moves its slopes by 1e-5."""
    mels = torch.linspace(0.0, 2595.0 * math.log10(1.0 + nyquist / 700.0), bins + 2, dtype=torch.float32)
    return (700.0 * (10.0 ** (mels / 2595.0) - 1.0)).double().numpy()


def _slaney_edges(nyquist: float, bins: int) -> NDArray[np.float64]:
    """Hertz [bins + 2]: 200/3 Hz a mel up to 1 kHz (mel 15), above it 27 mels for each factor of 6.4."""
    top = 15.0 + 27.0 * math.log(nyquist / 1000.0) / math.log(6.4) if nyquist > 1000.0 else nyquist * 3.0 / 200.0
    mels = np.linspace(0.0, top, bins + 2)
    return np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0))
