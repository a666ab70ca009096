"""What the framework costs: a SiD macro-step of the shipped protein networks against a hand-written loop.

    python tools/bench_overhead.py [--steps 12] [--batch 8] [--precision bf16] [--json FILE]

Both train copies of the same networks with the same draws, turn by turn in one process, so that a busy machine slows
both alike. The critic's losses must agree: the loop really is the same mathematics (in time they drift apart by what
Adam makes of rounding in gradients that are zero). Prints the ratio of the summed times (1.05 is 5 % overhead); the
framework's share holds Lightning, streams, logging and the EMA, and the loop's whatever has a counterpart.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from xdistill import rng
from xdistill.assemble import build_module
from xdistill.config import compose
from xdistill.domain import Domain
from xdistill.evaluation import autocast
from xdistill.machine import hardware
from xdistill.module import DistillModule
from xdistill.sections import build_domain, build_objective
from xdistill.stream import Stream


class HandWritten:
    """Multi-step SiD on padded CA traces in plain torch (protein spec 2), no class of xdistill in the loop."""

    def __init__(self, module: DistillModule, domain: Domain, batch: int, precision: str) -> None:
        self.nets: dict[str, Any] = {r: copy.deepcopy(module.networks[r]).net for r in ("teacher", "student", "critic")}
        self.ema = copy.deepcopy(self.nets["student"]).requires_grad_(False)
        self.opt = {r: module.optim[r].optimizer(self.nets[r]) for r in ("student", "critic")}
        self.optim, self.decay, self.precision = module.optim, module.ema.decay, precision
        self.source, self.seed, self.step = domain.null_data(batch, module.seed), module.seed, 0
        self.losses: dict[str, float] = {}
        self.times = module.objective.anchors(module.objective.steps).tolist()  # type: ignore[attr-defined]

    def predict(self, role: str, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        """Clean estimate, centred."""
        with autocast(self.precision, "cpu"):
            v = self.nets[role](x, (1 - t).float(), mask, need_pair=False)["coors_pred"]
        return centre(x + t.float()[:, None, None] * v.float(), mask)

    def noise(self, mask: Tensor, g: torch.Generator) -> Tensor:
        """Unit normal on valid residues, centred."""
        e = torch.zeros(*mask.shape, 3)
        e[mask] = torch.randn(int(mask.sum()), 3, generator=g)
        return centre(e, mask)

    def rollout(self, mask: Tensor, k: int, g: torch.Generator, grad: bool) -> Tensor:
        """The student's clean estimate at step k of its own chain."""
        x = torch.zeros(*mask.shape, 3)
        for i in range(k + 1):
            t = self.times[i]
            x_t = (1 - t) * x + t * self.noise(mask, g)
            with torch.set_grad_enabled(grad and i == k):
                x = self.predict("student", x_t, torch.full((len(mask),), t, dtype=torch.float64), mask)
        return x

    def macro_step(self) -> None:
        """One critic update, one student update."""
        for draw, role in enumerate(("critic", "student")):
            keys = (self.seed, self.step, draw)
            mask = self.source.batch(2 * self.step + draw, 0, 1).like.layout.mask
            k = int(torch.randint(0, len(self.times), (), generator=rng.generator("shared", *keys)))
            g = rng.generator("loss", *keys, 0)
            for r, net in self.nets.items():
                net.requires_grad_(r == role)
            loss = self.critic_loss(mask, k, g) if role == "critic" else self.student_loss(mask, k, g)
            loss.backward()
            self.losses[role] = float(loss.detach())
            self.update(role)
        self.step += 1

    def critic_loss(self, mask: Tensor, k: int, g: torch.Generator) -> Tensor:
        """Velocity error on the student's samples; t from Proteina's mixture."""
        x = self.rollout(mask, k, g, grad=False)
        pick, u, beta = (torch.rand(len(mask), generator=g, dtype=torch.float64) for _ in range(3))
        t = (1 - torch.where(pick < 0.02, u, beta ** (1 / 1.9))).clamp(0.02, 0.98)
        ts = t.float()[:, None, None]
        d = self.predict("critic", (1 - ts) * x + ts * self.noise(mask, g), t, mask)
        return (mean(((d - x) ** 2), mask) / (t**2 + 1e-5).float()).mean()

    def student_loss(self, mask: Tensor, k: int, g: torch.Generator) -> Tensor:
        """The SiD loss with alpha = 1: (f_phi - f_psi) . (f_psi - x_g) / mean |x_g - f_phi|."""
        x = self.rollout(mask, k, g, grad=True)
        t = (10.0 ** (-2 * torch.randint(0, 401, (len(mask),), generator=g).double() / 400)).clamp(0.02, 0.98)
        ts = t.float()[:, None, None]
        x_t = (1 - ts) * x + ts * self.noise(mask, g)
        p, q = self.predict("teacher", x_t, t, mask), self.predict("critic", x_t, t, mask)
        weight = 1 / mean((x - p).abs(), mask).detach().clamp(min=1e-5)
        return (weight * mean((p - q) * (q - x), mask)).mean()

    @torch.no_grad()
    def update(self, role: str) -> None:
        """Clip, Adam, and the student's average."""
        torch.nn.utils.clip_grad_norm_(self.nets[role].parameters(), self.optim[role].clip)
        self.opt[role].step()
        self.opt[role].zero_grad(set_to_none=True)
        if role == "student":
            decay = self.decay(self.step + 1)
            for a, w in zip(self.ema.parameters(), self.nets["student"].parameters(), strict=True):
                a.lerp_(w, 1 - decay)


