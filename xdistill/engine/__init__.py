"""How a role is trained: one engine per trainable role inside an ordinary Lightning Trainer."""

from xdistill.engine.base import Engine, OptimConfig, SingleEngine, StepOut
from xdistill.engine.ddp import DDPEngine
from xdistill.engine.strategies import RolesDDP, RolesDeepSpeed
from xdistill.engine.zero import DeepSpeedEngine

__all__ = [
    "DDPEngine",
    "DeepSpeedEngine",
    "Engine",
    "OptimConfig",
    "RolesDDP",
    "RolesDeepSpeed",
    "SingleEngine",
    "StepOut",
]
