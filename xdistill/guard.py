"""The collapse guard: samples of the averaged student against the teacher's own, while the run still goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from xdistill.domain import Domain
from xdistill.evaluation import Draw, draw
from xdistill.module import DistillModule

ACTIONS = ("off", "warn", "stop")
SAMPLES = 48


class Guard(L.Callback):
    """Every `every` macro-steps, warn or stop when a number that the domain watches is 5 % below the teacher's.

    Both are sampled alike: by the student's sampler at as many calls and the same settings, from the same seeds. A
    domain that watches nothing, or an objective without a teacher, has no guard. Every check is a row of `path`, whose
    `alarm` says what fell. reason: why the run was stopped, empty while it was not.
    """

    def __init__(
        self,
        domain: Domain,
        sampler: Draw,
        path: Path,
        console: Console,
        *,
        action: str = "warn",
        every: int = 100,
        seed: int = 0,
        precision: str = "fp32",
    ) -> None:
        self.domain, self.sampler, self.path, self.console = domain, sampler, path, console
        self.action, self.every, self.seed, self.precision = action, every, seed, precision
        self.teacher: Mapping[str, float] = {}
        self.reason = ""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DistillModule)
        if self.action != "off" and self.domain.watched and "teacher" in module.networks:
            self.teacher = self._watch(module, "teacher")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, DistillModule)
        if not self.teacher or module.macro_step % self.every:
            return
        student = self._watch(module, "student_ema")
        alarm = fallen(student, self.teacher, self.domain.watch_fall)
        row = {f"guard/{name}": value for name, value in student.items()}
        if trainer.is_global_zero:
            self._record(trainer, module, row, alarm)
        stop = bool(alarm) and self.action == "stop"
        if trainer.world_size > 1:  # one rank's decision is everybody's
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            self.reason, trainer.should_stop = alarm or "another rank saw a collapse", True

    def _watch(self, module: DistillModule, role: str) -> Mapping[str, float]:
        drawn = draw(
            self.domain,
            module.networks[role],
            self.sampler,
            SAMPLES,
            seed=self.seed,
            precision=self.precision,
            device=module.device,
        )
        return self.domain.watch(drawn.samples)

    def _record(self, trainer: L.Trainer, m: DistillModule, row: dict[str, float], alarm: str) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, step=m.macro_step)
        with open(self.path, "a") as log:
            skipped = dict(m.health.skipped)
            log.write(json.dumps({"macro_step": m.macro_step, "skipped": skipped, **row, "alarm": alarm}) + "\n")
        if alarm:
            what = "stopped" if self.action == "stop" else "warning"
            self.console.print(
                f"{what} at macro-step {m.macro_step}: the student collapses: {alarm}. Lower optim.student.lr, raise "
                f"objective.kl or critic_updates, or take an earlier checkpoint",
                soft_wrap=True,
            )


def fallen(student: Mapping[str, float], teacher: Mapping[str, float], fall: float) -> str:
    """What of the student is more than the share `fall` below the teacher, in words; empty when nothing is."""
    low = [name for name, value in teacher.items() if student[name] < (1 - fall) * value]
    return ", ".join(
        f"{n} {student[n]:.3g} is {100 * (1 - student[n] / teacher[n]):.0f} % below the teacher's {teacher[n]:.3g}"
        for n in low
    )
