"""The engine of one role on one process, and the contract that DDP and DeepSpeed engines share with it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xdistill.errors import UsageError, XDistillError


@dataclass(frozen=True)
class OptimConfig:
    """How a role is optimised.

    lr, betas, eps, weight_decay: of Adam(W). clip: largest gradient norm, 0 is none. accumulate: micro-batches
    an update. schedule: `constant`, or `cosine_restarts` with first cycle `cycle` updates, doubling, down to
    `lr_min`. warmup: updates of linear warm-up.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    schedule: str = "constant"
    cycle: int = 1000
    lr_min: float = 1e-6
    warmup: int = 0

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """A fresh AdamW over the module's parameters."""
        beta1, beta2 = self.betas
        return torch.optim.AdamW(
            module.parameters(), self.lr, (beta1, beta2), self.eps, self.weight_decay, foreach=True
        )

    def lr_at(self, update: int) -> float:
        """Learning rate of the `update`-th update (0-based): a pure function, so resume needs no scheduler state."""
        ramp = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return self.lr * ramp
        if self.schedule != "cosine_restarts":
            raise UsageError(f"unknown schedule '{self.schedule}': choose constant or cosine_restarts")
        cycle, position = self.cycle, update
        while position >= cycle:
            position, cycle = position - cycle, 2 * cycle
        cosine = 0.5 * (1 + math.cos(math.pi * position / cycle))
        return (self.lr_min + (self.lr - self.lr_min) * cosine) * ramp


class StepOut(NamedTuple):
    """grad_norm before clipping; skipped when the gradient was not finite and nothing moved."""

    grad_norm: float
    skipped: bool


class Engine(ABC):
    """Trains one role. Calls go through the engine's forward; `module` is the raw network.

    layout names how the optimizer state is spread over ranks: a state can only be resumed in its own layout.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    layout: str = "replicated"

    def __init__(self, module: nn.Module, optim: OptimConfig) -> None:
        self.module, self.optim = module, optim

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the role through the engine."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate gradients of `loss` (already divided by the micro-batches); `last` one of the update."""

    def step(self, lr: float) -> StepOut:
        """Clip and update with learning rate `lr`; skip on every rank when the gradient is not finite."""
        grads = self.gradients()
        norm = self.norm(grads)
        value = float(norm)
        out = StepOut(value, not math.isfinite(value))
        if out.skipped:
            self.discard()
            return out
        if self.optim.clip:
            clip(grads, self.optim.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.update()
        return out

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """The accumulated gradient, as far as this rank keeps it, averaged over ranks; modified by clipping."""

    def norm(self, grads: Sequence[Tensor]) -> Tensor:
        """Norm of the whole gradient, the same on every rank."""
        return torch.nn.utils.get_total_norm(grads)

    @abstractmethod
    def update(self) -> None:
        """One optimizer step with what `gradients` returned, then drop it."""

    @abstractmethod
    def discard(self) -> None:
        """Drop what `backward` accumulated, at any point of an accumulation (on all ranks alike)."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The full, unsharded state dict of the role (a collective call), detached, on this device.

        Read-only, and valid until the next update: where nothing is sharded it is a view, not a copy.
        """

    @abstractmethod
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace the role's weights, strictly, and whatever master copy the optimizer keeps."""

    def state_dict(self) -> dict[str, Any]:
        """This rank's optimizer moments: tensors and plain containers only."""
        return {"layout": self.layout, "state": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore moments saved by an engine of the same layout and number of ranks, else raise XDistillError.

        Learning rate, betas and weight decay stay those of this run's configuration.
        """
        layout = state.get("layout", "replicated")
        if layout != self.layout:
            raise XDistillError(
                f"optimizer state has layout '{layout}' but this run uses '{self.layout}': resume with the "
                f"strategy and ZeRO stage that wrote it"
            )
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, moments in state["state"].items():
            if index >= len(params) or moments["exp_avg"].shape != params[index].shape:
                raise XDistillError("optimizer state does not fit the network: the configuration has changed")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


class SingleEngine(Engine):
    """One process, one device."""

    def __init__(self, module: nn.Module, optim: OptimConfig) -> None:
        super().__init__(module, optim)
        self.optimizer = optim.optimizer(module)
        self.params = list(module.parameters())  # walking a large module takes longer than a small update

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.params if p.grad is not None]

    def update(self) -> None:
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        return {k: v.detach() for k, v in self.module.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights, strict=True)


def clip(grads: Sequence[Tensor], limit: float, norm: Tensor) -> None:
    """Scale gradients in place to a total norm of at most `limit`: torch's rule, for shards as for whole tensors."""
    if grads:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(grads), factor.to(grads[0].device))
