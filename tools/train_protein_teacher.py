"""Train the shipped `mini` protein teacher with `objective=flow_matching` on the embedded PDB chains; resumable.

    python tools/train_protein_teacher.py --out runs/protein_mini

Run it again to continue from its newest checkpoint. tools/export_assets.py turns the run into the asset.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch

from xdistill.callbacks import Log, Resume, Save
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.sources import ChainSource
from xdistill.domains.protein.teacher import MINI, mini_network
from xdistill.ema import EMAConfig
from xdistill.engine import OptimConfig
from xdistill.folder import RunFolder
from xdistill.module import DistillModule
from xdistill.objectives.flow_matching import FlowMatching
from xdistill.process import Linear
from xdistill.stream import Stream
from xdistill.times import CleanBeta


def build(args: argparse.Namespace) -> tuple[DistillModule, ChainSource]:
    """The module and the data of this run."""
    mini = mini_network(args.seed)
    optim = OptimConfig(
        lr=args.lr, betas=(0.9, 0.99), warmup=300, schedule="cosine_restarts", cycle=args.steps, lr_min=1e-5
    )
    module = DistillModule(
        FlowMatching(Linear(), CleanBeta()),
        {"student": mini.flow},
        {"student": optim},
        seed=args.seed,
        precision=args.precision,
        ema=EMAConfig(half_life=args.ema),
    )
    return module, ChainSource(load_embedded("train"), args.seed, args.batch, args.tokens, mini.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/protein_mini"))
    parser.add_argument("--steps", type=int, default=4600, help="updates, and length of the cosine decay")
    parser.add_argument("--batch", type=int, default=64, help="chains a batch at most")
    parser.add_argument("--tokens", type=int, default=2048, help="padded residues a batch at most")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=300, help="half-life of the average, in updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = RunFolder(args.out)
    folder.lock()
    newest = folder.resume_from("auto")
    module, source = build(args)
    config = {
        "network": MINI,
        "optim": asdict(module.optim["student"]),
        "args": {k: str(v) for k, v in vars(args).items()},
    }
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            Resume(newest),
            Log(args.out / "health.jsonl", 20),
            Save(folder, config, {}, every=args.save_every, keep=2),
        ],
    )
    start = newest.manifest["macro_step"] if newest else 0
    trainer.fit(module, Stream(source, steps=args.steps, slots=module.slots, start=start))


if __name__ == "__main__":
    main()
