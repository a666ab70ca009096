"""Assemble a run from its configuration, train it, and load what a run has left behind."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from xdistill import checkpoint, registry
from xdistill.callbacks import Log, ProgressBar, Resume, Save, StopInTime
from xdistill.compat import compatibility
from xdistill.config import role_optim
from xdistill.domain import Domain
from xdistill.ema import EMAConfig
from xdistill.engine import OptimConfig
from xdistill.errors import UsageError, XDistillError
from xdistill.evaluation import draw, student_sampler
from xdistill.folder import RunFolder
from xdistill.guidance import guide
from xdistill.module import DistillModule
from xdistill.objectives import Objective
from xdistill.stream import Stream
from xdistill.times import anchors, time_law

console = Console(stderr=False)


def plain(section: Any) -> dict[str, Any]:
    """A configuration section as plain, resolved Python values."""
    value = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else dict(section)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}


def build_domain(cfg: DictConfig | Mapping[str, Any]) -> Domain:
    """The configured domain; raises UsageError for an unknown one or an unknown key of it."""
    section = plain(cfg["domain"])
    domain: Domain = registry.load("domains", section.pop("name"))(section)
    domain.teacher_weights = plain(cfg["teacher"]).get("weights", "shipped")
    domain.data_path = plain(cfg["data"]).get("path")
    return domain


def build_objective(cfg: DictConfig | Mapping[str, Any], domain: Domain) -> Objective:
    """The configured objective over the domain's process; raises UsageError for unknown options."""
    options = plain(cfg["objective"])
    name = options.pop("name")
    for key, make in (
        ("anchors", anchors),
        ("critic_time", time_law),
        ("student_time", time_law),
        ("time_law", time_law),
    ):
        if isinstance(options.get(key), dict):
            section = dict(options[key])
            options[key] = make(section.pop("name"), **section)
    return registry.call(registry.load("objectives", name), options, f"objective '{name}'", domain.process)


def build_networks(cfg: DictConfig | Mapping[str, Any], domain: Domain, objective: Objective) -> dict[str, nn.Module]:
    """Networks by role. Clones of the teacher are made after its weights are loaded."""
    roles = {spec.name for spec in objective.roles}
    init = plain(cfg["student"]).get("init", "teacher")
    if "teacher" not in roles:
        return {"student": domain.network() if init == "teacher" else _weights_into(domain, init)}
    teacher = domain.teacher()
    networks = {"student": domain.student(teacher) if init == "teacher" else _weights_into(domain, init)}
    if "critic" in roles:
        networks["critic"] = domain.critic(teacher)
    if "discriminator" in roles:
        networks["discriminator"] = domain.discriminator(teacher)
    g = plain(cfg["guidance"])
    if g["name"] != "none":
        weak = domain.weak_teacher(g["weak"]) if g["name"] == "autoguidance" else None
        guided = guide(teacher, g["name"], scale=g["scale"], weak=weak, interval=tuple(g["interval"]))
        assert isinstance(guided, nn.Module)
        teacher = guided
    networks["teacher"] = teacher
    if plain(cfg["strategy"])["activation_checkpointing"]:
        for module in (m for net in networks.values() for m in net.modules()):
            if hasattr(module, "activation_checkpointing"):
                module.activation_checkpointing = True  # type: ignore[assignment]
    return networks


def _weights_into(domain: Domain, init: str) -> nn.Module:
    return load_student(Path(init)).model


