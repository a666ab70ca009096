"""Velocity loss of a protein teacher on held-out chains, the number the card compares teachers by.

    python tools/protein_heldout.py                           # the shipped teacher, val and train split
    git show 674fa10:domains/protein/assets/mini_teacher.safetensors > /tmp/old.safetensors
    git show 674fa10:domains/protein/assets/mini_teacher.json > /tmp/old.json
    python tools/protein_heldout.py --weights /tmp/old.safetensors   # its predecessor

Two draws of time and noise a chain, bf16 autocast as in training, the same draws for every teacher; mean and standard
error. Of the train split every 17th chain by length, so that both splits cost the same.
"""

from __future__ import annotations

import argparse

import torch

from xdistill.domains.protein.chains import Split, load_embedded
from xdistill.domains.protein.flow import ProteinCond
from xdistill.domains.protein.teacher import load_teacher
from xdistill.objectives.flow_matching import flow_matching_loss
from xdistill.process import Linear
from xdistill.state import Field, Padded
from xdistill.times import CleanBeta

BATCH, DRAWS = 24, 2


@torch.no_grad()
def losses(net: torch.nn.Module, split: Split, every: int) -> torch.Tensor:
    """Loss of each drawn chain, `[draws * chains]`."""
    chains, generator, found = load_embedded(split), torch.Generator().manual_seed(0), []
    order = sorted(range(len(chains)), key=lambda i: int(chains.lengths[i]))[::every]
    for _ in range(DRAWS):
        for start in range(0, len(order), BATCH):
            xs = [torch.tensor(chains.coords(i)) for i in order[start : start + BATCH]]
            layout = Padded.from_lengths([len(x) for x in xs], max(len(x) for x in xs), zero_com=True)
            value = torch.nn.utils.rnn.pad_sequence(xs, batch_first=True)
            t = CleanBeta(low=0.0, high=1.0).sample(len(xs), generator)
            with torch.autocast("cpu", torch.bfloat16):
                found.append(flow_matching_loss(net, Linear(), Field(value, layout), t, ProteinCond(), generator))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shipped", help="shipped, or a file as teacher.weights takes it")
    net = load_teacher(parser.parse_args().weights).flow.eval()
    splits: tuple[tuple[Split, int], ...] = (("val", 1), ("train", 17))
    for split, every in splits:
        found = losses(net, split, every)
        error = float(found.std() / len(found) ** 0.5)
        print(f"{split}: {float(found.mean()):.4f} +- {error:.4f} ({len(found)} draws)")


if __name__ == "__main__":
    main()
