"""Replay of what F5-TTS and the mel front-ends recorded: every tensor of every fixture is looked at.

The fixtures' README names them: networks of both versions, samplers, training losses, mels and time grids;
`objectives.*` is replayed by `parity_objectives`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xdistill import sources
from xdistill.domains.speech import parity_objectives
from xdistill.domains.speech.checkpoint import load_official
from xdistill.domains.speech.flow import SpeechCond, SpeechFlow
from xdistill.domains.speech.grids import f5_plan, f5_times
from xdistill.domains.speech.mel import MelSpec, filterbank, mel
from xdistill.domains.speech.network.blocks import Padding
from xdistill.domains.speech.network.tables import time_frequencies
from xdistill.domains.speech.recording import Recording, count
from xdistill.guidance import Guided
from xdistill.models import velocity
from xdistill.process.schedules import Linear
from xdistill.rng import Recorded
from xdistill.samplers import ode
from xdistill.state import Field, Padded
from xdistill.testing.results import CaseResult, compare

PROCESS = Linear()
MEL_ATOL = SAMPLE_ATOL = 1e-4
DTYPES = {"f32": (torch.float32, 1e-5), "f64": (torch.float64, 1e-9)}
#: Time frequencies that the recording machine's exponential rounded the other way, in units of the last place.
ROUNDED = {45: 1, 52: -1, 116: 1}


def replay(directory: str | Path) -> list[CaseResult]:
    """Every recording of a folder; none gives an empty list."""
    folder, results = Path(directory), list[CaseResult]()
    for path in sorted(folder.glob("f5_*_io.safetensors")):
        results += F5Replay(path).run()
    for name, group in (("mel.safetensors", mels), ("timesteps.json", grids)):
        results += group(folder / name) if (folder / name).is_file() else []
    if (folder / "objectives.safetensors").is_file():
        results += parity_objectives.replay(folder)
    return results


class F5Replay:
    """One recorded network, through the adapter of the core."""

    def __init__(self, path: Path) -> None:
        self.r = Recording(path)
        tag = path.name.removesuffix("_io.safetensors")
        self.spec: dict[str, Any] = json.loads(path.with_name(f"{tag}.json").read_text())
        version = "v0" if self.spec["config"]["arch"]["pe_attn_head"] else "v1"
        self.net = load_official(path.with_name(f"{tag}_ckpt.safetensors"), name=version).net.requires_grad_(False)
        self.flow = SpeechFlow(self.net)
        table = time_frequencies(128)
        for i, ulp in ROUNDED.items():
            table[i] = torch.nextafter(table[i], torch.tensor(float(ulp)))
        self.recorded_frequencies = table

    def run(self) -> Iterator[CaseResult]:
        """One result a recorded output, and one for what is left."""
        yield self._sizes()
        for suffix, (dtype, atol) in DTYPES.items():
            self.net.to(dtype)
            self.net.time_embed.frequencies.value = self.recorded_frequencies
            yield from self._intermediate(suffix, dtype, atol)
            yield from self._velocities(suffix, dtype, atol)
        self.net.float()
        for i, case in enumerate(self.spec["sampling"]):
            yield from self._sampling(f"sample{i}", case)
        for i, flags in enumerate(self.spec["loss"]):
            yield from self._loss(f"loss{i}", flags)
        yield self.r.unchecked()

    def _sizes(self) -> CaseResult:
        """Switches and sizes of the configuration: how many differ from what the file's tensors tell."""
        said = {**self.spec["config"]["arch"], "vocab_size": self.spec["config"]["text_num_embeds"]}
        said |= {"mel_dim": self.spec["config"]["mel_dim"], "long_skip": said.pop("long_skip_connection")}
        del said["dropout"]  # no tensor tells it, and it is off
        found = self.net.config.to_dict()
        return count(f"{self.r.name}/config", sum(found[k] != v for k, v in said.items()), 0)

    def _inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, cond, time = (self.r[f"in.{k}"].to(dtype) for k in ("x", "cond", "time"))
        return x, cond, time, self.r["in.text"], self.r["in.mask"]

    def _intermediate(self, suffix: str, dtype: torch.dtype, atol: float) -> Iterator[CaseResult]:
        x, cond, time, ids, mask = self._inputs(dtype)
        yield self.r.check(f"mid.time_embed.{suffix}", self.net.time_embed(time), atol)
        for name, seen in (("mask", mask), ("nomask", None)):
            text = self.net.embed_text(ids, x.shape[1] if seen is None else seen)
            padding = None if seen is None else Padding.of(seen, dtype)
            yield self.r.check(f"mid.text_embed.cond.{name}.{suffix}", text, atol)
            yield self.r.check(f"mid.input_embed.{name}.{suffix}", self.net.input_embed(x, cond, text, padding), atol)
        null = self.net.embed_text(ids, x.shape[1], True)
        yield self.r.check(f"mid.text_embed.null.nomask.{suffix}", null, atol)

    def _velocities(self, suffix: str, dtype: torch.dtype, atol: float) -> Iterator[CaseResult]:
        """All branches, with and without mask; one time for all; conditional and null branch in one batch."""
        x, mel_, time, ids, mask = self._inputs(dtype)
        none, all_ = (torch.full((len(x),), flag) for flag in (False, True))
        silent = torch.zeros_like(mel_)
        for name, seen in (("mask", mask), ("nomask", None)):
            for branch, known, dropped in (
                ("cond", mel_, none),
                ("noaudio", silent, none),
                ("notext", mel_, all_),
                ("null", silent, all_),
            ):
                c = SpeechCond(ids, mel=known, dropped=dropped, mask=seen)
                yield self.r.check(f"out.{branch}.{name}.{suffix}", self._native(x, time, c), atol)
        c = SpeechCond(ids, mel=mel_, mask=mask)
        packed = self._native(torch.cat([x, x]), torch.cat([time, time]), SpeechCond.cat([c, c.drop()]))
        yield self.r.check(f"out.cfg_packed.mask.{suffix}", packed, atol)
        one = self._native(x, time[:1].expand(len(x)), replace(c, mask=None))
        yield self.r.check(f"out.cond.scalar_time.{suffix}", one, atol)

    def _native(self, x: Tensor, s: Tensor, cond: SpeechCond) -> Tensor:
        """The adapter's velocity, turned back."""
        return -self.flow(whole(x), 1 - s.double(), cond).value

    def _sampling(self, name: str, case: dict[str, Any]) -> Iterator[CaseResult]:
        """Noise, grid and every state of one run, and the mel with its prompt put back."""
        key = name + "."
        prompt, ids, lengths = self.r[key + "cond"], self.r[key + "text"], self.r[key + "lens"]
        frames = torch.maximum(self.r[key + "duration"], torch.maximum((ids >= 0).sum(1), lengths) + 1)
        layout = Padded.from_lengths(frames)
        like = Field(torch.zeros(*layout.mask.shape, prompt.shape[-1]), layout)
        seeds = [torch.Generator().manual_seed(case["seed"]) for _ in lengths]
        yield self.r.check(key + "noise", like.randn(seeds).value, 0.0)
        times = f5_times(case["steps"], sway=case["sway"], pruned=case["epss"])
        yield self.r.check(key + "t", 1 - times, 1e-6)
        known = Padded.from_lengths(lengths, layout.mask.shape[1]).mask[..., None]
        mel_ = torch.nn.functional.pad(prompt, (0, 0, 0, layout.mask.shape[1] - prompt.shape[1])) * known
        cond = SpeechCond(ids, mel=mel_, mask=layout.mask if len(ids) > 1 else None)
        cond = self.flow.prepare(cond, unpadded(mel_))
        states: list[Tensor] = []
        model = Guided(self.flow, 1 + case["cfg"])
        plan = f5_plan(case["steps"], sway=case["sway"], pruned=case["epss"])
        last = ode(
            model, PROCESS, plan, whole(self.r[key + "noise"]), cond, on_step=lambda i, x, v: states.append(x.value)
        )
        yield self.r.check(key + "trajectory", torch.stack([*states, last.value]), SAMPLE_ATOL)
        yield self.r.check(key + "out", torch.where(known, mel_, last.value), SAMPLE_ATOL)

    def _loss(self, name: str, flags: dict[str, Any]) -> Iterator[CaseResult]:
        """The spans, the prompt, the prediction and the loss of one training step."""
        key, atol = name + ".", DTYPES["f32"][1]
        span, x0 = self.r[key + "span"], whole(self.r[key + "x1"])
        sizes = (self.r[key + "frac"] * self.r["in.lens"]).long()
        first = span.int().argmax(1, keepdim=True)
        frame = torch.arange(span.shape[1])[None] - first
        yield self.r.check(key + "span", (frame >= 0) & (frame < sizes[:, None]), 0.0)
        prompt = x0.value.masked_fill(span[..., None], 0)
        yield self.r.check(key + "cond", prompt, 0.0)
        cond = SpeechCond(
            self.r["in.text"],
            mel=torch.zeros_like(prompt) if flags["drop_audio_cond"] else prompt,
            dropped=torch.full((len(span),), flags["drop_text"]),
            mask=self.r["in.mask"],
        )
        t = 1 - self.r[key + "time"].double()
        x_t, noise = sources.noised(PROCESS, x0, t, Recorded([self.r[key + "x0"]]))  # type: ignore[arg-type]
        v = velocity(self.flow, PROCESS, x_t, t, cond)
        yield self.r.check(key + "pred", -v.value, atol)
        error = Field((v - noise + x0).value, replace(unpadded(span), scored=span))
        loss = error.dot(error).sum() / error.dims.sum()
        yield self.r.check(key + "loss", loss[None], atol)
        yield compare(f"{self.r.name}/{name} in words", loss, torch.tensor(flags["loss"]), atol, 0.0)


