"""Anti-aliased periodic activations of BigVGAN (arXiv:2206.04658): a snake between two resamplers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS, RATIO = 12, 2  # of the filters, fixed in every released model


class Snake(nn.Module):
    """x + sin^2(alpha x) / beta per channel (arXiv:2006.08195); plain `snake` has beta = alpha."""

    def __init__(self, channels: int, with_beta: bool, log_scale: bool) -> None:
        super().__init__()
        self.log_scale = log_scale
        first = torch.zeros if log_scale else torch.ones
        self.alpha = nn.Parameter(first(channels))
        if with_beta:
            self.beta = nn.Parameter(first(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha[:, None], getattr(self, "beta", self.alpha)[:, None]
        if self.log_scale:
            alpha, beta = alpha.exp(), beta.exp()
        return x + (alpha * x).sin().square() / (beta + 1e-9)


class Lowpass(nn.Module):
    """The Kaiser-windowed sinc that both resamplers share, with the official buffer name."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", kaiser_sinc(0.5 / RATIO, 0.6 / RATIO, TAPS))


class Upsample(Lowpass):
    """Twice the rate, edges repeated; [B, channels, T] to [B, channels, 2T]."""

    def forward(self, x: Tensor) -> Tensor:
        pad = TAPS // RATIO - 1
        x, channels = F.pad(x, (pad, pad), mode="replicate"), x.shape[1]
        y = RATIO * F.conv_transpose1d(x, self.filter.expand(channels, -1, -1), stride=RATIO, groups=channels)
        cut = pad * RATIO + (TAPS - RATIO) // 2
        return y[..., cut:-cut]


class Downsample(nn.Module):
    """Half the rate, edges repeated; [B, channels, 2T] to [B, channels, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = Lowpass()

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(x, self.lowpass.filter.expand(channels, -1, -1), stride=RATIO, groups=channels)


class Activation(nn.Module):
    """A snake at twice the rate, so that the harmonics it makes do not alias."""

    def __init__(self, channels: int, with_beta: bool, log_scale: bool) -> None:
        super().__init__()
        self.act, self.upsample, self.downsample = Snake(channels, with_beta, log_scale), Upsample(), Downsample()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))


def kaiser_sinc(cutoff: float, half_width: float, taps: int) -> Tensor:
    """Low-pass filter [1, 1, taps] of sum 1; cutoff and transition half-width in cycles a sample, taps even.

    The window's beta is Kaiser's rule for the attenuation that so many taps reach.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * max(attenuation - 21, 0) ** 0.4 + 0.07886 * max(attenuation - 21, 0)
    time = torch.arange(taps) - taps // 2 + 0.5
    found = torch.kaiser_window(taps, periodic=False, beta=beta) * torch.sinc(2 * cutoff * time)
    return (found / found.sum())[None, None]
