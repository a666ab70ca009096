"""Train the autoregressive judge of text on the five training novels; resumable, Persuasion is held out.

    python tools/train_text_judge.py --out runs/text_judge

Run it again to continue. At the end it writes domains/text/assets/judge.safetensors (see --asset), whose metadata hold
the command, seed, steps, time, hardware and the held-out nll: nats a token of BPE-1024, no <|endoftext|> among them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xdistill import rng
from xdistill.domains.text.causal import CausalConfig, CausalLM, save_causal
from xdistill.domains.text.corpus import ASSETS, split
from xdistill.domains.text.packing import Packed, PackedSource
from xdistill.domains.text.tokenizers import TextTokenizer, read_tokenizer
from xdistill.machine import hardware


@dataclass
class Progress:
    """Where a run stands: updates done, seconds spent, and the best held-out nll with its step."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0


def packed(tokenizer: TextTokenizer, name: str, context: int) -> Packed:
    """The stream of `train` or `validation`."""
    ids = [i for text in split(name) for i in [*tokenizer.encode(text), tokenizer.end_id]]
    return Packed(np.asarray(ids, dtype=np.uint16), context, tokenizer.end_id)


def learning_rate(args: argparse.Namespace, step: int) -> float:
    """Linear warm-up over 100 updates, cosine to a twentieth."""
    warm = min(1.0, (step + 1) / 100)
    return args.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))


def optimizer(net: CausalLM, lr: float) -> torch.optim.AdamW:
    """AdamW; only matrices decay."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.95))


@torch.no_grad()
def held_out(net: CausalLM, validation: Packed, sequences: int) -> float:
    """Nats a token of at most `sequences` evenly spaced sequences, their ends not counted."""
    net.eval()
    chunks = np.linspace(0, len(validation) - 1, min(sequences, len(validation))).astype(int)
    ids = torch.stack([validation.sequence(int(i)) for i in np.unique(chunks)])
    total, count = 0.0, 0
    for rows in ids.split(16):
        counted = rows != validation.end_id
        total -= float(net.log_probs(rows, counted).sum())
        count += int(counted[:, 1:].sum())
    net.train()
    return total / count


def autocast(name: str) -> Any:
    """bf16 autocast on the CPU or nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if name == "bf16" else nullcontext()


def update(net: CausalLM, optim: torch.optim.Optimizer, ids: Tensor, args: argparse.Namespace, step: int) -> float:
    """One update; the dropout of an update depends on (seed, step) alone."""
    torch.manual_seed(rng.derive_seed("dropout", args.seed, step))
    for group in optim.param_groups:
        group["lr"] = learning_rate(args, step)
    with autocast(args.precision):
        value = -net.log_probs(ids, torch.ones_like(ids, dtype=torch.bool)).mean()
    optim.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optim.step()
    return float(value.detach())


def train(args: argparse.Namespace, tokenizer: TextTokenizer) -> tuple[CausalLM, Progress]:
    """The network with the best held-out nll, continued from `last.pt` if there is one."""
    torch.manual_seed(args.seed)
    sizes = {"hidden": args.hidden, "blocks": args.blocks, "heads": args.hidden // 64}
    net = CausalLM(
        CausalConfig(tokenizer.vocabulary, tokenizer.mask_id, args.context, dropout=args.dropout, **sizes)
    ).train()
    optim, at, last, best = optimizer(net, args.lr), Progress(), args.out / "last.pt", args.out / "best.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        net.load_state_dict(state["net"])
        optim.load_state_dict(state["optim"])
        at = Progress(**state["progress"])
    source = PackedSource(packed(tokenizer, "train", args.context), args.seed, args.batch)
    validation = packed(tokenizer, "validation", args.context)
    began = time.perf_counter() - at.seconds
    for step in range(at.step, args.steps):
        loss = update(net, optim, source.batch(step, 0, 1).like.ids, args, step)
        at.step, at.seconds = step + 1, time.perf_counter() - began
        if at.step % args.every and at.step < args.steps:
            continue
        nll = held_out(net, validation, 64)
        if nll < at.best:
            at.best, at.best_step = nll, at.step
            save(best, {"net": net.state_dict(), "step": at.step})
        save(last, {"net": net.state_dict(), "optim": optim.state_dict(), "progress": vars(at)})
        print(f"step {at.step}/{args.steps} train {loss:.4f} held-out {nll:.4f} {at.seconds:.0f} s", flush=True)
    net.load_state_dict(torch.load(best, weights_only=True)["net"])
    return net.eval(), at


def save(path: Path, state: dict[str, Any]) -> None:
    """Write atomically."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/text_judge"))
    parser.add_argument("--asset", type=Path, default=ASSETS / "judge.safetensors", help="what the end writes")
    parser.add_argument("--steps", type=int, default=3000, help="updates, and length of the cosine decay")
    parser.add_argument("--every", type=int, default=100, help="updates between held-out nll and checkpoint")
    parser.add_argument("--batch", type=int, default=16, help="sequences an update")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=192, help="a multiple of 64, the width of a head")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = read_tokenizer(ASSETS / "austen_bpe1024.json")
    net, at = train(args, tokenizer)
    info = {
        "command": shlex.join(["python", *sys.argv]),
        "data": "Jane Austen's novels without Persuasion, BPE of 1,024 ids",
        "seed": args.seed,
        "steps": args.steps,
        "best_step": at.best_step,
        "tokens_an_update": args.batch * args.context,
        "seconds": round(at.seconds),
        "hardware": hardware(),
        "threads": args.threads,
        "parameters": sum(p.numel() for p in net.parameters()),
        "held_out_nll": round(held_out(net, packed(tokenizer, "validation", args.context), 1 << 30), 4),
    }
    save_causal(net, args.asset, info)
    print(json.dumps(info, indent=1))


if __name__ == "__main__":
    main()
