"""Train the shipped `mini` protein teacher with `objective=flow_matching` on the embedded PDB chains; resumable.

    python tools/train_protein_teacher.py --out runs/protein_mini --steps 40000

Run it again to continue: it resumes from its newest checkpoint. `--init RUN` starts from the weights of another run.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch

from xdistill import checkpoint
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.sources import ChainSource
from xdistill.domains.protein.teacher import MINI, mini_network
from xdistill.ema import EMAConfig
from xdistill.engine import OptimConfig
from xdistill.module import DistillModule
from xdistill.objectives.flow_matching import FlowMatching
from xdistill.process import Linear
from xdistill.stream import Stream
from xdistill.times import CleanBeta


class Recorder(L.Callback):
    """Log the loss and save a checkpoint now and then."""

    def __init__(self, out: Path, config: dict, every: int, started: float) -> None:
        self.out, self.config, self.every, self.started = out, config, every, started
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: DistillModule, *_: object) -> None:
        self.losses.append(module.metrics.get("flow/loss", float("nan")))
        if module.macro_step % 100 == 0:
            row = {
                "step": module.macro_step,
                "loss": sum(self.losses) / len(self.losses),
                "seconds": time.time() - self.started,
            }
            self.losses.clear()
            with open(self.out / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
        if module.macro_step % self.every == 0:
            folder = self.out / "checkpoints"
            checkpoint.save(module, folder / f"step_{module.macro_step}", self.config)
            for old in checkpoint.latest(folder)[2:]:
                for path in sorted(old.rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                old.rmdir()


def build(args: argparse.Namespace) -> tuple[DistillModule, ChainSource]:
    """The module and the data of this run."""
    mini = mini_network(args.seed)
    net, classes = mini.flow, mini.classes
    if args.init:
        newest = checkpoint.open_checkpoint(checkpoint.latest(Path(args.init) / "checkpoints")[0])
        net.load_state_dict(newest.role(args.init_role))
    optim = OptimConfig(lr=args.lr, clip=1.0, warmup=500, betas=(0.9, 0.99))
    module = DistillModule(
        FlowMatching(Linear(), CleanBeta()),
        {"student": net},
        {"student": optim},
        seed=args.seed,
        precision=args.precision,
        ema=EMAConfig(half_life=args.ema),
    )
    return module, ChainSource(load_embedded("train"), args.seed, args.batch, args.tokens, classes)


class Resume(L.Callback):
    """Continue from the newest checkpoint once the engines exist."""

    def __init__(self, newest: Path | None) -> None:
        self.newest = newest

    def on_train_start(self, trainer: L.Trainer, module: DistillModule) -> None:
        if self.newest:
            checkpoint.restore(module, checkpoint.open_checkpoint(self.newest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/protein_mini"))
    parser.add_argument("--steps", type=int, default=40000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--init")
    parser.add_argument("--init-role", default="student_ema")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    module, source = build(args)
    found = checkpoint.latest(args.out / "checkpoints")
    start = int(found[0].name[5:]) if found else 0
    config = {
        "network": MINI,
        "optim": asdict(module.optim["student"]),
        "args": {k: str(v) for k, v in vars(args).items()},
    }
    callbacks = [Resume(found[0] if found else None), Recorder(args.out, config, args.save_every, time.time())]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, Stream(source, steps=args.steps, slots=module.slots, start=start))


if __name__ == "__main__":
    main()