def unpadded(value: Tensor) -> Padded:
    """A layout that takes all frames as real: in the reference, padding is part of a state."""
    return Padded(torch.ones(value.shape[:2], dtype=torch.bool))


def whole(value: Tensor) -> Field:
    """A state of that layout."""
    return Field(value, unpadded(value))


def mels(path: Path) -> Iterator[CaseResult]:
    """Both front-ends of one waveform, with 100 and 80 bins, and their filterbanks."""
    r = Recording(path)
    for kind in ("vocos", "bigvgan"):
        for bins in (100, 80):
            yield r.check(f"{kind}.mel{bins}", mel(r["waveform"], MelSpec(kind, bins=bins)), MEL_ATOL)
        bank = torch.from_numpy(filterbank(MelSpec(kind)))
        expected = r[f"{kind}.fb100"]
        turned = bank if bank.shape == expected.shape else bank.T
        yield r.check(f"{kind}.fb100", turned, 1e-6)
    yield r.unchecked()


def grids(path: Path) -> Iterator[CaseResult]:
    """Pruned tables, then swayed ones; an unknown kind of grid is an error."""
    sways: dict[str, float | None] = {"epss": None, "epss_then_sway_minus1": -1.0}
    stored = json.loads(path.read_text())
    yield count("timesteps/kinds that nothing looks at", len(stored.keys() - sways.keys()), 0)
    for kind, sway in sways.items():
        for steps, native in stored[kind].items():
            expected = torch.tensor(native, dtype=torch.float64)
            yield compare(f"timesteps/{kind}/{steps}", 1 - f5_times(int(steps), sway=sway), expected, 1e-9, 0.0)
