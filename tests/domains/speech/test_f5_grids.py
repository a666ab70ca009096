"""Grids in core time, durations, prompts and chunks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from xdistill.domains.speech.grids import f5_plan, f5_times
from xdistill.domains.speech.prompting import (
    chunk_bytes,
    chunks,
    closed,
    cross_faded,
    generated_frames,
    levelled,
    shortened,
)
from xdistill.errors import UsageError, XDistillError

RECORDED = json.loads((Path(__file__).parents[2] / "fixtures/speech/timesteps.json").read_text())
RATE = 1000


def tone(seconds: float, amplitude: float = 0.5) -> Tensor:
    return amplitude * torch.sin(torch.arange(int(seconds * RATE)) * 0.7)


@pytest.mark.parametrize(("name", "sway"), [("epss", None), ("epss_then_sway_minus1", -1.0)])
def test_recorded_grids(name: str, sway: float | None) -> None:
    for steps, native in RECORDED[name].items():
        expected = 1 - torch.tensor(native, dtype=torch.float64)
        torch.testing.assert_close(f5_times(int(steps), sway=sway), expected, atol=1e-12, rtol=0)


def test_grids_end_exactly() -> None:
    for steps in (1, 3, 7, 32):
        times = f5_plan(steps).times
        assert (times[0], times[-1], len(times)) == (1, 0, steps + 1)
    s = 0.5
    swayed = s - 0.7 * (math.cos(math.pi / 2 * s) - 1 + s)
    assert float(f5_times(2, sway=-0.7)[1]) == pytest.approx(1 - swayed, abs=1e-15)
    uniform = torch.linspace(1, 0, 8, dtype=torch.float64)
    torch.testing.assert_close(f5_times(7, sway=None, pruned=False), uniform, atol=1e-15, rtol=0)


def test_bad_grids() -> None:
    with pytest.raises(UsageError, match="steps=0"):
        f5_times(0)
    with pytest.raises(UsageError, match="sway=3"):
        f5_times(8, sway=3.0)


def test_durations() -> None:
    assert generated_frames(100, "0123456789", "0123456789abcde") == 250
    assert generated_frames(100, "0123456789", "0123456789abcde", speed=2.0) == 175
    assert generated_frames(100, "0123456789", "012") == 200, "short texts are spoken at speed 0.3"
    assert generated_frames(100, "0123456789", "0123456789abcde", symbols=400) == 401
    assert generated_frames(90, "x" * 1000, "0123456789") == 91, "at least one frame more than the prompt"
    assert generated_frames(100, "ä", "ä" * 5) == 600, "bytes are counted, not characters"
    assert generated_frames(4000, "abcde", "abcdefghijkl") == 4096
    with pytest.raises(UsageError, match="positive speed"):
        generated_frames(100, "abc", "abc", speed=0)


def test_prompt_texts() -> None:
    assert [closed(t) for t in ("Hi", "Hi.", "Hi. ", "你好。")] == ["Hi. ", "Hi. ", "Hi. ", "你好。"]


def test_short_prompts_lose_silent_edges_only() -> None:
    wave = torch.cat([torch.zeros(500), tone(2), torch.zeros(700)])
    assert len(shortened(wave, RATE)) == pytest.approx(2100, abs=20)
    with pytest.raises(XDistillError, match="silent"):
        shortened(torch.zeros(3000), RATE)


@pytest.mark.parametrize(
    ("parts", "seconds"),
    [
        ([tone(8), torch.zeros(1200), tone(6)], 8.05),  # a clear pause
        ([tone(8), torch.zeros(1200), tone(1), torch.zeros(200), tone(6)], 8.05),  # rather than a short one later
        ([tone(3), torch.zeros(1200), tone(5), torch.zeros(200), tone(6)], 9.25),  # a clear one too early
        ([tone(20)], 12.0),  # none
    ],
)
def test_long_prompts_end_at_a_pause(parts: list[Tensor], seconds: float) -> None:
    assert len(shortened(torch.cat(parts), RATE)) / RATE == pytest.approx(seconds, abs=0.03)


def test_levels_come_back() -> None:
    quiet = tone(1, 0.01)
    raised, gain = levelled(quiet)
    assert float(raised.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-5)
    torch.testing.assert_close(raised / gain, quiet)
    assert levelled(tone(1, 0.9))[1] == 1
    with pytest.raises(XDistillError, match="silent"):
        levelled(torch.zeros(100))


def test_chunks() -> None:
    assert chunk_bytes("x" * 50, 5.0) == 170
    assert chunk_bytes("x" * 50, 5.0, speed=0.5) == 85
    text = "One two, three four. Five six seven eight; nine."
    assert chunks(text, 1000) == [text]
    parts = chunks(text, 21)
    assert parts == ["One two, three four.", "Five six seven eight;", "nine."]
    assert chunks("aa bb cc dd", 5) == ["aa bb", "cc dd"]
    assert chunks("incomprehensibilities so", 5) == ["incomprehensibilities", "so"]
    assert chunks("你好。再见。", 9) == ["你好。", "再见。"]
    assert chunks("你好。再见。", 18) == ["你好。再见。"]
    assert chunks("  ", 5) == []
    with pytest.raises(UsageError, match=r"30\.0 s"):
        chunk_bytes("x", 30.0)


def test_cross_fades() -> None:
    joined = cross_faded([torch.ones(400), torch.ones(400), torch.ones(50)], RATE)
    assert len(joined) == 400 + 400 - 150 + 50 - 50
    torch.testing.assert_close(joined, torch.ones(len(joined)))
    faded = cross_faded([torch.ones(200), torch.zeros(200)], RATE)
    torch.testing.assert_close(faded[50:200], torch.linspace(1, 0, 150))
