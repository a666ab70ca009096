"""What two log-mels are compared by: cepstral distortion, alignment in time, pitch. numpy alone, no vocoder."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from xdistill.domains.speech.mel import MelSpec, filterbank

Array = NDArray[np.float64]
CEPSTRA = 13
DECIBEL = 20 / np.log(10)  # of a nat of amplitude
QUIET = 40.0  # dB below an utterance's loudest frame: silence
LOW, HIGH = 80.0, 500.0  # Hz that a voice's pitch may have
BAND = 1400.0  # Hz: harmonics above it are too close for the bands of a mel
VOICED = 0.65  # autocorrelation of a voiced frame, as a share of a perfect one's, at least
WINDOW = 0.254  # of the window's length: the lag at which a perfect one's has fallen to 1 / e
OCTAVE = 0.04  # of autocorrelation that a candidate loses for each octave below HIGH


def cepstra(mel: Array) -> Array:
    """[N, 13] of a natural-log mel [N, D]: amplitudes of its cosines 1..13 over the bands; 0, the loudness, is out."""
    bands = mel.shape[1]
    angle = np.pi * np.arange(1, CEPSTRA + 1)[:, None] * (np.arange(bands) + 0.5) / bands
    return np.asarray(mel @ (np.cos(angle).T * 2 / bands), np.float64)


def distortion(a: Array, b: Array) -> Array:
    """[N, M] mel cepstral distortion in dB (Kubichek, 1993) between frames of cepstra [N, K] and [M, K]."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.asarray(DECIBEL / 2 * np.sqrt(2 * np.maximum(square, 0)), np.float64)


def align(cost: Array) -> NDArray[np.int64]:
    """[P, 2] the cheapest path of pairs through cost [N, M] from corner to corner, steps (1,1), (1,0), (0,1)."""
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    for d in range(2, n + m + 1):  # cells of an antidiagonal need none of each other
        i = np.arange(max(1, d - m), min(n, d - 1) + 1)
        j = d - i
        before = np.minimum(np.minimum(total[i - 1, j - 1], total[i - 1, j]), total[i, j - 1])
        total[i, j] = cost[i - 1, j - 1] + before
    i, j, path = n, m, [(n - 1, m - 1)]
    while (i, j) != (1, 1):
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(steps, key=lambda at: total[at])
        path.append((i - 1, j - 1))
    return np.array(path[::-1])


def matched(a: Array, b: Array) -> NDArray[np.int64]:
    """[P, 2] frames of log-mels a and b that belong together: one by one where the lengths agree, else by `align`."""
    if len(a) == len(b):
        return np.column_stack([np.arange(len(a))] * 2)
    return align(distortion(cepstra(a), cepstra(b)))


def silent(mel: Array) -> NDArray[np.bool_]:
    """[N] frames 40 dB or more below the loudest."""
    energy = np.exp(2 * mel).sum(1)
    return np.asarray(10 * np.log10(energy / energy.max()) < -QUIET)


def pitch(mel: Array, spec: MelSpec) -> Array:
    """[N] fundamental frequency in Hz of a natural-log mel [N, D], NaN where unvoiced.

    Below 1.4 kHz a mel's bands are no wider than the STFT's, so they are inverted to magnitudes by non-negative least
    squares; the peak of the autocorrelation of what that spectrum belongs to is the period (Wiener-Khinchin; phase does
    not matter, so nothing is vocoded).
    """
    found = low_magnitudes(np.asarray(mel, np.float64), spec)
    hertz = np.arange(found.shape[1]) * spec.sample_rate / spec.n_fft
    candidates = LOW * 2 ** (np.arange(int(np.log2(HIGH / LOW) * 96) + 1) / 96)
    waves = np.cos(2 * np.pi * hertz[:, None] / candidates)
    alike = (found @ waves) / np.maximum(found.sum(1, keepdims=True), 1e-12)
    alike -= OCTAVE * np.log2(HIGH / candidates)
    perfect = np.exp(-((spec.sample_rate / candidates / spec.n_fft / WINDOW) ** 2))
    best = alike[:, 1:-1].argmax(1) + 1
    frames = np.arange(len(mel))
    left, top, right = (alike[frames, best + k] for k in (-1, 0, 1))
    bend = left - 2 * top + right
    shift = np.where(bend < 0, (left - right) / np.where(bend < 0, 2 * bend, 1), 0).clip(-0.5, 0.5)
    hertz = LOW * 2 ** ((best + shift) / 96)
    energy = (found**2).sum(1)
    quiet = energy < energy.max() * 10 ** (-QUIET / 10)
    edge = (left > top) | (right > top)  # the autocorrelation still rises beyond the voice's range
    return np.where(silent(mel) | quiet | edge | (top < VOICED * perfect[best]), np.nan, hertz)


def low_magnitudes(mel: Array, spec: MelSpec, updates: int = 60) -> Array:
    """[N, K] non-negative magnitudes of the STFT's bins up to `BAND`, by multiplicative updates."""
    bank = _low_bank(spec)
    target = np.exp(mel[:, : len(bank)])
    found = np.maximum(target @ np.linalg.pinv(bank).T, 1e-5)
    wanted, gram = target @ bank, bank.T @ bank
    for _ in range(updates):
        found *= wanted / np.maximum(found @ gram, 1e-12)
    return found


@lru_cache(maxsize=4)
def _low_bank(spec: MelSpec) -> Array:
    """[bands, bins] the part of the filter bank whose bands end below `BAND`; 0 Hz is left in."""
    bank = filterbank(spec)
    bins = int(BAND * spec.n_fft / spec.sample_rate) + 1
    inside = bank[:, bins:].sum(1) == 0
    return bank[inside & (bank.sum(1) > 0), :bins]
