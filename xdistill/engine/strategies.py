"""Lightning strategies that give every trainable role an engine of its own and leave the whole module unwrapped."""

from __future__ import annotations

import atexit
import gc
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from xdistill.engine.base import Engine, OptimConfig
from xdistill.engine.ddp import DDPEngine
from xdistill.engine.zero import DeepSpeedEngine, load_deepspeed, zero_config
from xdistill.errors import UsageError, XDistillError


def leave() -> None:
    """End communication while Python still runs: a gloo thread that lets go of a tensor later aborts the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # the threads are joined with the last reference to their group, and engines are cycles
        time.sleep(0.5)  # DeepSpeed's engines live for ever: let the threads of their groups have Python's lock


class RolesDDP(DDPStrategy):
    """One DistributedDataParallel per trainable role; gloo on CPU, nccl on CUDA.

    Frozen roles and the average stay plain modules. Launch with Lightning's own launcher or with torchrun.
    """

    def setup_environment(self) -> None:
        super().setup_environment()
        atexit.unregister(leave)
        atexit.register(leave)

    def on_exception(self, exception: BaseException) -> None:
        """A process that failed leaves at once: the others may never join what it has begun."""
        atexit.unregister(leave)
        super().on_exception(exception)

    def setup(self, trainer: L.Trainer) -> None:
        super().setup(trainer)
        # Engines synchronise the roles they train; frozen roles and averages must agree too.
        assert self.lightning_module is not None
        for tensor in self.lightning_module.state_dict().values():
            dist.broadcast(tensor, src=0)

    def configure_ddp(self) -> None:
        """Nothing is wrapped: engines are made per role."""

    def make_engine(self, role: str, module: nn.Module, optim: OptimConfig, precision: str) -> Engine:
        """The engine of a role whose module is on this process's device already."""
        return DDPEngine(module, optim)


class RolesDeepSpeed(RolesDDP):
    """One DeepSpeed engine per trainable role.

    stage: ZeRO stage 0 to 3, for all roles or by role. config: raw DeepSpeed configuration on top of xdistill's.
    offload: keep the optimizer on the CPU. Raises UsageError for a wrong stage or for configuration keys that
    xdistill decides, XDistillError when DeepSpeed is not installed.
    """

    def __init__(
        self,
        stage: int | Mapping[str, int] = 2,
        config: Mapping[str, Any] | None = None,
        *,
        offload: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if find_spec("deepspeed") is None:
            raise XDistillError("strategy=deepspeed needs DeepSpeed: pip install xdistill[deepspeed]")
        self.stage, self.config, self.offload = stage, dict(config or {}), offload
        for value in stage.values() if isinstance(stage, Mapping) else (stage,):
            if value not in (0, 1, 2, 3):
                raise UsageError(f"ZeRO stage {value} does not exist: choose 0, 1, 2 or 3")

    def setup(self, trainer: L.Trainer) -> None:
        if self.root_device.index not in (None, self.local_rank):
            raise UsageError(
                "DeepSpeed takes GPU i for process i: choose GPUs with CUDA_VISIBLE_DEVICES, not with devices"
            )
        super().setup(trainer)
        os.environ["LOCAL_RANK"] = str(self.local_rank)  # DeepSpeed reads nothing else, and SLURM does not set it
        load_deepspeed(self.root_device).init_distributed(dist_init_required=False, verbose=False)

    def make_engine(self, role: str, module: nn.Module, optim: OptimConfig, precision: str) -> Engine:
        config = zero_config(module, self._stage(role), precision, self.config, offload=self.offload)
        return DeepSpeedEngine(module, optim, config, self.root_device)

    def _stage(self, role: str) -> int:
        if not isinstance(self.stage, Mapping):
            return self.stage
        if role not in self.stage:
            raise UsageError(f"strategy.stage names {', '.join(self.stage)}, but the run also trains '{role}': add it")
        return self.stage[role]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Refused: Lightning would write shards as if they were whole weights."""
        raise XDistillError("Lightning's checkpoints do not know sharded roles: use xdistill.checkpoint.save")