def centre(x: Tensor, mask: Tensor) -> Tensor:
    """Zero centre of mass over valid residues."""
    x = x * mask[..., None]
    return (x - x.sum(1, keepdim=True) / mask.sum(1)[:, None, None]) * mask[..., None]


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid coordinates of each chain."""
    return (x * mask[..., None]).sum((1, 2)) / (3 * mask.sum(1))


class Interleave(L.Callback):
    """After each macro-step of the module, run and time one of the hand-written loop."""

    def __init__(self, loop: HandWritten) -> None:
        self.loop = loop
        self.framework: list[float] = []
        self.hand: list[float] = []
        self.gaps: list[float] = []
        self._began = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        self.framework.append(now - self._began)
        self.loop.macro_step()
        self.hand.append(time.perf_counter() - now)
        assert isinstance(module, DistillModule)
        self.gaps.append(abs(module.metrics["critic/loss"] / self.loop.losses["critic"] - 1))
        self._began = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    overrides = [
        "domain=protein",
        f"precision={args.precision}",
        f"data.batch={args.batch}",
        f"domain.max_length={args.max_length}",
    ]
    overrides += ["objective.alpha=1.0", "objective.weight=mean_abs", "objective.critic_updates=1"]
    overrides += ["objective.first_step=0", "objective.critic_warmup=0", "objective.loss_scale=1.0"]
    overrides += [f"optim.{role}.schedule=constant" for role in ("student", "critic")]
    cfg = compose(overrides)
    domain = build_domain(cfg)
    module = build_module(cfg, domain, build_objective(cfg, domain))
    loop = HandWritten(module, domain, args.batch, args.precision)
    timer = Interleave(loop)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Stream(domain.null_data(args.batch, cfg.seed), steps=args.steps, slots=module.slots))
    warm = slice(2, None)
    result = {
        "ratio": sum(timer.framework[warm]) / sum(timer.hand[warm]),
        "ratio_of_medians": statistics.median(timer.framework[warm]) / statistics.median(timer.hand[warm]),
        "seconds_framework": statistics.median(timer.framework[warm]),
        "seconds_hand_written": statistics.median(timer.hand[warm]),
        "critic_loss_relative_difference": {"first": timer.gaps[0], "largest": max(timer.gaps)},
        "steps": args.steps,
        "batch": args.batch,
        "precision": args.precision,
        "hardware": hardware(),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
