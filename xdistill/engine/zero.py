"""ZeRO training of one role: a DeepSpeed engine of its own (1910.02054), stages 0 to 3."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xdistill.engine.base import Engine, OptimConfig
from xdistill.errors import UsageError, XDistillError

#: Keys of a raw DeepSpeed configuration that xdistill decides, and where a run sets them instead.
OWNED = {
    "gradient_clipping": "optim.<role>.clip",
    "gradient_accumulation_steps": "optim.<role>.accumulate",
    "train_batch_size": "data",
    "train_micro_batch_size_per_gpu": "data",
    "optimizer": "optim.<role>",
    "scheduler": "optim.<role>.schedule",
    "bf16": "precision",
    "fp16": "precision",
    "torch_autocast": "precision",
}


def load_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed, silent and set to `device`; XDistillError when it is missing or already bound to another device."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator
    except ImportError as error:
        raise XDistillError(f"DeepSpeed is not available ({error}): pip install xdistill[deepspeed]") from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    bound = get_accelerator().device_name()
    if bound != device.type:
        raise XDistillError(
            f"DeepSpeed is bound to '{bound}' but this run trains on '{device.type}': set DS_ACCELERATOR={device.type}"
        )
    # Its shared-memory collectives are compiled on first use; gloo needs no compiler and sums in a fixed order.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def zero_config(
    module: nn.Module, stage: int, precision: str, extra: Mapping[str, Any], *, offload: bool = False
) -> dict[str, Any]:
    """The DeepSpeed configuration of one role; `extra` is merged over it. Raises UsageError for keys in OWNED."""
    if owned := sorted(set(extra) & set(OWNED)):
        raise UsageError(f"strategy.config.{owned[0]} is decided by xdistill: set {OWNED[owned[0]]} instead")
    numel = sum(p.numel() for p in module.parameters())
    # A bucket is allocated in full: DeepSpeed's default of 5e8 elements is 2 GB a role, whatever its size.
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(numel, 50_000_000)}
    if offload and stage:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts samples with it
        "zero_optimization": zero | dict(extra.get("zero_optimization", {})),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if precision == "bf16":
        # DeepSpeed switches off an outer CUDA autocast unless it is told of it. No module is listed as safe in low
        # precision, because that would reduce gradients in bf16.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config | {k: v for k, v in extra.items() if k != "zero_optimization"}


class DeepSpeedEngine(Engine):
    """Weights in fp32, optimizer state (stage 1), gradients (2) and weights (3) sharded over ranks.

    Clipping and the check for non-finite gradients are xdistill's own, on the shards, so that every stage and
    every version of DeepSpeed follows the rule of `Engine.step`.
    """

    def __init__(self, module: nn.Module, optim: OptimConfig, config: Mapping[str, Any], device: torch.device) -> None:
        super().__init__(module, optim)
        self.deepspeed = load_deepspeed(device)
        self.stage = int(config["zero_optimization"]["stage"])
        self.offload = "offload_optimizer" in config["zero_optimization"]
        self.layout = f"zero{self.stage}" if self.stage else "replicated"
        self.ds, *_ = self.deepspeed.initialize(
            model=module, optimizer=optim.optimizer(module), config=dict(config), dist_init_required=False
        )
        self.zero = self.ds.optimizer
        self.optimizer = self.ds.basic_optimizer
        if self.stage == 3:
            _gather_before_backward(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.ds(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.ds.set_gradient_accumulation_boundary(last)
        self.ds.backward(loss)

    def gradients(self) -> list[Tensor]:
        if self.stage == 0:
            return [p.grad for p in self.module.parameters() if p.grad is not None]
        if self.offload:
            return [p.grad for p in self._masters() if p.grad is not None]
        groups = self.zero.averaged_gradients.values()
        return [g for group in groups for g in group or () if not getattr(g, "_zero_padding", False)]

    def _masters(self) -> list[Tensor]:
        """This rank's flat fp32 partitions."""
        if self.stage == 3:
            return list(self.zero.fp32_partitioned_groups_flat)
        return list(self.zero.single_partition_of_fp32_groups)

    def norm(self, grads: Any) -> Tensor:
        norm = torch.nn.utils.get_total_norm(grads)
        if self.stage == 0 or dist.get_world_size() == 1:
            return norm
        square = norm.to(self.ds.device, torch.float64).square()
        dist.all_reduce(square)
        return square.sqrt()

    def update(self) -> None:
        shards = self.gradients() if self.stage == 3 and not self.offload else []
        self.ds.step()
        # ZeRO-3 keeps these buffers, and a parameter without a gradient would meet its old one in the next update.
        if shards:
            torch._foreach_zero_(shards)

    def discard(self) -> None:
        if self.stage == 0:
            self.module.zero_grad(set_to_none=True)
            return
        if self.stage == 3 and not self.offload and (shards := self.gradients()):
            torch._foreach_zero_(shards)
        self.zero.zero_grad(set_to_none=True)
        for group in self.zero.averaged_gradients:
            self.zero.averaged_gradients[group] = None
        if self.stage < 3:
            self.zero.all_grad_tensors.clear()
            self.zero.micro_step_id = -1
        if self.offload:
            self.zero.reset_cpu_buffers()

    def weights(self) -> dict[str, Tensor]:
        with self._gathered():
            state = {k: v.detach() for k, v in self.module.state_dict().items()}
            return {k: v.clone() for k, v in state.items()} if self.stage == 3 else state

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        with self._gathered(modifier_rank=0):
            self.module.load_state_dict(weights, strict=True)
        if self.stage:
            self.zero.refresh_fp32_params()

    def state_dict(self) -> dict[str, Any]:
        with self._grouped():
            return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with self._grouped():
            super().load_state_dict(state)

    def _gathered(self, modifier_rank: int | None = None) -> AbstractContextManager[None]:
        params = list(self.module.parameters())
        return self.deepspeed.zero.GatheredParameters(params, modifier_rank=modifier_rank, enabled=self.stage == 3)

    @contextmanager
    def _grouped(self) -> Iterator[None]:
        """ZeRO-3 empties the groups of the torch optimizer outside its own step."""
        if self.stage < 3:
            yield
            return
        self.zero._set_fp32_optimizer_param_groups()
        try:
            yield
        finally:
            self.zero._clear_fp32_optimizer_param_groups()


def _gather_before_backward(module: nn.Module) -> None:
    """Make ZeRO-3 see the tensors inside states, for modules that own parameters themselves.

    Its hooks around backward look into tuples and dicts only: given or returning a `Field`, such a module would
    meet empty parameters in backward, or keep gathered ones after it.
    """
    for sub in module.modules():
        if next(sub.parameters(recurse=False), None) is not None:
            sub.register_forward_pre_hook(lambda m, inputs: tuple(_inside(m.post_bwd_fn.apply, x) for x in inputs))
            sub.register_forward_hook(lambda m, inputs, output: _inside(m.pre_bwd_fn.apply, output))


def _inside(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply `function` to the floating-point tensors of a dataclass; anything else stays as it is."""
    if not is_dataclass(state) or isinstance(state, type):
        return state
    values = {f.name: getattr(state, f.name) for f in fields(state)}
    changed = {k: function(v) for k, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return replace(state, **changed) if changed else state
