"""Tiny roles, data and runs that every engine must reproduce; imported by the tests and by their worker processes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from token_cases import PROCESS, TokenSource, token_networks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from xdistill import checkpoint, rng
from xdistill.ema import EMAConfig
from xdistill.engine import OptimConfig, RolesDDP, RolesDeepSpeed
from xdistill.models import Batch, Cond
from xdistill.module import DistillModule
from xdistill.objectives import LossOut, Objective, Phase
from xdistill.objectives.didi import DiDi
from xdistill.objectives.dmd import DMD
from xdistill.objectives.flow_matching import FlowMatching
from xdistill.objectives.interval import Interval
from xdistill.objectives.mid_training import MidTraining
from xdistill.objectives.sid import SiD
from xdistill.objectives.tokens import FewStepTokens
from xdistill.process import Kind, Linear
from xdistill.roles import RoleSpec, RoleView
from xdistill.state import Dense, Field
from xdistill.stream import MacroStep, Stream
from xdistill.times import ConstantLam

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("lightning.fabric").setLevel(logging.ERROR)

DIM, BATCH, STEPS = 3, 4, 4
ZERO_ENGINES = ("zero0", "zero1", "zero2", "zero3")
ENGINES = ("ddp", *ZERO_ENGINES)
#: Data whose loss is finite while its gradient is not.
CLIFF = 7.0


class TinyFlow(nn.Module):
    """A velocity MLP. `gain` belongs to the root, which sees no bare tensor: the hard case of ZeRO-3."""

    kind = Kind.VELOCITY

    def __init__(self, seed: int, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.gain = nn.Parameter(torch.ones(DIM))
        self.inner = nn.Sequential(nn.Linear(DIM + 1, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU())
        self.out = nn.Linear(16, DIM)
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Field:
        inputs = torch.cat([x_t.value, t.to(x_t.value)[:, None]], 1)
        hidden = (
            recompute(self.inner, inputs, use_reentrant=False) if self.activation_checkpointing else self.inner(inputs)
        )
        return Field(self.out(hidden) * self.gain, x_t.layout)


class TinyFlowMap(TinyFlow):
    """A TinyFlow with a second time input."""

    flow_map, time_scale = True, 1.0

    def __init__(self, seed: int, *, activation_checkpointing: bool = False) -> None:
        super().__init__(seed, activation_checkpointing=activation_checkpointing)
        self.jump = nn.Linear(1, DIM)

    def forward(self, x_t: Field, t: Tensor, cond: Cond, *, r: Tensor | None = None) -> Field:
        length = torch.zeros_like(t) if r is None else t - r
        v = super().forward(x_t, t, cond)
        return Field(v.value + torch.tanh(self.jump(length.to(v.value)[:, None])) * x_t.value, x_t.layout)


class TinyDiscriminator(nn.Module):
    """(x_t, t, cond) -> logits [B]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Sequential(nn.Linear(DIM + 1, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Tensor:
        return self.head(torch.cat([x_t.value, t.to(x_t.value)[:, None]], 1)).squeeze(1)


@dataclass(frozen=True)
class Source:
    """Standard normal data; `bad` maps (draw, rank) to a value that the whole batch takes instead."""

    bad: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def batch(self, index: int, rank: int, world: int) -> Batch[Field]:
        value = torch.randn(BATCH, DIM, generator=rng.generator("data", index, rank))
        if (index, rank) in self.bad:
            value = torch.full_like(value, self.bad[index, rank])
        return Batch(Field(value, Dense(BATCH)))


class CliffFlow(FlowMatching):
    """Flow matching whose gradient is NaN, and whose loss is finite, on batches of the value CLIFF."""

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        out = super().loss(phase, batch, net, generator)
        if not bool((batch.like.value == CLIFF).all()):
            return out
        nothing = (out.per_sample - out.per_sample.detach()).abs().sqrt()
        return replace(out, per_sample=out.per_sample + nothing)


class FollowsItself(FlowMatching):
    """Flow matching, and agreement with a frozen copy that takes the student's weights, then their average."""

    promoted = ("target",)

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return RoleSpec("target", trainable=False), RoleSpec("student")

    def promotions(self, macro_step: int) -> Mapping[str, str]:
        return {1: {"target": "student"}, 3: {"target": "student_ema"}}.get(macro_step, {})

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        t = torch.full((batch.like.batch,), 0.5, device=batch.like.value.device)
        target = net.frozen("target")(batch.like, t, batch.cond)
        apart = net.train("student")(batch.like, t, batch.cond) - target
        out = super().loss(phase, batch, net, generator)
        return replace(out, per_sample=out.per_sample + apart.mean_square())


class TrainsAnother(SiD):
    """Breaks R1: asks for gradients of the critic in the student's phase."""

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        if phase.owner == "student":
            net.train("critic")
        return super().loss(phase, batch, net, generator)


class ThroughOwner(SiD):
    """Breaks R2: calls the owner as a frozen raw module that gradients flow through."""

    def loss(self, phase: Phase, batch: Batch[Field], net: RoleView, generator: torch.Generator) -> LossOut:
        net.through(phase.owner)
        return super().loss(phase, batch, net, generator)


class Concatenated(DistillModule):
    """The single-process run whose batch is the ranks' batches one after the other, each with its rank's draws."""

    world = 2

    def _loss(self, phase: Phase, batch: MacroStep, draw: int) -> Tensor:
        ranks = [replace(batch, rank=r) for r in range(self.world)]
        return torch.stack([super(Concatenated, self)._loss(phase, rank, draw) for rank in ranks]).mean()


def meanflow(backend: str) -> Objective:
    """MeanFlow of a teacher, whose target differentiates the student."""
    return Interval(Linear(), leg="velocity", lam=ConstantLam(0.0), derivative=backend, difference_step=1e-2)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "meanflow": lambda: meanflow("func"),
    "difference": lambda: meanflow("finite_difference"),
    "split": lambda: Interval(Linear()),
    "cmt": lambda: MidTraining(Linear(), points=4, trajectories=0, pairs=2),
    "dmd": lambda: DMD(Linear(), steps=3, critic_updates=2, gan_weight=0.1, r1=0.1, divergence="reverse_kl"),
    "sid": lambda: SiD(Linear(), steps=3, critic_updates=2),
    "didi": lambda: DiDi(PROCESS, steps=2, group=2, discriminator_updates=2, entropy=0.01),
    "flow": lambda: CliffFlow(Linear()),
    "follows": lambda: FollowsItself(Linear()),
    "trains_another": lambda: TrainsAnother(Linear(), steps=2),
    "through_owner": lambda: ThroughOwner(Linear(), steps=2),
}


def module(
    objective: str,
    *,
    kind: type[DistillModule] = DistillModule,
    precision: str = "fp32",
    accumulate: int = 2,
    activation_checkpointing: bool = False,
    skip_limit: int = 20,
) -> DistillModule:
    """A run's module: active clipping, weight decay and accumulation, which are what engines get wrong."""
    # Each rank starts from other random weights: rank 0's must win.
    offset = 100 * int(os.environ.get("LOCAL_RANK", "0"))
    networks: dict[str, nn.Module] = {
        role: TinyFlow(seed + offset, activation_checkpointing=activation_checkpointing)
        for seed, role in enumerate(("teacher", "student", "critic", "target"))
    }
    networks["discriminator"] = TinyDiscriminator(3 + offset)
    if objective == "didi":
        networks = token_networks(offset)
    if OBJECTIVES[objective]().needs.flow_map:
        networks["student"] = TinyFlowMap(1 + offset, activation_checkpointing=activation_checkpointing)
    optim = OptimConfig(lr=1e-2, weight_decay=0.1, clip=0.3, accumulate=accumulate, warmup=3)
    return kind(
        OBJECTIVES[objective](),
        networks,
        {role: optim for role in networks},
        precision=precision,
        ema=EMAConfig(half_life=5),
        skip_limit=skip_limit,
    )


def strategy(engine: str) -> Any:
    """`single`, `ddp`, Lightning's `plain` one, `zero0` to `zero3` (parameters released after use), `offload1` to 3."""
    if engine in ("single", "plain"):
        return {"single": "auto", "plain": "ddp"}[engine]
    if engine == "ddp":
        return RolesDDP()
    stage, offload = int(engine[-1]), engine.startswith("offload")
    config = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage == 3 else {}
    return RolesDeepSpeed({"student": stage, "critic": stage, "discriminator": stage}, config, offload=offload)


class Resume(L.Callback):
    """Restore a checkpoint once the engines exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillModule)
        checkpoint.restore(pl_module, checkpoint.open_checkpoint(self.path))


class Save(L.Callback):
    """Write a checkpoint after macro-step `at`."""

    def __init__(self, path: Path, at: int) -> None:
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, DistillModule)
        if pl_module.macro_step == self.at:
            checkpoint.save(pl_module, self.path, {})


def fit(
    run: DistillModule,
    engine: str,
    *,
    steps: int = STEPS,
    start: int = 0,
    source: Source | None = None,
    callbacks: tuple[L.Callback, ...] = (),
) -> DistillModule:
    """Train in an ordinary Trainer on all launched processes."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("ENGINE_DEVICES", "1")),
        strategy=strategy(engine),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )
    rank, world = trainer.global_rank, trainer.world_size
    data = TokenSource() if isinstance(run.objective, FewStepTokens) else source or Source()
    stream = Stream(data, steps=steps, slots=run.slots, rank=rank, world=world, start=start)
    trainer.fit(run, stream)
    return run


def weights(run: DistillModule) -> dict[str, Tensor]:
    """All weights that a run changes, flat by name (a collective call)."""
    roles = {role: run.weights(role) for role in (*run.engines, "student_ema", *run.objective.promoted)}
    return {f"{role}.{name}": w.detach().clone() for role, state in roles.items() for name, w in state.items()}
