"""Train `mini`, a small Vocos, on the embedded speech; resumable, the held-out split is never trained on.

    python tools/train_speech_vocoder.py    # spectral losses
    python tools/train_speech_vocoder.py --dim 128 --batch 8 --steps 12500 --adversarial-from 8000    # the shipped one

Run it again to continue; --minutes ends a sitting early. Every --every updates the averaged weights are compared with
held-out audio, once Griffin-Lim is too. When all updates are done it writes the layout that `vocos:PATH` reads to
--asset, by default in the run; the shipped one was moved to domains/speech/assets/vocoder_mini.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xdistill import rng
from xdistill.domains.speech import corpus
from xdistill.domains.speech.griffin_lim import GriffinLim
from xdistill.domains.speech.mel import FLOOR, MelSpec, mel
from xdistill.domains.speech.resampling import resample
from xdistill.domains.speech.vocoder import NeuralVocoder, Vocoder
from xdistill.domains.speech.vocoder_losses import (
    SpectrogramDiscriminator,
    feature_loss,
    fooling_loss,
    judge_loss,
    mel_distance,
    phase_distance,
    stft_distance,
)
from xdistill.domains.speech.vocos import Vocos, VocosConfig, save_vocos
from xdistill.ema import EMAConfig, ema_update
from xdistill.machine import hardware

SPEC = MelSpec("vocos")


@dataclass(frozen=True)
class Recording:
    """A clip at the mel's rate: waveform [samples], log-mel [bins, frames]."""

    waveform: Tensor
    mel: Tensor


@dataclass
class Run:
    """All that a run carries from update to update."""

    net: Vocos
    average: Vocos
    optim: torch.optim.Optimizer
    judge: SpectrogramDiscriminator
    judge_optim: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    PARTS = ("net", "average", "optim", "judge", "judge_optim")

    def save(self, path: Path) -> None:
        """Write atomically."""
        state: dict[str, Any] = {part: getattr(self, part).state_dict() for part in self.PARTS}
        torch.save(
            {**state, "step": self.step, "seconds": self.seconds, "history": self.history}, path.with_suffix(".part")
        )
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        """Continue from `save`."""
        state = torch.load(path, weights_only=True)
        for part in self.PARTS:
            getattr(self, part).load_state_dict(state[part])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]


def recordings(split: str, least: float, most: float = 1e9) -> list[Recording]:
    """Clips of a split between `least` and `most` seconds."""
    found = []
    for clip in corpus.clips(split):
        if least <= clip.seconds <= most:
            waveform = torch.from_numpy(resample(clip.audio(), corpus.RATE, SPEC.sample_rate))
            found.append(Recording(waveform, mel(waveform, SPEC)))
    return found


def batch(source: Sequence[Recording], weights: Tensor, args: argparse.Namespace, step: int) -> tuple[Tensor, Tensor]:
    """Mels [B, bins, frames] and their waveforms [B, (frames-1)*hop]; depends on (seed, step) alone.

    Each is turned down by 0 to 12 dB: a quieter waveform has the same mel plus the logarithm, above the floor.
    """
    gen = rng.generator("vocoder", args.seed, step)
    mels, waveforms = [], []
    for i in torch.multinomial(weights, args.batch, replacement=True, generator=gen).tolist():
        start = rng.randint(0, source[i].mel.shape[1] - args.frames + 1, gen)
        gain = 10 ** (-0.6 * float(torch.rand((), generator=gen)))
        mels.append((source[i].mel[:, start : start + args.frames] + math.log(gain)).clamp(min=math.log(FLOOR)))
        first = start * SPEC.hop
        waveforms.append(source[i].waveform[first : first + SPEC.samples(args.frames)] * gain)
    return torch.stack(mels), torch.stack(waveforms)


def learning_rate(args: argparse.Namespace, step: int) -> float:
    """Warm-up over 200 updates and cosine to a twentieth; from the adversarial start, linear to nothing."""
    stage = args.adversarial_from
    if stage is not None and step >= stage:
        return args.adversarial_lr * (1 - (step - stage) / (args.steps - stage))
    end = args.steps if stage is None else stage
    return args.lr * min(1.0, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / end)))


