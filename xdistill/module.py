"""DistillModule: phases, engines, counters and EMA inside an ordinary Lightning Trainer; no mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from xdistill import rng
from xdistill.domain import clone
from xdistill.ema import EMAConfig, ema_update
from xdistill.engine import Engine, OptimConfig, SingleEngine
from xdistill.errors import UsageError
from xdistill.health import Health
from xdistill.objectives import Objective, Phase
from xdistill.roles import RoleView, phase_grads
from xdistill.stream import MacroStep


class DistillModule(L.LightningModule):
    """Trains an objective's roles; one Lightning batch is one macro-step.

    networks: raw modules by role (`student_ema` is added here). optim: one OptimConfig per trainable role.
    precision: `fp32`, or `bf16` for autocast around every network call; losses and schedules stay in fp32/64.
    Counters are `macro_step` and `updates[role]`; Lightning's global_step is never read.
    """

    def __init__(
        self,
        objective: Objective,
        networks: Mapping[str, nn.Module],
        optim: Mapping[str, OptimConfig],
        *,
        seed: int = 0,
        precision: str = "fp32",
        ema: EMAConfig | None = None,
        skip_limit: int = 20,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective, self.seed, self.precision = objective, seed, precision
        self.trainable = [spec.name for spec in objective.roles if spec.trainable]
        self.networks = nn.ModuleDict({spec.name: networks[spec.name] for spec in objective.roles})
        for spec in objective.roles:
            self.networks[spec.name].requires_grad_(spec.trainable).train(spec.trainable)
        self.ema = ema or EMAConfig()
        #: what `resets` goes back to; copied before an engine shards or moves the weights
        self.initial = {
            role: {k: v.detach().cpu().clone() for k, v in networks[role].state_dict().items()}
            for role in objective.resettable
        }
        self.networks["student_ema"] = clone(networks["student"]).requires_grad_(False).eval()
        self.optim = {role: optim.get(role, OptimConfig()) for role in self.trainable}
        self.engines: dict[str, Engine] = {}
        self.macro_step, self.updates = 0, dict.fromkeys(self.trainable, 0)
        self.health = Health(skip_limit)
        self.metrics: dict[str, float] = {}

    def configure_optimizers(self) -> None:
        """Engines own the optimizers."""
        return None

    def transfer_batch_to_device(self, batch: MacroStep, device: torch.device, dataloader_idx: int) -> MacroStep:
        """A macro-step is lazy: its draws move when they are made."""
        return batch

    def setup_engines(self) -> None:
        """One engine per trainable role, from the strategy when it makes them; idempotent within a fit."""
        if self.engines:
            return
        make = getattr(self.trainer.strategy, "make_engine", None)
        if make is None and self.trainer.world_size > 1:
            raise UsageError(
                f"strategy {type(self.trainer.strategy).__name__} would train {self.trainer.world_size} processes "
                f"apart from each other: choose strategy=ddp (RolesDDP) or deepspeed_z2 (RolesDeepSpeed)"
            )
        for role in self.trainable:
            network, optim = self.networks[role], self.optim[role]
            self.engines[role] = make(role, network, optim, self.precision) if make else SingleEngine(network, optim)

    def on_fit_start(self) -> None:
        self.setup_engines()

    def weights(self, role: str) -> dict[str, Tensor]:
        """The whole state dict of a role (a collective call where an engine shards it)."""
        return self.engines[role].weights() if role in self.engines else self.networks[role].state_dict()

    @property
    def slots(self) -> int:
        """Draws of data one macro-step may make: the stream reserves as many."""
        phases = self.objective.phases(10**9)
        return sum(phase.repeat * self.optim[phase.owner].accumulate for phase in phases)

    def training_step(self, batch: MacroStep, batch_idx: int) -> None:
        self.metrics, draw = {}, 0
        for role in self.objective.resets(self.macro_step):
            self.engines[role].load_weights(self.initial[role])
            self.engines[role].optimizer.state.clear()
        for role, source in self.objective.promotions(self.macro_step).items():
            self.networks[role].load_state_dict(self.weights(source))
        for phase in self.objective.phases(self.macro_step):
            for repeat in range(phase.repeat):
                draw = self._update(phase, batch, draw, repeat)
        self.macro_step += 1

    def _update(self, phase: Phase, batch: MacroStep, draw: int, repeat: int) -> int:
        engine, config = self.engines[phase.owner], self.optim[phase.owner]
        with phase_grads(dict(self.networks.items()), phase.owner):
            finite = True
            for micro in range(config.accumulate):
                finite &= self._micro_step(phase, batch, draw + micro, engine, last=micro == config.accumulate - 1)
                if not finite:
                    break
            if finite:
                norm, skipped = engine.step(config.lr_at(self.updates[phase.owner]))
                self.metrics[f"{phase.name}/grad_norm"] = norm
                why = "non-finite gradient"
            else:
                engine.discard()
                skipped, why = True, "non-finite loss"
        self.health.record(phase.owner, skipped, why)
        if not skipped:
            self.updates[phase.owner] += 1
            if phase.owner == "student":
                decay = self.ema.decay(self.updates["student"])
                ema_update(self.networks["student_ema"], engine.weights(), decay)
        return draw + config.accumulate

    def _micro_step(self, phase: Phase, batch: MacroStep, draw: int, engine: Engine, *, last: bool) -> bool:
        """Forward and backward of one micro-batch; False (nothing accumulated) when its loss is not finite anywhere."""
        loss = self._loss(phase, batch, draw) / self.optim[phase.owner].accumulate
        if not all_finite(loss):
            return False
        engine.backward(loss, last=last)
        return True

    def _loss(self, phase: Phase, batch: MacroStep, draw: int) -> Tensor:
        """Mean loss of one micro-batch; every random number of it is a function of (seed, macro_step, draw, rank)."""
        keys = (self.seed, self.macro_step, draw)
        # Networks may use the global generator (dropout): a function of the step makes resume exact without RNG files.
        seed_default(rng.derive_seed("global", *keys, batch.rank), self.device)
        view = RoleView(
            dict(self.networks.items()), self.engines, phase.owner, rng.generator("shared", *keys), self._autocast
        )
        generator = rng.generator("loss", *keys, batch.rank, device=self.device)
        out = self.objective.loss(phase, batch.draw(draw).to(self.device), view, generator)
        self._collect(phase, out.metrics)
        return out.per_sample.mean()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _collect(self, phase: Phase, metrics: Mapping[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.metrics[f"{phase.name}/{name}"] = float(value.mean())


def seed_default(seed: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of `device`; `torch.manual_seed` takes longer than a small net."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def all_finite(loss: Tensor) -> bool:
    """Whether `loss` is finite on every rank (a collective call when distributed)."""
    ok = torch.isfinite(loss.detach()).to(torch.float32)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(ok, dist.ReduceOp.MIN)
    return bool(ok > 0)
