"""Short-time Fourier transform with a periodic Hann window and its least-squares inverse, for both paddings in use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def stft(waveform: Tensor, n_fft: int, hop: int, pad: int) -> Tensor:
    """Complex [B, n_fft//2+1, frames] of [B, samples], `pad` samples reflected on each side; samples > pad."""
    padded = F.pad(waveform[:, None], (pad, pad), mode="reflect")[:, 0]
    return torch.stft(padded, n_fft, hop, window=_window(padded, n_fft), center=False, return_complex=True)


def istft(spectrum: Tensor, n_fft: int, hop: int, pad: int) -> Tensor:
    """[B, (frames-1)*hop + n_fft - 2*pad]: the waveform whose `stft` is nearest to `spectrum` (Griffin and Lim, 1984).

    With pad = n_fft//2 this is `torch.istft(center=True)`; that one refuses pad = (n_fft-hop)//2, one hop a frame.
    """
    frames = torch.fft.irfft(spectrum, n_fft, dim=1)
    window = _window(frames, n_fft)[:, None]
    total = _overlap(frames * window, hop)
    weight = _overlap(window.square().expand(1, -1, frames.shape[-1]), hop)
    return (total / weight.clamp(min=1e-11))[:, pad : total.shape[1] - pad]


def _window(like: Tensor, n_fft: int) -> Tensor:
    return torch.hann_window(n_fft, dtype=like.dtype, device=like.device)


def _overlap(frames: Tensor, hop: int) -> Tensor:
    """Overlap-add of frames [B, n_fft, frames]."""
    n_fft, count = frames.shape[1:]
    return F.fold(frames, (1, (count - 1) * hop + n_fft), (1, n_fft), stride=(1, hop))[:, 0, 0]
