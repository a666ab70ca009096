"""From a configuration to networks, module and trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch import nn

from xdistill import registry
from xdistill.compat import check_calls
from xdistill.config import role_optim
from xdistill.domain import Domain, clone
from xdistill.ema import EMAConfig
from xdistill.engine import OptimConfig
from xdistill.errors import XDistillError
from xdistill.guidance import guide
from xdistill.module import DistillModule
from xdistill.objectives import Objective
from xdistill.sections import plain
from xdistill.student import load_network


def build_networks(cfg: DictConfig | Mapping[str, Any], domain: Domain, objective: Objective) -> dict[str, nn.Module]:
    """Networks by role. Clones of the teacher are made after its weights are loaded."""
    roles = {spec.name for spec in objective.roles}
    init = plain(cfg["student"]).get("init", "teacher")
    fresh = init == "fresh" or (init == "teacher" and not (roles & {"teacher"} or objective.needs.flow_map))
    teacher = domain.teacher() if "teacher" in roles or (init == "teacher" and not fresh) else None
    if fresh:
        student = domain.network()
    else:
        student = domain.student(teacher) if init == "teacher" and teacher else load_network(Path(init), domain)
    networks = {"student": domain.flow_map(student) if objective.needs.flow_map else student}
    g = plain(cfg["guidance"])
    if g.get("range"):
        networks["student"] = domain.told(networks["student"], g["scale"])
    if "teacher" in roles and teacher is not None:
        networks |= _beside(cfg, domain, objective, networks["student"], teacher)
    if plain(cfg["strategy"])["activation_checkpointing"]:
        for module in (m for net in networks.values() for m in net.modules()):
            if hasattr(module, "activation_checkpointing"):
                module.activation_checkpointing = True  # type: ignore[assignment]
    return networks


def _beside(
    cfg: DictConfig | Mapping[str, Any], domain: Domain, objective: Objective, student: nn.Module, teacher: nn.Module
) -> dict[str, nn.Module]:
    """The roles that a teacher makes possible, itself last: guided."""
    roles, networks = {spec.name for spec in objective.roles}, {role: clone(student) for role in objective.promoted}
    if "critic" in roles:
        networks["critic"] = domain.critic(teacher)
    if "discriminator" in roles:
        networks["discriminator"] = domain.discriminator(teacher)
    return networks | {"teacher": guided_teacher(cfg, domain, teacher)}


def guided_teacher(cfg: DictConfig | Mapping[str, Any], domain: Domain, teacher: nn.Module | None = None) -> nn.Module:
    """The domain's teacher (or `teacher`) under the guidance that `cfg` configures."""
    teacher, g = domain.teacher() if teacher is None else teacher, plain(cfg["guidance"])
    if g["name"] == "none":
        return teacher
    weak = domain.weak_teacher(g["weak"]) if g["name"] == "autoguidance" else None
    guided = guide(
        teacher, g["name"], scale=g["scale"], told=bool(g.get("range")), weak=weak, interval=tuple(g["interval"])
    )
    assert isinstance(guided, nn.Module)
    return guided


def build_module(cfg: DictConfig, domain: Domain, objective: Objective) -> DistillModule:
    """The Lightning module of the run."""
    optim = {
        spec.name: registry.call(OptimConfig, role_optim(cfg, spec.name), f"optim of '{spec.name}'")
        for spec in objective.roles
        if spec.trainable
    }
    networks = build_networks(cfg, domain, objective)
    check_calls(cfg, domain, objective)
    return DistillModule(
        objective,
        networks,
        optim,
        seed=cfg.seed,
        precision=cfg.precision,
        ema=EMAConfig(cfg.ema.half_life, cfg.ema.ramp),
        skip_limit=cfg.train.skip_limit,
    )


def build_trainer(cfg: DictConfig, callbacks: list[L.Callback], folder: Path) -> L.Trainer:
    """An ordinary Lightning Trainer with the strategy that makes one engine a role."""
    s = cfg.strategy
    strategy: Any = "auto"
    if s.name == "ddp":
        from xdistill.engine.strategies import RolesDDP

        strategy = RolesDDP()
    elif s.name == "deepspeed":
        from xdistill.engine.strategies import RolesDeepSpeed

        strategy = RolesDeepSpeed(stage=plain(s)["stage"], config=plain(s.options))
    return L.Trainer(
        accelerator=s.accelerator,
        devices=s.devices,
        num_nodes=s.nodes,
        strategy=strategy,
        max_epochs=1,
        logger=_loggers(cfg, folder) or False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def _loggers(cfg: DictConfig, folder: Path) -> list[Any]:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    loggers: list[Any] = []
    if cfg.logger.csv:
        loggers.append(CSVLogger(folder, name="", version="logs"))
    if cfg.logger.tensorboard:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    if cfg.logger.wandb:
        try:
            from lightning.pytorch.loggers import WandbLogger

            loggers.append(WandbLogger(save_dir=folder, project="xdistill"))
        except ModuleNotFoundError as error:
            raise XDistillError(
                "logger.wandb=true needs `pip install wandb`: install it or set logger.wandb=false"
            ) from error
    return loggers
