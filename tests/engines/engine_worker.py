"""Runs named cases on `ENGINE_DEVICES` processes, of which this is one, and writes what rank 0 found."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engine_cases import CLIFF, STEPS, Resume, Save, Source, fit, module, weights

from xdistill.engine import Engine
from xdistill.errors import XDistillError
from xdistill.health import Diverged

NAN = float("nan")
LAST_RANK = int(os.environ["ENGINE_DEVICES"]) - 1


def train(objective: str, engine: str, out: Path) -> Any:
    """An undisturbed run."""
    return weights(fit(module(objective), engine))


def resume(objective: str, engine: str, out: Path) -> Any:
    """k steps, a checkpoint, and the other steps in a new trainer."""
    path = out / "checkpoints" / f"{objective}-{engine}"
    fit(module(objective), engine, steps=2, callbacks=(Save(path, 2),))
    return weights(fit(module(objective), engine, start=2, callbacks=(Resume(path),)))


def bf16(objective: str, engine: str, out: Path) -> Any:
    """Autocast around networks, parameters in fp32."""
    return weights(fit(module(objective, precision="bf16"), engine))


def recompute(objective: str, engine: str, out: Path) -> Any:
    """Activation checkpointing in every network."""
    return weights(fit(module(objective, activation_checkpointing=True), engine))


def bad_loss(objective: str, engine: str, out: Path) -> Any:
    """NaN data on the last rank, in the second micro-batch of macro-step 1: the first one must leave no residue."""
    return _skipping(engine, {(3, LAST_RANK): NAN})


def bad_gradient(objective: str, engine: str, out: Path) -> Any:
    """A finite loss with a NaN gradient on the last rank, in the first micro-batch of macro-step 2."""
    return _skipping(engine, {(4, LAST_RANK): CLIFF})


def _skipping(engine: str, bad: dict[tuple[int, int], float]) -> Any:
    run = fit(module("flow"), engine, source=Source(bad))
    return weights(run) | {"updates": run.updates, "skipped": dict(run.health.skipped), "macro_step": run.macro_step}


def diverge(objective: str, engine: str, out: Path) -> Any:
    """Nothing but NaN on the last rank after macro-step 2, where a checkpoint was written."""
    path = out / "checkpoints" / f"diverge-{engine}"
    source = Source({(i, LAST_RANK): NAN for i in range(4, 2 * STEPS)})
    run = module("flow", skip_limit=2)
    try:
        fit(run, engine, source=source, callbacks=(Save(path, 2),))
    except Diverged as error:
        return {"error": str(error), "macro_step": run.macro_step}
    return None


def discard(objective: str, engine: str, out: Path) -> Any:
    """Discards at every point of an accumulation, between ordinary updates."""
    run = module("flow", accumulate=3)
    fit(run, engine, steps=1)
    student = run.engines["student"]
    for done in (3, 0, 2, 1):  # an unfinished one last: a finished one would sweep its residue away
        for micro in range(done):
            _backward(run, student, micro, last=micro == 2)
        if done < 3:
            _forward(run, student, 7)  # a non-finite loss stops between forward and backward
        student.discard()
    for micro in range(3):
        _backward(run, student, micro, last=micro == 2)
    student.step(1e-2)
    return weights(run)


def _forward(run: Any, student: Engine, seed: int) -> torch.Tensor:
    rank = dist.get_rank() if dist.is_initialized() else 0
    x = Source().batch(100 + seed, rank, 1).like
    return student(x, torch.full((x.batch,), 0.5), None).mean_square().mean()


def _backward(run: Any, student: Engine, micro: int, *, last: bool) -> None:
    student.backward(_forward(run, student, micro) / 3, last=last)


def depth(objective: str, engine: str, out: Path) -> Any:
    """How often each rank called the student, macro-step by macro-step."""
    run, calls = module(objective), []
    run.networks["student"].register_forward_pre_hook(lambda *_: calls.append(run.macro_step))
    fit(run, engine)
    counts = [calls.count(step) for step in range(STEPS)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, counts)
    return everyone


def violation(objective: str, engine: str, out: Path) -> Any:
    """An objective that breaks a role rule."""
    try:
        fit(module(objective), engine)
    except XDistillError as error:
        return type(error).__name__
    return None


CASES = {
    case.__name__: case
    for case in (train, resume, bf16, recompute, bad_loss, bad_gradient, diverge, discard, depth, violation)
}


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name in sys.argv[2:]:
        case, objective, engine = name.split(":")
        try:
            result = CASES[case](objective, engine, out)
        except Exception:
            (out / f"{name}.rank{os.environ.get('LOCAL_RANK', '0')}.txt").write_text(traceback.format_exc())
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            torch.save(result, out / f"{name}.pt")


if __name__ == "__main__":
    main()