def build_module(cfg: DictConfig, domain: Domain, objective: Objective) -> DistillModule:
    """The Lightning module of the run."""
    optim = {
        spec.name: registry.call(OptimConfig, role_optim(cfg, spec.name), f"optim of '{spec.name}'")
        for spec in objective.roles
        if spec.trainable
    }
    return DistillModule(
        objective,
        build_networks(cfg, domain, objective),
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


def fit(cfg: DictConfig) -> Path:
    """Train the configured run and report; returns its folder. One line of XDistillError for anything wrong."""
    _quiet()
    if cfg.strategy.threads:
        torch.set_num_threads(cfg.strategy.threads)
    domain = build_domain(cfg)
    objective = build_objective(cfg, domain)
    compatibility(cfg, domain, objective)
    folder = RunFolder(Path(cfg.out))
    main = int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    if main:
        folder.lock()
    try:
        # Ranks that the main one launched find its config.yaml in place: only the main one asks whose folder it is.
        newest = folder.resume_from(cfg.resume) if main or cfg.resume != "never" else None
        return _fit_locked(cfg, domain, objective, folder, newest, main)
    finally:
        folder.release()


def _fit_locked(
    cfg: DictConfig,
    domain: Domain,
    objective: Objective,
    folder: RunFolder,
    newest: checkpoint.Checkpoint | None,
    main: bool,
) -> Path:
    resolved = plain(cfg)
    if newest is not None:
        _check_same_run(newest, resolved)
    module = build_module(cfg, domain, objective)
    source = (domain.data if objective.needs.data else domain.null_data)(cfg.data.batch, cfg.seed)
    if main:
        OmegaConf.save(cfg, folder.path / "config.yaml", resolve=True)
        _summary(cfg, module, folder.path, newest)
        if domain.data_report:
            console.print(domain.data_report.table())
            domain.data_report.save(folder.path / "data_report.json")
    stop = StopInTime(cfg.train.max_minutes)
    callbacks: list[L.Callback] = [
        Resume(newest),
        Log(folder.path / "health.jsonl", cfg.train.log_every),
        Save(
            folder,
            resolved,
            {"network": domain.describe(module.networks["student"])},
            every=cfg.train.checkpoint_every,
            keep=cfg.train.keep,
            evaluate_every=cfg.eval.every,
            score=lambda m: score(m, domain, cfg),
        ),
        stop,
    ]
    if cfg.logger.progress:
        callbacks.append(ProgressBar(cfg.train.steps, console))
    trainer = build_trainer(cfg, callbacks, folder.path)
    start = newest.manifest["macro_step"] if newest else 0
    stream = Stream(
        source,
        steps=cfg.train.steps,
        slots=module.slots,
        rank=trainer.global_rank,
        world=trainer.world_size,
        start=start,
    )
    began = time.monotonic()
    trainer.fit(module, stream)
    if stop.reason == "interrupt":
        raise KeyboardInterrupt(f"stopped at macro-step {module.macro_step}; continue with out={cfg.out} resume=auto")
    if stop.reason == "time" and main:
        console.print(f"train.max_minutes={cfg.train.max_minutes:g} used up at macro-step {module.macro_step}")
    if cfg.eval.report and trainer.is_global_zero:
        from xdistill.report import report

        report(cfg, domain, objective, module, folder.path, time.monotonic() - began, console)
    return folder.path


def score(module: DistillModule, domain: Domain, cfg: DictConfig) -> float:
    """The domain's `score` of samples of the averaged student; the same samples at every call."""
    sampler = student_sampler(module.objective, **sampler_options(cfg))
    model = module.networks["student_ema"]
    drawn = draw(domain, model, sampler, cfg.eval.num, seed=cfg.seed, precision=cfg.precision, device=module.device)
    return domain.metrics(drawn.samples, cfg.seed)["score"].value


def sampler_options(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Options of the student's sampler that the configuration sets."""
    section = plain(cfg["sampler"])
    options = {"steps": section["steps"]} if section.get("steps") else {}
    if plain(cfg["objective"])["name"] != "flow_matching":
        options["noise_scale"] = section.get("noise_scale", 1.0)
    return options


@dataclass(frozen=True)
class Loaded:
    """A student ready to sample: everything `generate` and `evaluate` need."""

    domain: Domain
    objective: Objective
    model: nn.Module
    config: dict[str, Any]
    manifest: Mapping[str, Any]
    path: Path


def load_student(path: Path, domain: str | None = None, role: str = "student_ema") -> Loaded:
    """The averaged student of a run folder (its best checkpoint, else its newest) or of one checkpoint.

    Raises XDistillError when it is missing, damaged, of another schema or of another domain than `domain`.
    """
    found = checkpoint.open_checkpoint(_pick(path))
    name = found.config["domain"]["name"]
    if domain is not None and name != domain:
        raise XDistillError(f"{path} is a checkpoint of domain '{name}', not '{domain}': use domain={name}")
    built = build_domain(found.config)
    model = built.from_description(found.manifest["network"])
    checkpoint.load_strict(model.load_state_dict, found.role(role), found.path, role)
    objective = build_objective(found.config, built)
    return Loaded(built, objective, model.eval(), found.config, found.manifest, found.path)


def _pick(path: Path) -> Path:
    folder = RunFolder(path)
    if not folder.checkpoints.is_dir():
        return path
    best, found = folder.best(), checkpoint.latest(folder.checkpoints)
    if best and (folder.checkpoints / best).is_dir():
        return folder.checkpoints / best
    if not found:
        raise XDistillError(f"run {path} has no checkpoint yet: wait for its first, or continue it with resume=auto")
    return found[0]


def _check_same_run(newest: checkpoint.Checkpoint, cfg: Mapping[str, Any]) -> None:
    """A run may be continued for longer or logged otherwise; what defines it must not change."""
    for section in (
        "domain",
        "objective",
        "teacher",
        "student",
        "data",
        "precision",
        "ema",
        "guidance",
        "optim",
        "seed",
    ):
        before, now = newest.config[section], cfg[section]
        if before != now:
            raise UsageError(
                f"{newest.path} was made with {section}={before}, this run has {now}: "
                f"resume with the same settings, or start anew with another out="
            )


def _summary(cfg: DictConfig, module: DistillModule, out: Path, newest: checkpoint.Checkpoint | None) -> None:
    sizes = {r: sum(p.numel() for p in m.parameters()) for r, m in module.networks.items() if r != "student_ema"}
    roles = ", ".join(f"{r} {n / 1e6:.2f} M{'' if r in module.trainable else ' (frozen)'}" for r, n in sizes.items())
    updates = ", ".join(f"{p.owner} x{p.repeat}" for p in module.objective.phases(10**9))
    calls = getattr(module.objective, "steps", None) or getattr(module.objective, "sample_steps", "?")
    console.print(
        f"[bold]{cfg.domain.name} / {cfg.objective.name}[/]  seed {cfg.seed}  {cfg.precision}  {cfg.strategy.name}"
    )
    console.print(f"  roles: {roles}")
    console.print(
        f"  {cfg.train.steps} macro-steps of {updates}, batch {cfg.data.batch}; student: {calls} network calls"
    )
    console.print(f"  out: {out}" + (f", continued from {newest.path.name}" if newest else ""))


def _quiet() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*configure_optimizers.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
