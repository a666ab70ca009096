"""`xdistill fit`: train the configured run, keep its folder, report."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from xdistill import checkpoint
from xdistill.assemble import build_module, build_trainer
from xdistill.callbacks import Log, ProgressBar, Resume, Save, StopInTime
from xdistill.compat import compatibility
from xdistill.domain import Domain
from xdistill.errors import UsageError
from xdistill.evaluation import draw, student_sampler
from xdistill.folder import RunFolder
from xdistill.guard import Guard
from xdistill.guidance import ToldSource
from xdistill.module import DistillModule
from xdistill.objectives import Objective, Setting
from xdistill.sections import build_domain, build_objective, plain, stated
from xdistill.stream import Stream
from xdistill.student import sampler_options

#: A log file or a pipe has no width of its own: the final table needs this much.
console = Console(width=None if sys.stdout.isatty() else 110)

#: Sections that define a run: they cannot change when it is continued.
SAME = ("domain", "objective", "teacher", "student", "data", "precision", "ema", "guidance", "optim", "seed")


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
    if cfg.guidance.range:
        low, high = cfg.guidance.range
        source = ToldSource(source, low, high, cfg.seed)
    if main:
        OmegaConf.save(cfg, folder.path / "config.yaml", resolve=True)
        _summary(cfg, domain, module, folder.path, newest)
        if domain.data_report:
            console.print(domain.data_report.table())
            domain.data_report.save(folder.path / "data_report.json")
    stop = StopInTime(cfg.train.max_minutes)
    callbacks = _callbacks(cfg, resolved, domain, module, folder, newest, stop)
    trainer = build_trainer(cfg, callbacks, folder.path)
    start = newest.manifest["macro_step"] if newest else 0
    teacher = dict(module.networks.items()).get("teacher")
    identity = {key: resolved[key] for key in ("domain", "teacher", "guidance", "data", "seed")}
    source = objective.source(source, Setting(teacher, folder.path, identity, trainer.strategy.root_device, main))
    ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
    stream = Stream(source, steps=cfg.train.steps, slots=module.slots, start=start, **ranks)
    began = time.monotonic()
    if newest and start >= cfg.train.steps:
        _finished(module, newest)
    else:
        trainer.fit(module, stream)
    if stop.reason == "interrupt":
        raise KeyboardInterrupt(f"stopped at macro-step {module.macro_step}; continue with out={cfg.out} resume=auto")
    if stop.reason == "time" and main:
        console.print(f"train.max_minutes={cfg.train.max_minutes:g} used up at macro-step {module.macro_step}")
    if cfg.eval.report and trainer.is_global_zero:
        from xdistill.report import report

        report(cfg, domain, objective, module, folder.path, time.monotonic() - began, console)
    return folder.path


def _callbacks(
    cfg: DictConfig,
    resolved: dict[str, Any],
    domain: Domain,
    module: DistillModule,
    folder: RunFolder,
    newest: checkpoint.Checkpoint | None,
    stop: StopInTime,
) -> list[L.Callback]:
    """What happens beside training: resume, logs, checkpoints, the end in time, the bar."""
    save = Save(
        folder,
        resolved,
        {"network": domain.describe(module.networks["student"])},
        every=cfg.train.checkpoint_every,
        keep=cfg.train.keep,
        evaluate_every=cfg.eval.every,
        score=lambda m: score(m, domain, cfg),
    )
    bar = [ProgressBar(cfg.train.steps, console)] if cfg.logger.progress else []
    guard = Guard(
        domain,
        student_sampler(module.objective, **sampler_options(cfg, module.objective)),
        folder.path / "health.jsonl",
        console,
        action=cfg.train.guard,
        every=cfg.train.guard_every,
        seed=cfg.seed,
        precision=cfg.precision,
    )
    return [Resume(newest), guard, Log(folder.path / "health.jsonl", cfg.train.log_every), save, stop, *bar]


def score(module: DistillModule, domain: Domain, cfg: DictConfig) -> float:
    """The domain's `score` of samples of the averaged student; the same samples at every call."""
    sampler = student_sampler(module.objective, **sampler_options(cfg, module.objective))
    model = module.networks["student_ema"]
    drawn = draw(domain, model, sampler, cfg.eval.num, seed=cfg.seed, precision=cfg.precision, device=module.device)
    return domain.metrics(drawn.samples, cfg.seed)["score"].value


def _finished(module: DistillModule, newest: checkpoint.Checkpoint) -> None:
    """A run that is complete is reported again, not trained: Lightning does not start on an empty stream."""
    for role in ("student", "student_ema"):
        checkpoint.load_strict(module.networks[role].load_state_dict, newest.role(role), newest.path, role)
    module.macro_step = newest.manifest["macro_step"]
    module.updates.update(newest.manifest["updates"])
    console.print(f"{newest.path} is complete: nothing left to train (raise train.steps to go on)")


def _check_same_run(newest: checkpoint.Checkpoint, cfg: Mapping[str, Any]) -> None:
    """A run may be continued for longer or logged otherwise; what defines it must not change."""
    for section in SAME:
        before, now = newest.config[section], cfg[section]
        if stated(before) != stated(now):
            raise UsageError(
                f"{newest.path} was made with {section}={before}, this run has {now}: "
                f"resume with the same settings, or start anew with another out="
            )


def _summary(
    cfg: DictConfig, domain: Domain, module: DistillModule, out: Path, newest: checkpoint.Checkpoint | None
) -> None:
    sizes = {r: sum(p.numel() for p in m.parameters()) for r, m in module.networks.items() if r != "student_ema"}
    roles = ", ".join(f"{r} {n / 1e6:.2f} M{'' if r in module.trainable else ' (frozen)'}" for r, n in sizes.items())
    updates = ", ".join(f"{p.owner} x{p.repeat}" for p in module.objective.phases(10**9))
    calls = getattr(module.objective, "steps", None) or getattr(module.objective, "sample_steps", "?")
    console.print(
        f"[bold]{cfg.domain.name} / {cfg.objective.name}[/]  seed {cfg.seed}  {cfg.precision}  {cfg.strategy.name}"
    )
    console.print(f"  roles: {roles}")
    if domain.licence:
        console.print(f"  licence: {domain.licence}")
    console.print(
        f"  {cfg.train.steps} macro-steps of {updates}, batch {cfg.data.batch}; student: {calls} network calls"
    )
    console.print(f"  out: {out}" + (f", continued from {newest.path.name}" if newest else ""))


def _quiet() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*configure_optimizers.*")
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
