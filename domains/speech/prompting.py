"""Prompts, durations and long texts as F5-TTS handles them (speech spec 1.6): pure functions of waveforms and text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from xdistill.errors import UsageError, XDistillError

PROMPT_SECONDS = 12.0
WINDOW_SECONDS = 22.0  # prompt and generated speech together
LEVEL = 0.1  # RMS of a prompt as the network hears it
FADE_SECONDS = 0.15
MAX_FRAMES = 4096
_SHORT_TEXT, _SLOW = 10, 0.3  # texts below 10 bytes are spoken slowly

_FRAME = 0.01  # seconds over which loudness is measured
_PAUSES = ((1.0, -50.0), (0.1, -40.0))  # seconds, dB below full scale: clear pauses before short ones
_EDGE_DB, _EDGE_SECONDS = -42.0, 0.05
_SENTENCE = re.compile(r"(?<=[;:,.!?])\s+|(?<=[；：，。！？])")


def generated_frames(
    prompt_frames: int, prompt_text: str, text: str, *, speed: float = 1.0, symbols: int = 0, limit: int = MAX_FRAMES
) -> int:
    """Frames of prompt and generated speech: the prompt's frames a byte of its text, over `speed`.

    prompt_frames: samples // hop of the prompt's waveform. symbols: ids of both texts, of which there are fewer than
    frames. Raises UsageError for an empty prompt text or a speed that is not positive.
    """
    if not prompt_text or not speed > 0:
        raise UsageError(f"speed={speed}, prompt text {prompt_text!r}: expected a positive speed and the spoken text")
    size = len(text.encode())
    speed = _SLOW if size < _SHORT_TEXT else speed
    spoken = int(prompt_frames / len(prompt_text.encode()) * size / speed)
    return min(max(prompt_frames + spoken, max(symbols, prompt_frames) + 1), limit)


def closed(text: str) -> str:
    """A prompt's text, ending in a full stop and a space, so that what follows begins a sentence."""
    if text.endswith((". ", "。")):
        return text
    return f"{text} " if text.endswith(".") else f"{text}. "


def shortened(wave: Tensor, rate: int, limit: float = PROMPT_SECONDS) -> Tensor:
    """At most `limit` seconds of wave [n]: up to the last pause in its second half, else cut; edges without silence.

    Raises XDistillError for a wave that is silent throughout.
    """
    if len(wave) > limit * rate:
        ends = (_last_pause(wave, rate, limit, *pause) for pause in _PAUSES)
        wave = wave[: next((end for end in ends if end is not None), int(limit * rate))]
    loud = (_decibels(wave, rate) > _EDGE_DB).nonzero()[:, 0]
    if not len(loud):
        raise XDistillError(f"the prompt is silent (below {_EDGE_DB:g} dB): expected recorded speech")
    step, keep = _step(rate), int(_EDGE_SECONDS * rate)
    return wave[max(int(loud[0]) * step - keep, 0) : (int(loud[-1]) + 1) * step + keep]


def levelled(wave: Tensor, level: float = LEVEL) -> tuple[Tensor, float]:
    """(wave at an RMS of at least `level`, gain): quiet prompts are raised, and what is generated divided by the gain.

    Raises XDistillError for digital silence.
    """
    rms = float(wave.square().mean().sqrt())
    if rms == 0:
        raise XDistillError("the prompt is silent: expected recorded speech")
    gain = max(level / rms, 1.0)
    return wave * gain, gain


def chunk_bytes(prompt_text: str, prompt_seconds: float, speed: float = 1.0) -> int:
    """Bytes of text that fit beside the prompt in one window.

    Raises UsageError for a prompt that leaves no room.
    """
    if not 0 < prompt_seconds < WINDOW_SECONDS:
        raise UsageError(f"a prompt of {prompt_seconds:.1f} s: expected up to {PROMPT_SECONDS:g} s")
    size = len(prompt_text.encode())
    return max(int(size / prompt_seconds * (WINDOW_SECONDS - prompt_seconds) * speed), 1)


def chunks(text: str, limit: int) -> list[str]:
    """The text in parts of at most `limit` bytes, cut after punctuation, else between words; long words stay whole."""
    parts: list[str] = []
    for sentence in filter(None, _SENTENCE.split(text.strip())):
        fits = len(sentence.encode()) <= limit
        for piece in [sentence] if fits else sentence.split():
            joined = f"{parts[-1]}{_joint(parts[-1])}{piece}" if parts else piece
            if parts and len(joined.encode()) <= limit:
                parts[-1] = joined
            else:
                parts.append(piece)
    return parts


def cross_faded(waves: Sequence[Tensor], rate: int, seconds: float = FADE_SECONDS) -> Tensor:
    """The waves [n] one after the other, each faded linearly into the next."""
    out = waves[0]
    for wave in waves[1:]:
        n = min(int(seconds * rate), len(out), len(wave))
        up = torch.linspace(0, 1, n, dtype=out.dtype, device=out.device)
        out = torch.cat([out[: len(out) - n], out[len(out) - n :] * (1 - up) + wave[:n] * up, wave[n:]])
    return out


def _joint(before: str) -> str:
    """What stands between two parts: nothing after full-width punctuation."""
    return "" if before.endswith(tuple("；：，。！？")) else " "


def _step(rate: int) -> int:
    return max(int(_FRAME * rate), 1)


def _decibels(wave: Tensor, rate: int) -> Tensor:
    """Loudness of each 10 ms, dB of full scale; the last may be shorter."""
    parts = wave.split(_step(rate))
    return 20 * torch.stack([p.square().mean().sqrt() for p in parts]).clamp(min=1e-10).log10()


def _last_pause(wave: Tensor, rate: int, limit: float, seconds: float, threshold: float) -> int | None:
    """The sample in the middle of the last pause whose middle is in the second half of `limit` seconds."""
    quiet, step, found, start = (_decibels(wave, rate) < threshold).tolist(), _step(rate), None, None
    for i, now in enumerate([*quiet, False]):
        if now and start is None:
            start = i
        elif not now and start is not None:
            middle = (start + i) * step // 2
            if (i - start) * step >= seconds * rate and limit * rate / 2 <= middle <= limit * rate:
                found = middle
            start = None
    return found
