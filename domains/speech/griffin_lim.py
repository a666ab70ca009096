"""Griffin-Lim vocoding: a mel is inverted to magnitudes by non-negative least squares, the phase is found by the fast
Griffin-Lim algorithm (Perraudin, Balazs, Sondergaard, 2013). Deterministic, no weights, both mel kinds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from xdistill.domains.speech.mel import MelSpec, bank_tensor
from xdistill.domains.speech.stft import istft, stft
from xdistill.errors import XDistillError

LOWEST = -11.5  # nats, the floor of both mels


@dataclass(frozen=True)
class GriffinLim:
    """A `Vocoder` for mels of `spec`.

    Args:
        spec: front-end of the mels.
        iterations: projections of the phase search.
        momentum: acceleration, 0 is the classic algorithm.
        updates: multiplicative steps of the magnitude fit.
        seed: of the first phases, the same for every utterance.
    """

    spec: MelSpec
    iterations: int = 60
    momentum: float = 0.99
    updates: int = 100
    seed: int = 0
    name: str = "griffin_lim"

    @property
    def mel_kind(self) -> str:
        return self.spec.kind

    @torch.no_grad()
    def __call__(self, mel: Tensor) -> Tensor:
        """Waveform [samples] of a log-mel [bins, frames], `spec.samples(frames)` long; the mel without padding.

        float64 stays, everything smaller becomes float32. Raises XDistillError for other bins or too few frames.
        """
        self.spec.check(mel)
        if self.spec.samples(mel.shape[1]) <= self.spec.pad:
            raise XDistillError(f"a mel of {mel.shape[1]} frames is too short for Griffin-Lim: 4 are the least")
        mel = mel if mel.dtype == torch.float64 else mel.float()
        return self._phase(magnitudes(mel, self.spec, self.updates))

    def _phase(self, magnitude: Tensor) -> Tensor:
        """Waveform whose STFT has nearly this magnitude [n_fft//2+1, frames]."""
        sizes = (self.spec.n_fft, self.spec.hop, self.spec.pad)
        generator = torch.Generator().manual_seed(self.seed)
        angle = 2 * torch.pi * torch.rand(magnitude.shape, generator=generator, dtype=torch.float64)
        magnitude = magnitude[None]
        estimate = torch.polar(magnitude, angle.to(magnitude)[None])
        before = torch.zeros_like(estimate)
        for _ in range(self.iterations):
            found = stft(istft(estimate, *sizes), *sizes)
            # found + momentum * (found - before) up to a positive factor, which the phase does not see
            ahead = found - self.momentum / (1 + self.momentum) * before
            estimate, before = magnitude * ahead / ahead.abs().clamp(min=1e-16), found
        return istft(estimate, *sizes)[0]


@torch.no_grad()
def magnitudes(mel: Tensor, spec: MelSpec, updates: int = 100) -> Tensor:
    """Non-negative STFT magnitudes [n_fft//2+1, frames] whose bands fit exp(mel), mel [bins, frames] in nats.

    Multiplicative updates (Lee and Seung, 2000) from the clamped pseudo-inverse, least squares, each frame by itself.
    specs/speech.md 5 cuts mels at 4 nats; loud vowels of the vocos kind reach 4.9, so the bound here is physical.
    """
    bank = bank_tensor(spec, mel.dtype, mel.device)
    # exp of a wild value would drown the utterance: no band exceeds that of a waveform in [-1, 1]
    loudest = spec.n_fft / 2 * bank.sum(1, keepdim=True)
    target = mel.clamp(min=LOWEST).exp().minimum(loudest)
    found = (_pseudo_inverse(spec, mel.dtype, mel.device) @ target).clamp(min=1e-5)
    wanted = bank.T @ target
    for _ in range(updates):
        found = found * (wanted / (bank.T @ (bank @ found)).clamp(min=1e-10))
    return found


@lru_cache(maxsize=16)
def _pseudo_inverse(spec: MelSpec, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.linalg.pinv(bank_tensor(spec, torch.float64, device)).to(dtype)
