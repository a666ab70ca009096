"""What a neural vocoder is trained and measured by: distances of spectra, of phase differences, and a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.stft import stft

RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
QUIET = 1e-3  # magnitudes below are not compared; a full-scale sine has n_fft/4


def stft_distance(found: Tensor, wanted: Tensor, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS) -> Tensor:
    """Spectral convergence plus L1 of log magnitudes, mean over (n_fft, hop), [B] of waveforms [B, samples].

    Multi-resolution STFT loss of Parallel WaveGAN (arXiv:1910.11480, eqs. 4-6).
    """
    total = found.new_zeros(len(found))
    for n_fft, hop in resolutions:
        a, b = (stft(x, n_fft, hop, n_fft // 2).abs().clamp(min=QUIET) for x in (found, wanted))
        convergence = (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
        total = total + convergence + (a.log() - b.log()).abs().mean((1, 2))
    return total / len(resolutions)


def mel_distance(found: Tensor, wanted: Tensor, spec: MelSpec) -> Tensor:
    """Mean absolute difference of log-mels in nats, [B] of waveforms [B, samples]."""
    return (mel(found, spec) - mel(wanted, spec)).abs().mean((1, 2))


def phase_distance(found: Tensor, wanted: Tensor, n_fft: int = 1024, hop: int = 256) -> Tensor:
    """1 - cos of the error of phase differences between neighbouring frames and bins, [B] of waveforms [B, samples].

    A mel says nothing of absolute phase, but much of these two, the instantaneous frequency and the group delay (as in
    APNet, arXiv:2305.07952, here without wrapping). Weighted by the square root of the wanted magnitudes, 0 to 2 each.
    """
    a, b = (stft(x, n_fft, hop, n_fft // 2) for x in (found, wanted))
    total = found.new_zeros(len(found))
    for axis in (1, 2):
        p, q = (x.narrow(axis, 1, x.shape[axis] - 1) * x.narrow(axis, 0, x.shape[axis] - 1).conj() for x in (a, b))
        weight = q.abs().sqrt()
        cosine = (p * q.conj()).real / (p.abs() * q.abs()).clamp(min=QUIET**2)
        total = total + (weight * (1 - cosine)).sum((1, 2)) / weight.sum((1, 2)).clamp(min=QUIET)
    return total


class SpectrogramDiscriminator(nn.Module):
    """Scores patches of complex spectrograms at several resolutions, as in UnivNet (arXiv:2106.07889) and Vocos."""

    def __init__(self, channels: int = 16, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.scales = nn.ModuleList(_patches(channels) for _ in self.resolutions)

    def forward(self, waveform: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores, one tensor a resolution, and all hidden features, of [B, samples]."""
        scores, features = [], []
        for (n_fft, hop), layers in zip(self.resolutions, self.scales, strict=True):
            spectrum = stft(waveform, n_fft, hop, n_fft // 2)
            # power-law compression: loudness varies by orders of magnitude, convolutions should not
            x = torch.view_as_real(spectrum * (spectrum.abs() + QUIET).pow(-0.7)).permute(0, 3, 1, 2)
            parts = list(cast(nn.ModuleList, layers))
            for layer in parts[:-1]:
                x = F.leaky_relu(layer(x), 0.1)
                features.append(x)
            scores.append(parts[-1](x))
        return scores, features


def judge_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of a discriminator's scores."""
    losses = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def fooling_loss(fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of a generator."""
    return torch.stack([F.relu(1 - f).mean() for f in fake]).mean()


def feature_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of a discriminator's features; `real` gets no gradient."""
    return torch.stack([(r.detach() - f).abs().mean() for r, f in zip(real, fake, strict=True)]).mean()


def _patches(channels: int) -> nn.ModuleList:
    # the first stride is wide: at full frequency resolution a CPU would spend most of its time in one layer
    widths, strides = (2, *[channels] * 4), (4, 2, 2, 1)
    hidden = [
        weight_norm(nn.Conv2d(a, b, (9, 3), (stride, 1), (4, 1)))
        for a, b, stride in zip(widths, widths[1:], strides, strict=False)
    ]
    return nn.ModuleList([*hidden, weight_norm(nn.Conv2d(channels, 1, 3, padding=1))])
