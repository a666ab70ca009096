"""Resampling of waveforms by a windowed sinc, in torch alone."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

ZEROS = 32  # zero crossings of the sinc on each side
ROLLOFF = 0.95  # of the lower Nyquist frequency


def resample(samples: NDArray[np.float32], rate: int, to: int) -> NDArray[np.float32]:
    """float32 [n] at `rate` Hz to [ceil(n to / rate)] at `to` Hz; polyphase, linear phase, no delay."""
    if rate == to:
        return samples
    common = math.gcd(rate, to)
    down, up = rate // common, to // common
    kernel, width = _kernel(down, up)
    padded = F.pad(torch.from_numpy(np.ascontiguousarray(samples, np.float32)), (width, width + down))
    phases = F.conv1d(padded[None, None], kernel, stride=down)[0]
    return phases.mT.reshape(-1)[: -(-len(samples) * up // down)].numpy()


@lru_cache(maxsize=16)
def _kernel(down: int, up: int) -> tuple[Tensor, int]:
    """([up, 1, taps], padding): one filter for each output phase, a Kaiser-windowed sinc at the lower Nyquist."""
    cutoff = min(down, up) * ROLLOFF
    width = math.ceil(ZEROS * down / cutoff)
    taps = torch.arange(-width, width + down, dtype=torch.float64) / down
    time = (taps[None] - torch.arange(up, dtype=torch.float64)[:, None] / up) * cutoff
    edge = (time / ZEROS).clamp(-1, 1)
    window = torch.i0(12.0 * (1 - edge**2).sqrt()) / torch.i0(torch.tensor(12.0, dtype=torch.float64))
    return (torch.sinc(time) * window * cutoff / down).float()[:, None], width
