"""What a run does between macro-steps: resume, log, checkpoint, evaluate, show progress, stop in time."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from xdistill import checkpoint
from xdistill.folder import RunFolder
from xdistill.module import DistillModule


class Resume(L.Callback):
    """Restore a checkpoint once the engines exist."""

    def __init__(self, source: checkpoint.Checkpoint | None) -> None:
        self.source = source

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.source:
            checkpoint.restore(_distill(module), self.source)


class Log(L.Callback):
    """Metrics of the last macro-step to every logger, and the health record, every `every` macro-steps."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if _distill(module).macro_step % self.every == 0:
            self._write(trainer, _distill(module))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if _distill(module).macro_step % self.every:
            self._write(trainer, _distill(module))

    def _write(self, trainer: L.Trainer, m: DistillModule) -> None:
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = dict(m.metrics)
        row |= {f"skipped/{role}": n for role, n in m.health.skipped.items()}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=m.macro_step)
        with open(self.path, "a") as log:
            log.write(json.dumps({"macro_step": m.macro_step, "skipped": dict(m.health.skipped), **m.metrics}) + "\n")


class Save(L.Callback):
    """A checkpoint every `every` macro-steps and at the end; the newest `keep` and the best stay.

    score: evaluates the module; called every `evaluate_every` macro-steps, on checkpoints only.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        every: int,
        keep: int,
        evaluate_every: int = 0,
        score: Callable[[DistillModule], float] | None = None,
    ) -> None:
        self.folder, self.config, self.extra = folder, config, extra
        self.every, self.keep, self.evaluate_every, self.score = every, keep, evaluate_every, score
        self._last = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        m = _distill(module)
        evaluate = bool(self.evaluate_every) and m.macro_step % self.evaluate_every == 0
        if m.macro_step % self.every == 0 or evaluate:
            self._save(trainer, m)
        if evaluate and self.score is not None:
            value = self.score(m)
            if trainer.is_global_zero:
                self.folder.record_score(f"step_{m.macro_step}", value)
                for logger in trainer.loggers:
                    logger.log_metrics({"eval/score": value}, step=m.macro_step)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer, _distill(module))

    def _save(self, trainer: L.Trainer, m: DistillModule) -> None:
        if m.macro_step == self._last:
            return
        checkpoint.save(m, self.folder.checkpoints / f"step_{m.macro_step}", self.config, self.extra)
        self._last = m.macro_step
        if trainer.is_global_zero:
            self.folder.prune(self.keep)


class StopInTime(L.Callback):
    """End after the current macro-step on Ctrl-C or when `minutes` are used up; a second Ctrl-C is immediate."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.reason = minutes, ""
        self._began, self._previous = 0.0, signal.getsignal(signal.SIGINT)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._began = time.monotonic()
        self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if self.minutes and time.monotonic() - self._began > 60 * self.minutes and not self.reason:
            self.reason = "time"
        late = bool(self.reason)
        if trainer.world_size > 1:  # one rank's decision is everybody's, or the others wait for it forever
            late = trainer.strategy.reduce_boolean_decision(late, all=False)
        if late:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, *_: Any) -> None:
        self.reason = "interrupt"
        signal.signal(signal.SIGINT, self._previous)


class ProgressBar(L.Callback):
    """Macro-steps with rate, remaining time and the numbers worth watching."""

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.2f}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        done = _distill(module).macro_step
        self.task = self.progress.add_task("distil", total=self.total, completed=done, rate=0.0, numbers="")
        self._start, self._began = done, time.monotonic()
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        m = _distill(module)
        shown = [f"{k} {v:.3g}" for k, v in m.metrics.items() if k.endswith(("/loss", "/gap"))]
        rate = (m.macro_step - self._start) / max(time.monotonic() - self._began, 1e-9)
        self.progress.update(self.task, completed=m.macro_step, rate=rate, numbers="  ".join(shown))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.progress.stop()


def _distill(module: L.LightningModule) -> DistillModule:
    assert isinstance(module, DistillModule)
    return module
