"""Distances with known values, a discriminator that learns, and the training tool: exact resume, a readable vocoder."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.vocoder import load_vocoder
from xdistill.domains.speech.vocoder_losses import (
    SpectrogramDiscriminator,
    feature_loss,
    fooling_loss,
    judge_loss,
    mel_distance,
    phase_distance,
    stft_distance,
)

SPEC = MelSpec("vocos")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/train_speech_vocoder.py."""
    path = Path(__file__).parents[3] / "tools/train_speech_vocoder.py"
    spec = importlib.util.spec_from_file_location("train_speech_vocoder", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def noise(seed: int, samples: int = 8192) -> Tensor:
    return 0.2 * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))


def test_distances_have_their_known_values() -> None:
    x, y = noise(0), noise(1)
    for distance in (stft_distance, phase_distance, lambda a, b: mel_distance(a, b, SPEC)):
        assert distance(x, x).abs().max() < 1e-4
        alone = distance(x[:1], y[:1])
        torch.testing.assert_close(distance(x, y)[:1], alone, atol=1e-5, rtol=1e-5)
    twice = torch.full((2,), 1 + math.log(2))
    torch.testing.assert_close(stft_distance(2 * x, x), twice, atol=1e-3, rtol=0)
    torch.testing.assert_close(mel_distance(2 * x, x, SPEC), twice - 1, atol=1e-3, rtol=0)


def test_phase_distance_hears_frequency_and_not_phase_or_level() -> None:
    t = torch.arange(12288) / 24000
    tone = torch.sin(2 * torch.pi * 440 * t)[None] * 0.3
    later = torch.sin(2 * torch.pi * 440 * t + 1.2)[None] * 0.1
    higher = torch.sin(2 * torch.pi * 470 * t)[None] * 0.3
    assert phase_distance(later, tone) < 0.1  # not 0: the edges are reflected
    assert phase_distance(higher, tone) > 1.5
    # overlapping frames of noise agree in part; were they independent, each of both terms would be 1
    assert ((phase_distance(noise(0), noise(1)) - 1.25).abs() < 0.1).all()


def test_the_discriminator_learns_and_teaches() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = SpectrogramDiscriminator(4, [(256, 64)])
    real, fake = noise(0, 4096), noise(1, 4096).cumsum(1) * 0.1
    optim = torch.optim.Adam(judge.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = judge_loss(judge(real)[0], judge(fake)[0])
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 < losses[0]
    assert fooling_loss(judge(real)[0]) < fooling_loss(judge(fake)[0])
    features = judge(real)[1]
    assert feature_loss(features, features) == 0
    changed = fake.requires_grad_()
    feature_loss(features, judge(changed)[1]).backward()
    assert changed.grad is not None
    assert changed.grad.abs().sum() > 0


def options(tool, monkeypatch, out: Path, steps: int, *more: str):
    sizes = ("--dim", "16", "--layers", "1", "--batch", "2", "--frames", "16", "--channels", "4", "--judged", "1")
    monkeypatch.setattr(sys, "argv", ["tool", "--out", str(out), "--steps", str(steps), *sizes, *more])
    return tool.options()


@pytest.fixture
def clips(tool: ModuleType) -> list:
    return [tool.Recording(waveform, mel(waveform, SPEC)) for waveform in noise(7, 9000)]


def test_crops_are_aligned_and_depend_on_seed_and_step_alone(tool, clips, monkeypatch, tmp_path) -> None:
    args = options(tool, monkeypatch, tmp_path, 8)
    weights = torch.ones(2)
    mels, waveforms = tool.batch(clips, weights, args, 3)
    assert mels.shape == (2, 100, 16)
    assert waveforms.shape == (2, 15 * 256)
    # away from the crop's edges, where the mel of the whole clip saw its neighbours
    torch.testing.assert_close(mel(waveforms, SPEC)[:, :, 3:-3], mels[:, :, 3:-3], atol=1e-3, rtol=0)
    assert torch.equal(mels, tool.batch(clips, weights, args, 3)[0])
    assert not torch.equal(mels, tool.batch(clips, weights, args, 4)[0])


def test_training_lowers_the_loss(tool, clips, monkeypatch, tmp_path) -> None:
    args = options(tool, monkeypatch, tmp_path, 40, "--precision", "fp32", "--lr", "1e-2")
    run = tool.start(args)
    total = []
    for _ in range(40):
        terms = tool.update(run, *tool.batch(clips, torch.ones(2), args, run.step), args)
        total.append(sum(terms.values()))
    assert sum(total[-5:]) < 0.8 * sum(total[:5])


def test_a_resumed_run_is_the_same_run(tool, clips, monkeypatch, tmp_path) -> None:
    def go(name: str, *stops: int) -> dict[str, Tensor]:
        for stop in stops:
            args = options(tool, monkeypatch, tmp_path / name, 6, "--adversarial-from", "3")
            args.out.mkdir(exist_ok=True)
            run = tool.start(args)
            while run.step < stop:
                tool.update(run, *tool.batch(clips, torch.ones(2), args, run.step), args)
            run.save(args.out / "last.pt")
        return run.average.state_dict()

    straight, resumed = go("a", 6), go("b", 2, 4, 6)
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


def test_the_tool_writes_a_vocoder(tool, clips, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(tool, "recordings", lambda *_: clips)
    args = options(tool, monkeypatch, tmp_path, 2, "--adversarial-from", "1", "--every", "1")
    tool.main()
    assert '"griffin_lim"' in capsys.readouterr().out
    assert [h["step"] for h in tool.start(args).history] == [1, 2]
    found = load_vocoder(f"vocos:{tmp_path / 'vocoder_mini'}", SPEC)
    assert found(clips[0].mel).shape == (SPEC.samples(clips[0].mel.shape[1]),)
