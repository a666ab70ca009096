"""Data parallel training of one role: a DistributedDataParallel of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xdistill.engine.base import OptimConfig, SingleEngine


class DDPEngine(SingleEngine):
    """Replicated weights, gradients averaged over ranks in the last micro-batch of an update.

    Only the owner of a phase has gradients, so every parameter is used and `find_unused_parameters` stays off.
    Buffers are not synchronised: other phases call the raw module, which would never do it either.
    """

    def __init__(self, module: nn.Module, optim: OptimConfig) -> None:
        super().__init__(module, optim)
        self.ddp = DistributedDataParallel(module, broadcast_buffers=False)
        self.micro = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # DDP arms its reducer in forward, so which micro-batch is the last must be known before backward says so.
        if self.micro == self.optim.accumulate - 1:
            return self.ddp(*args, **kwargs)
        with self.ddp.no_sync():
            return self.ddp(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        assert last == (self.micro == self.optim.accumulate - 1), "backward() calls differ from optim.accumulate"
        super().backward(loss, last=last)
        self.micro += 1

    def discard(self) -> None:
        super().discard()
        self.micro = 0