def update(run: Run, mels: Tensor, waveforms: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """One update of the network, in the adversarial stage after one of the discriminator; returns the loss terms."""
    for optim in (run.optim, run.judge_optim):
        for group in optim.param_groups:
            group["lr"] = learning_rate(args, run.step)
    adversarial = args.adversarial_from is not None and run.step >= args.adversarial_from
    with autocast(args.precision):
        found = run.net(mels)
    terms = {
        "stft": stft_distance(found, waveforms).mean(),
        "mel": mel_distance(found, waveforms, SPEC).mean(),
        "phase": phase_distance(found, waveforms).mean(),
    }
    loss = terms["stft"] + 2 * terms["mel"] + terms["phase"]
    if adversarial:
        real, fake = waveforms[: args.judged], found[: args.judged]
        with autocast(args.precision):
            terms["judge"] = judge_loss(run.judge(real)[0], run.judge(fake.detach())[0])
        move(run.judge_optim, run.judge, terms["judge"])
        run.judge.requires_grad_(False)
        with autocast(args.precision):
            scores, features = run.judge(fake)
            terms["fooling"] = fooling_loss(scores)
            terms["features"] = feature_loss(run.judge(real)[1], features)
        run.judge.requires_grad_(True)
        loss = args.spectral * loss + terms["fooling"] + 2 * terms["features"]
    move(run.optim, run.net, loss)
    run.step += 1
    ema_update(run.average, run.net.state_dict(), EMAConfig().decay(run.step))
    return {name: float(value.detach()) for name, value in terms.items()}


def move(optim: torch.optim.Optimizer, net: nn.Module, loss: Tensor) -> None:
    """One clipped step."""
    optim.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optim.step()


def autocast(name: str) -> Any:
    """bf16 autocast on the CPU or nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if name == "bf16" else nullcontext()


@torch.no_grad()
def measure(vocoder: Vocoder, held_out: Sequence[Recording]) -> dict[str, float]:
    """Mel RMSE (nats) of the re-analysed waveform, and the distances of vocoder_losses, means over clips."""
    rows = []
    for clip in held_out:
        found = vocoder(clip.mel)
        wanted = clip.waveform[: len(found)]
        error = mel(found, SPEC) - mel(wanted, SPEC)
        pair = (found[None], wanted[None])
        rows.append([error.square().mean().sqrt(), stft_distance(*pair)[0], phase_distance(*pair)[0]])
    values = torch.tensor(rows).mean(0).tolist()
    return dict(zip(("mel_rmse", "stft", "phase"), (round(v, 4) for v in values), strict=True))


def start(args: argparse.Namespace) -> Run:
    """A new run, or the one in --out."""
    config = VocosConfig(SPEC, args.dim, 3 * args.dim, args.layers)
    net = Vocos(config, rng.generator("vocoder", args.seed)).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        judge = SpectrogramDiscriminator(args.channels)
    optims = [torch.optim.AdamW(part.parameters(), args.lr, betas=(0.8, 0.99)) for part in (net, judge)]
    run = Run(net, copy.deepcopy(net).eval().requires_grad_(False), optims[0], judge, optims[1])
    if (args.out / "last.pt").exists():
        run.load(args.out / "last.pt")
    return run


def train(args: argparse.Namespace) -> Run:
    """Updates until --steps or --minutes, checkpoints and measurements every --every."""
    run = start(args)
    source, held_out = recordings("train", args.frames * SPEC.hop / SPEC.sample_rate + 0.1), recordings("heldout", 2, 6)
    weights = torch.tensor([float(clip.mel.shape[1]) for clip in source])
    print(f"{len(source)} clips, {weights.sum() / SPEC.frame_rate / 60:.1f} min; at update {run.step}", flush=True)
    print("griffin_lim", json.dumps(measure(GriffinLim(SPEC), held_out[: args.clips])), flush=True)
    began = sitting = time.perf_counter()
    before = run.seconds
    while run.step < args.steps:
        terms = update(run, *batch(source, weights, args, run.step), args)
        now = time.perf_counter()
        run.seconds = before + now - began
        last = run.step == args.steps or now - sitting > 60 * args.minutes
        if run.step % args.every and not last:
            continue
        found = measure(NeuralVocoder("mini", SPEC, run.average), held_out[: args.clips])
        run.history.append({"step": run.step, **found})
        run.save(args.out / "last.pt")
        shown = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
        print(f"{run.step}/{args.steps} {run.seconds:.0f} s | {shown} | held-out {json.dumps(found)}", flush=True)
        if last:
            break
    return run


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speech_vocoder"))
    parser.add_argument("--asset", type=Path, help="folder of the finished vocoder, default OUT/vocoder_mini")
    parser.add_argument("--steps", type=int, default=12000, help="updates in all")
    parser.add_argument("--adversarial-from", type=int, help="update at which the discriminator joins, default never")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this sitting")
    parser.add_argument("--every", type=int, default=500, help="updates between checkpoints with measurements")
    parser.add_argument("--clips", type=int, default=8, help="held-out clips of 2-6 s measured while training")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=64, help="of a crop")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--channels", type=int, default=16, help="of the discriminator")
    parser.add_argument("--judged", type=int, default=8, help="samples of a batch that the discriminator hears")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest, of the spectral stage")
    parser.add_argument("--adversarial-lr", type=float, default=3e-4)
    parser.add_argument("--spectral", type=float, default=4.0, help="weight of the spectral losses beside these")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    run = train(args)
    if run.step < args.steps:
        return
    everything = recordings("heldout", 1.0)
    mini = NeuralVocoder("mini", SPEC, run.average)
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "data": f"{corpus.FOLDER.name}, train split; licence in its folder",
        "seconds": round(run.seconds),
        "hardware": hardware(),
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "config": asdict(run.net.config),
        "held_out": {"clips": len(everything), "mini": measure(mini, everything)},
    }
    facts["held_out"]["griffin_lim"] = measure(GriffinLim(SPEC), everything)
    save_vocos(run.average, args.asset or args.out / "vocoder_mini", torch.float16, {"run": json.dumps(facts)})
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
