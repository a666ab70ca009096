"""A macro-step in plain torch: the ground truth that every engine must reproduce, and the loop of small tests."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from xdistill import rng
from xdistill.ema import ema_update
from xdistill.models import Batch
from xdistill.objectives import Objective
from xdistill.roles import RoleView, phase_grads


def run_macro_step(
    objective: Objective,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    batch: Batch | Callable[[int], Batch],
    seed: int,
    step: int,
    *,
    rank: int = 0,
    clip: float | Mapping[str, float] = 0.0,
    accumulate: int | Mapping[str, int] = 1,
) -> dict[str, float]:
    """All phases of macro-step `step`, in order; updates `modules` in place and returns the logged metrics.

    batch: one batch for every draw, or a function of the draw's number. Draw i takes its noise from
    (seed, step, i, rank), as `DistillModule` does. clip: largest gradient norm of a role, 0 is none.
    accumulate: micro-batches an update, whose mean losses are averaged. Both may differ by role.
    """
    metrics: dict[str, float] = {}
    draw = 0
    for phase in objective.phases(step):
        micros = accumulate if isinstance(accumulate, int) else accumulate.get(phase.owner, 1)
        limit = clip if isinstance(clip, (int, float)) else clip.get(phase.owner, 0.0)
        for _ in range(phase.repeat):
            optimizers[phase.owner].zero_grad(set_to_none=True)
            with phase_grads(modules, phase.owner):
                for _ in range(micros):
                    keys = (seed, step, draw)
                    net = RoleView(modules, modules, phase.owner, rng.generator("shared", *keys))
                    inputs = batch(draw) if callable(batch) else batch
                    out = objective.loss(phase, inputs, net, rng.generator("loss", *keys, rank))
                    (out.per_sample.mean() / micros).backward()
                    metrics |= {f"{phase.name}/{k}": float(v.mean()) for k, v in out.metrics.items()}
                    draw += 1
                if limit:
                    torch.nn.utils.clip_grad_norm_(modules[phase.owner].parameters(), limit)
                optimizers[phase.owner].step()
    return metrics


def train(
    objective: Objective,
    modules: Mapping[str, nn.Module],
    batch: Callable[[int], Batch],
    steps: int,
    *,
    lr: float | Mapping[str, float] = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    seed: int = 0,
    clip: float = 1.0,
    ema: float = 0.0,
) -> dict[str, float]:
    """`steps` macro-steps with AdamW per trainable role; `batch` maps the run's draw number to a batch.

    ema: decay of the average of the student that modules["student_ema"] becomes, 0 is none.
    """
    owners = [spec.name for spec in objective.roles if spec.trainable]
    rates = dict.fromkeys(owners, lr) if isinstance(lr, (int, float)) else lr
    optimizers = {
        name: torch.optim.AdamW(modules[name].parameters(), rates[name], betas, weight_decay=0.0, foreach=True)
        for name in owners
    }
    slots = sum(phase.repeat for phase in objective.phases(10**9))
    metrics: dict[str, float] = {}
    for step in range(steps):
        for role, source in objective.promotions(step).items():
            modules[role].load_state_dict(modules[source].state_dict())
        draws = functools.partial(_shifted, batch, step * slots)
        metrics = run_macro_step(objective, modules, optimizers, draws, seed, step, clip=clip)
        if ema:
            ema_update(modules["student_ema"], modules["student"].state_dict(), ema)
    return metrics


def _shifted(batch: Callable[[int], Batch], offset: int, i: int) -> Batch:
    return batch(offset + i)
