"""Speech students of random weights, as checkpoints on disk: nothing is trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from xdistill.config import compose
from xdistill.domains.speech import SpeechDomain
from xdistill.domains.speech.flow import SpeechFlow
from xdistill.domains.speech.network import F5Config, F5Net

SIZES = {"dim": 32, "depth": 1, "heads": 2, "dim_head": 16, "text_dim": 16, "conv_layers": 1, "dropout": 0.0}
ALIGNED = {"vocab_size": 64, "tokenizer": "phones", "aligned": True, "mel_mean": -1.85, "mel_std": 2.8}
SYMBOLS = tuple(" abcdefghijklmnopqrstuvwxyz.,!?ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CHARACTERS = {"vocab_size": len(SYMBOLS), "tokenizer": "char"}


def random_flow(**options: object) -> SpeechFlow:
    """A network of one block that knows the end of a jump, every layer drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = F5Net(F5Config.from_dict({**SIZES, "second_time": "added", **(options or ALIGNED)}))
        for p in net.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.1)
    return SpeechFlow(net).eval().requires_grad_(False)


def speech_domain(flow: SpeechFlow, *, symbols: tuple[str, ...] | None = None) -> SpeechDomain:
    """The domain as `load_student` leaves it for this network."""
    domain = SpeechDomain({})
    domain.network_config, domain.vocabulary = flow.net.config, symbols
    return domain


def write_checkpoint(path: Path, flow: SpeechFlow, symbols: tuple[str, ...] | None = None) -> Path:
    """A checkpoint of it under the configuration of `fit domain=speech`."""
    cfg = OmegaConf.to_container(compose(["domain=speech"]))
    assert isinstance(cfg, dict)
    domain = speech_domain(flow, symbols=symbols)
    weights = path / "roles" / "student_ema.safetensors"
    weights.parent.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in flow.state_dict().items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest = {
        "schema": 1,
        "config": cfg,
        "network": domain.describe(flow),
        "sha256": {"roles/student_ema.safetensors": digest},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def hum(seconds: float, rate: int = 24000, level: float = 0.05) -> np.ndarray:
    """A tone with overtones whose loudness rises and falls: no speech, but no silence either."""
    t = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 6))
    return (level * tone * (1.1 + np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def write_sound(path: Path, wave: np.ndarray, rate: int = 24000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, wave, rate, subtype=subtype)
    return path
