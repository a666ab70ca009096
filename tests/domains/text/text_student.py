"""A text student of random weights, as a checkpoint on disk: nothing is trained, and every logit differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from xdistill.config import compose
from xdistill.domains.text import TextDomain
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.rng import generator

SIZES = {"hidden": 32, "blocks": 2, "heads": 2, "cond": 8, "dropout": 0.0}


def random_denoiser(domain: TextDomain, seed: int = 0) -> TextDenoiser:
    """Two blocks of 32 features with weights of about the size that training leaves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # whatever ran before
        net = TextDiT(TextConfig(domain.tokenizer.vocabulary, **SIZES))  # type: ignore[arg-type]
    gen = generator("text student", seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape, generator=gen) * 0.2)
    return TextDenoiser(net, domain.process).eval()


def write_checkpoint(path: Path, *overrides: str) -> Path:
    """A checkpoint of it under the configuration of `fit domain=text objective=mdlm`, changed by `overrides`."""
    cfg = OmegaConf.to_container(compose(["domain=text", "objective=mdlm", *overrides]))
    assert isinstance(cfg, dict)
    domain = TextDomain({k: v for k, v in cfg["domain"].items() if k != "name"})
    model = random_denoiser(domain)
    weights = path / "roles" / "student_ema.safetensors"
    weights.parent.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest = {
        "schema": 1,
        "config": cfg,
        "network": domain.describe(model),
        "sha256": {"roles/student_ema.safetensors": digest},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
