"""Vocos (arXiv:2306.00814): ConvNeXt over mel frames and an inverse-STFT head; reads the layout of
`charactr/vocos-mel-24khz` (config.yaml beside pytorch_model.bin or model.safetensors) and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from yaml import YAMLError

from xdistill.checkpoint import load_strict
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.stft import istft
from xdistill.domains.speech.weights import read_weights, weights_file
from xdistill.errors import XDistillError

FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
PARTS = {"feature_extractor": "MelSpectrogramFeatures", "backbone": "VocosBackbone", "head": "ISTFTHead"}
LOUDEST = 100.0


@dataclass(frozen=True)
class VocosConfig:
    """Sizes; the defaults are the official 24 kHz model's."""

    mel: MelSpec = field(default_factory=lambda: MelSpec("vocos"))
    dim: int = 512
    intermediate: int = 1536
    layers: int = 8


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, two pointwise layers, scaled residual; [B, dim, frames]."""

    def __init__(self, dim: int, intermediate: int, scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, intermediate)
        self.pwconv2 = nn.Linear(intermediate, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.transpose(1, 2)


class Backbone(nn.Module):
    """Mel [B, bins, frames] to features [B, frames, dim]."""

    def __init__(self, c: VocosConfig) -> None:
        super().__init__()
        self.embed = nn.Conv1d(c.mel.bins, c.dim, 7, padding=3)
        self.norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.convnext = nn.ModuleList(ConvNeXtBlock(c.dim, c.intermediate, 1 / c.layers) for _ in range(c.layers))
        self.final_layer_norm = nn.LayerNorm(c.dim, eps=1e-6)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.norm(self.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class ISTFTHead(nn.Module):
    """Features [B, frames, dim] to log-magnitudes and phases, and these to a waveform."""

    def __init__(self, c: VocosConfig) -> None:
        super().__init__()
        self.sizes = (c.mel.n_fft, c.mel.hop, c.mel.pad)
        self.out = nn.Linear(c.dim, c.mel.n_fft + 2)

    def forward(self, x: Tensor) -> Tensor:
        # bf16 is too coarse for phases: under autocast the last layer stays in the weights' own type
        with torch.autocast(x.device.type, enabled=False):
            log_magnitude, phase = self.out(x.to(self.out.weight.dtype)).transpose(1, 2).chunk(2, dim=1)
        # cut before exp, which gives the same values as cutting behind it and no infinite gradient
        magnitude = log_magnitude.clamp(max=torch.tensor(LOUDEST).log().item()).exp()
        return istft(torch.complex(magnitude * phase.cos(), magnitude * phase.sin()), *self.sizes)


class Vocos(nn.Module):
    """Waveforms [B, samples] of log-mels [B, bins, frames]; `config.mel.samples(frames)` samples each.

    The weights are drawn from `generator`, or left as torch draws them when the caller loads others.
    """

    def __init__(self, config: VocosConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.head = Backbone(config), ISTFTHead(config)
        if generator:
            for layer in self.modules():
                if isinstance(layer, nn.Conv1d | nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                    nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.backbone(mel))


def load_vocos(path: Path) -> Vocos:
    """A Vocos in float32 and eval mode from a folder of the official layout, or from a weights file in one.

    Raises XDistillError when files are missing, of another Vocos (EnCodec, IMDCT), or do not fit each other.
    """
    file = weights_file(path, FILES, "config.yaml")
    model = Vocos(read_config(file.with_name("config.yaml")))
    # the mel's bank and both windows are computed here
    kept = {k: v for k, v in read_weights(file).items() if k.startswith(("backbone.", "head.out."))}
    load_strict(model.load_state_dict, kept, file, "vocos")
    return model.eval().requires_grad_(False)


def save_vocos(
    model: Vocos, folder: Path, dtype: torch.dtype = torch.float32, facts: Mapping[str, str] | None = None
) -> None:
    """Write `config.yaml` and `model.safetensors` in the official layout; `facts` go to the metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(official_config(model.config)), folder / "config.yaml")
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"mel_spec_type": model.config.mel.kind, **(facts or {})})


def official_config(c: VocosConfig) -> dict[str, Any]:
    """What config.yaml says of a model."""
    frames = {"n_fft": c.mel.n_fft, "hop_length": c.mel.hop, "padding": "center"}
    options = (
        {"sample_rate": c.mel.sample_rate, "n_mels": c.mel.bins, **frames},
        {"input_channels": c.mel.bins, "dim": c.dim, "intermediate_dim": c.intermediate, "num_layers": c.layers},
        {"dim": c.dim, **frames},
    )
    modules = ("feature_extractors", "models", "heads")
    return {
        part: {"class_path": f"vocos.{module}.{name}", "init_args": args}
        for (part, name), module, args in zip(PARTS.items(), modules, options, strict=True)
    }


def read_config(file: Path) -> VocosConfig:
    """The sizes in an official config.yaml; raises XDistillError for a model that this class is not."""
    try:
        parts: Any = OmegaConf.to_container(OmegaConf.load(file))
        names = tuple(parts[part]["class_path"].rsplit(".", 1)[-1] for part in PARTS)
        mel, net, head = (parts[part]["init_args"] for part in PARTS)
        spec = MelSpec("vocos", mel["sample_rate"], mel["n_fft"], mel["hop_length"], mel["n_mels"])
        config = VocosConfig(spec, net["dim"], net["intermediate_dim"], net["num_layers"])
        paddings = (mel.get("padding", "center"), head.get("padding", "same"))
    except (OSError, YAMLError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise XDistillError(
            f"{file} is no config.yaml of a mel Vocos ({type(error).__name__}: {' '.join(str(error).split())}): "
            "use the file that came with its weights"
        ) from error
    if names != tuple(PARTS.values()) or paddings != ("center", "center") or net.get("adanorm_num_embeddings"):
        raise XDistillError(
            f"{file} describes another vocoder ({', '.join(names)}, padding {' and '.join(paddings)}): expected "
            f"{', '.join(PARTS.values())}, padding center, as in charactr/vocos-mel-24khz"
        )
    return config
