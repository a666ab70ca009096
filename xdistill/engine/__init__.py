"""How a role is trained: one engine per trainable role inside an ordinary Lightning Trainer."""

from xdistill.engine.base import Engine, OptimConfig, SingleEngine, StepOut

__all__ = ["Engine", "OptimConfig", "SingleEngine", "StepOut"]
