"""Train the shipped fold classifier of CA traces on the embedded PDB chains; resumable.

    python tools/train_protein_classifier.py --out runs/protein_classifier

Run it again to continue. At the end it writes `classifier.safetensors` and `classifier_reference.safetensors`
(features of the embedded set) into --out and prints what held-out chains score; domains/protein/assets holds copies.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xdistill import rng
from xdistill.domains.protein.chains import ChainSet, load_embedded
from xdistill.domains.protein.classifier import LEVELS, FoldClassifier, fold_targets
from xdistill.domains.protein.codec import NM
from xdistill.domains.protein.distribution import save_reference
from xdistill.domains.protein.gearnet import ORIENTED_EDGE, ORIENTED_NODE, GearNet, GearNetConfig, save_gearnet

CONFIG = GearNetConfig(
    input_dim=ORIENTED_NODE,
    hidden_dim=96,
    layers=3,
    edge_dim=ORIENTED_EDGE,
    radius=8.0,
    nearest=4,
    separation=3,
    geometry="oriented",
    readout="mean",
    dropout=0.0,
    max_len=128,
    heads={**LEVELS, "hand": 2},
)
WEIGHTS = {"C": 1.0, "A": 1.0, "T": 0.5, "hand": 1.0}  # of the heads' cross-entropies
MIRRORED = 0.15  # share of training chains shown as their mirror image: only the hand is asked of them
NOISE = 0.4  # A: half of the chains get Gaussian noise of up to this size, as generated chains have


def batch_index(chains: ChainSet, residues: int, seed: int, step: int) -> Tensor:
    """Chains of batch `step`: consecutive ones of a shuffled epoch, about `residues` together."""
    per_epoch = -(-int(chains.lengths.sum()) // residues)
    order = torch.randperm(len(chains), generator=rng.generator("epoch", seed, step // per_epoch))
    before = torch.from_numpy(np.cumsum(chains.lengths[order.numpy()]) - chains.lengths[order.numpy()])
    return order[before // residues == step % per_epoch]


def augmented(chains: ChainSet, index: Tensor, gen: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Chains [n, 3] in Angstrom, noisy or mirrored some of them, and which ones are mirrored [b]."""
    mirrored = torch.rand(len(index), generator=gen) < MIRRORED
    sigma = NOISE * torch.rand(len(index), generator=gen) * (torch.rand(len(index), generator=gen) < 0.5)
    out = []
    for i, flip, s in zip(index.tolist(), mirrored.tolist(), sigma.tolist(), strict=True):
        x = torch.tensor(chains.coords(i)) * NM
        x = x + s * torch.randn(x.shape, generator=gen)
        out.append(-x if flip else x)
    return out, mirrored


def loss(net: GearNet, chains: list[Tensor], targets: dict[str, Tensor], mirrored: Tensor) -> Tensor:
    """Weighted cross-entropies; the fold of mirror images is not asked for."""
    logits = net.logits(net(net.graph(chains)))
    total = WEIGHTS["hand"] * nn.functional.cross_entropy(logits["hand"], mirrored.long())
    for level in LEVELS:
        value = nn.functional.cross_entropy(logits[level][~mirrored], targets[level][~mirrored], label_smoothing=0.02)
        total = total + WEIGHTS[level] * value
    return total


def anneal(progress: float) -> float:
    """Linear warm-up over a tenth of the run, cosine to zero after it."""
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def train(args: argparse.Namespace) -> tuple[GearNet, float]:
    """The trained network and the seconds it took, continued from `last.pt` if there is one."""
    chains = load_embedded("train")
    targets = {k: torch.from_numpy(v) for k, v in fold_targets(chains).items()}
    torch.manual_seed(args.seed)
    net = GearNet(CONFIG)
    optim = torch.optim.AdamW(net.parameters(), args.lr, weight_decay=1e-2)
    start, spent, last = 0, 0.0, args.out / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        net.load_state_dict(state["net"])
        optim.load_state_dict(state["optim"])
        start, spent = state["step"], state["seconds"]
    began = time.perf_counter() - spent
    for step in range(start, args.steps):
        index = batch_index(chains, args.residues, args.seed, step)
        x, mirrored = augmented(chains, index, rng.generator("augment", args.seed, step))
        optim.param_groups[0]["lr"] = args.lr * anneal((step + 1) / args.steps)
        value = loss(net, x, {k: v[index] for k, v in targets.items()}, mirrored)
        optim.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optim.step()
        if (step + 1) % 10 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}/{args.steps} loss {value:.3f} {time.perf_counter() - began:.0f} s", flush=True)
            save(
                last,
                {
                    "net": net.state_dict(),
                    "optim": optim.state_dict(),
                    "step": step + 1,
                    "seconds": time.perf_counter() - began,
                },
            )
    return net.eval(), time.perf_counter() - began


def save(path: Path, state: dict[str, Any]) -> None:
    """Write atomically."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def held_out(net: GearNet) -> dict[str, Any]:
    """Accuracy by level on val and test, confusion of C (rows: true), and how often the hand is right, both ways."""
    report: dict[str, Any] = {}
    classify = FoldClassifier(net)
    for split in ("val", "test"):
        chains = load_embedded(split)
        x = [chains.coords(i) for i in range(len(chains))]
        found, mirrored = classify(x), classify([-a for a in x])
        targets = fold_targets(chains)
        hits = {k: float((found.probabilities[k].argmax(1) == v).mean()) for k, v in targets.items()}
        confusion = np.zeros((4, 4), int)
        np.add.at(confusion, (targets["C"], found.probabilities["C"].argmax(1)), 1)
        hand = [found.probabilities["hand"].argmax(1) == 0, mirrored.probabilities["hand"].argmax(1) == 1]
        report[split] = {
            "chains": len(chains),
            "accuracy": {k: round(v, 4) for k, v in hits.items()},
            "native recognised": round(float(hand[0].mean()), 4),
            "mirror image recognised": round(float(hand[1].mean()), 4),
            "confusion C": confusion.tolist(),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/protein_classifier"))
    parser.add_argument("--steps", type=int, default=520, help="updates, and length of the cosine decay")
    parser.add_argument("--residues", type=int, default=3000, help="residues a batch")
    parser.add_argument("--lr", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    net, seconds = train(args)
    info = {
        "data": "embedded PDB chains of 40-128 residues, train split",
        "steps": args.steps,
        "residues": args.residues,
        "lr": args.lr,
        "seed": args.seed,
        "seconds": round(seconds),
        "parameters": sum(p.numel() for p in net.parameters()),
        "held_out": held_out(net),
    }
    save_gearnet(net, args.out / "classifier.safetensors", info)
    save_reference(args.out / "classifier.safetensors", args.out / "classifier_reference.safetensors")
    print(json.dumps(info, indent=1))


if __name__ == "__main__":
    main()
