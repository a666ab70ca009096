"""Our F5 network beside that of the `f5-tts` package: equal weights, equal output, processor seconds of one call.

python -m pip install --target SITE --no-deps f5-tts x_transformers torchdiffeq ema_pytorch einx loguru frozendict \\
    torch_einops_utils && python tools/bench_f5.py site=SITE
The package's trainer and mel front-end are not imported: their torchaudio, librosa and accelerate are not needed here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import nn

from xdistill.domains.speech.network import F5Config, F5Net

DEFAULTS = {"dim": "512", "depth": "8", "heads": "8", "frames": "512", "repeats": "5", "threads": "1", "json": ""}


def theirs(site: Path, config: F5Config) -> nn.Module:
    """The package's DiT of the same shape."""
    sys.path.insert(0, str(site))
    for name in ("torchaudio", "librosa", "librosa.filters"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.modules["librosa.filters"].mel = None  # type: ignore[attr-defined]
    package = ModuleType("f5_tts.model")  # its own __init__ imports the trainer
    package.__path__ = [str(site / "f5_tts" / "model")]
    sys.modules["f5_tts.model"] = package
    from f5_tts.model.backbones.dit import DiT

    return DiT(
        dim=config.dim, depth=config.depth, heads=config.heads, ff_mult=config.ff_mult, text_dim=config.text_dim,
        text_num_embeds=config.vocab_size, conv_layers=config.conv_layers, text_mask_padding=True, pe_attn_head=None,
    ).eval()  # fmt: skip


@torch.no_grad()
def main(args: list[str]) -> None:
    """Print the difference and the times, interleaved so that a busy machine slows both."""
    given = {**DEFAULTS, **dict(arg.split("=", 1) for arg in args)}
    torch.set_num_threads(int(given["threads"]))
    size = {key: int(given[key]) for key in ("dim", "depth", "heads")}
    config = F5Config.from_dict({**F5Config.preset("F5TTS_v1_Small").to_dict(), **size})
    ours, frames, gen = F5Net(config).eval(), int(given["frames"]), torch.Generator().manual_seed(0)
    for p in ours.parameters():  # zero-initialised layers would hide differences
        p.copy_(torch.randn(p.shape, generator=gen) * 0.02 + (p if p.ndim == 1 else 0))
    other = theirs(Path(given["site"]), config)
    print("weights:", other.load_state_dict(ours.state_dict(), strict=False))
    z, cond = torch.randn(2, 1, frames, config.mel_dim, generator=gen)
    text, s = torch.randint(1, 200, (1, frames // 6), generator=gen), torch.tensor([0.3])
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(z, s, cond, ours.embed_text(text, frames)),
        "f5-tts": lambda: other(x=z, cond=cond, text=text, time=s),
    }
    out = {name: call() for name, call in calls.items()}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(int(given["repeats"])):
        for name, call in calls.items():
            began = time.process_time()
            call()
            spent[name].append(time.process_time() - began)
    seconds = {name: median(values) for name, values in spent.items()}
    report = {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "frames": frames,
        "max_difference": float((out["ours"] - out["f5-tts"]).abs().max()),
        "largest_output": float(out["ours"].abs().max()),
        "processor_seconds": seconds,
        "ratio": seconds["f5-tts"] / seconds["ours"],
    }
    print(json.dumps(report, indent=1))
    if given["json"]:
        Path(given["json"]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
