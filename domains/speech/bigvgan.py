"""BigVGAN generator (arXiv:2206.04658, v2): transposed convolutions and anti-aliased periodic activations; reads the
layout of `nvidia/bigvgan_v2_24khz_100band_256x` (config.json beside bigvgan_generator.pt)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from xdistill.checkpoint import load_strict
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.snake import Activation
from xdistill.domains.speech.weights import read_weights, weights_file
from xdistill.errors import XDistillError

FILES = ("bigvgan_generator.pt", "bigvgan_generator.safetensors")


@dataclass(frozen=True)
class BigVGANConfig:
    """Sizes; the defaults are those of v2 at 24 kHz, 100 bands, 256x."""

    mel: MelSpec = field(default_factory=lambda: MelSpec("bigvgan"))
    channels: int = 1536
    rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    rate_kernels: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    block: str = "1"
    activation: str = "snakebeta"
    log_scale: bool = True
    tanh: bool = False
    final_bias: bool = False


class AMPBlock(nn.Module):
    """Residual dilated convolutions, each behind an activation; block 1 has a plain convolution behind each of them."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], c: BigVGANConfig) -> None:
        super().__init__()
        dilated = nn.ModuleList(_conv(channels, channels, kernel, d) for d in dilations)
        self.paired = c.block == "1"
        if self.paired:
            self.convs1, self.convs2 = dilated, nn.ModuleList(_conv(channels, channels, kernel) for _ in dilations)
        else:
            self.convs = dilated
        count = len(dilations) * (1 + self.paired)
        self.activations = nn.ModuleList(_activation(channels, c) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        if not self.paired:
            for bend, conv in zip(self.activations, self.convs, strict=True):
                x = x + conv(bend(x))
            return x
        bends = zip(self.activations[::2], self.activations[1::2], strict=True)
        for (bend1, bend2), conv1, conv2 in zip(bends, self.convs1, self.convs2, strict=True):
            x = x + conv2(bend2(conv1(bend1(x))))
        return x


class BigVGAN(nn.Module):
    """Waveforms [B, frames * hop] in [-1, 1] of log-mels [B, bins, frames]. Weight norm is folded when weights load."""

    def __init__(self, config: BigVGANConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or BigVGANConfig()
        widths = [c.channels >> i for i in range(len(c.rates) + 1)]
        self.conv_pre = _conv(c.mel.bins, c.channels, 7)
        self.ups = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose1d(a, b, k, rate, padding=(k - rate) // 2)])
            for a, b, k, rate in zip(widths, widths[1:], c.rate_kernels, c.rates, strict=False)
        )
        shapes = list(zip(c.kernels, c.dilations, strict=True))
        self.resblocks = nn.ModuleList(AMPBlock(w, k, d, c) for w in widths[1:] for k, d in shapes)
        self.activation_post = _activation(widths[-1], c)
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3, bias=c.final_bias)

    def forward(self, mel: Tensor) -> Tensor:
        x, count = self.conv_pre(mel), len(self.config.kernels)
        for i, up in enumerate(self.ups):
            x = cast(nn.ModuleList, up)[0](x)
            x = sum(block(x) for block in self.resblocks[i * count : (i + 1) * count]) / count
        x = self.conv_post(self.activation_post(x))[:, 0]
        return x.tanh() if self.config.tanh else x.clamp(-1, 1)


def _activation(channels: int, c: BigVGANConfig) -> Activation:
    return Activation(channels, c.activation == "snakebeta", c.log_scale)


def _conv(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)


def load_bigvgan(path: Path) -> BigVGAN:
    """A generator in float32 and eval mode from a folder of the official layout, or from a weights file in one.

    Raises XDistillError when files are missing, describe another generator, or do not fit each other.
    """
    file = weights_file(path, FILES, "config.json")
    model = BigVGAN(read_config(file.with_name("config.json")))
    load_strict(model.load_state_dict, fold(read_weights(file, "generator")), file, "bigvgan")
    return model.eval().requires_grad_(False)


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm g * v / |v| (norm over all but the first axis), under its old or new names, as plain weights."""
    names = {".weight_g": ".weight_v", ".parametrizations.weight.original0": ".parametrizations.weight.original1"}
    folded = dict(state)
    for norm, direction in names.items():
        for name in [key.removesuffix(norm) for key in state if key.endswith(norm)]:
            if name + direction not in folded:
                continue  # left for the strict loading to name
            g, v = folded.pop(name + norm), folded.pop(name + direction)
            folded[name + ".weight"] = g * v / v.flatten(1).norm(dim=1).view_as(g)
    return folded


def read_config(file: Path) -> BigVGANConfig:
    """The sizes in an official config.json; raises XDistillError for a generator that this class is not."""
    try:
        h = json.loads(file.read_text())
        spec = MelSpec("bigvgan", h["sampling_rate"], h["n_fft"], h["hop_size"], h["num_mels"])
        config = BigVGANConfig(
            spec,
            h["upsample_initial_channel"],
            tuple(h["upsample_rates"]),
            tuple(h["upsample_kernel_sizes"]),
            tuple(h["resblock_kernel_sizes"]),
            tuple(tuple(d) for d in h["resblock_dilation_sizes"]),
            str(h["resblock"]),
            h["activation"],
            h["snake_logscale"],
            h.get("use_tanh_at_final", True),
            h.get("use_bias_at_final", True),
        )
        full_band = h["fmin"] == 0 and h["fmax"] in (None, spec.sample_rate / 2) and h["win_size"] == spec.n_fft
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise XDistillError(
            f"{file} is no config.json of a BigVGAN ({type(error).__name__}: {error}): use the file of its weights"
        ) from error
    known = config.block in ("1", "2") and config.activation in ("snake", "snakebeta")
    if not (known and full_band and math.prod(config.rates) == spec.hop):
        raise XDistillError(
            f"{file} describes a generator that cannot be used: expected resblock 1 or 2, snake or snakebeta, a mel "
            "from 0 Hz to half the sample rate, win_size = n_fft, and upsample_rates whose product is hop_size"
        )
    return config
