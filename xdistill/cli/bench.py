"""`xdistill bench`: student against teacher, wall-clock and network calls a sample. It measures, it asserts nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from xdistill.cli.keys import domain_class, read, split
from xdistill.config import BenchConfig


def run(args: Sequence[str]) -> int:
    """Time both on the same requests and print the table."""
    pairs = split(args)
    cfg, request = read(BenchConfig, pairs, domain_class(pairs).request_keys)
    import torch

    from xdistill import rng
    from xdistill.cli.student import device, load, options
    from xdistill.evaluation import CallCounter, autocast, student_sampler, teacher_sampler
    from xdistill.machine import hardware

    loaded, where = load(cfg), device()
    domain, indices = loaded.domain, range(cfg.batch)
    batch = domain.plan(indices, cfg.seed, **request).to(where)
    samplers = {
        "teacher": (
            domain.teacher(),
            teacher_sampler(domain.teacher_samplers()["reference"], cfg.teacher_steps or None),
        ),
        "student": (loaded.model, student_sampler(loaded.objective, **options(loaded, cfg.steps, None))),
    }
    rows = {}
    with torch.no_grad(), autocast(loaded.config["precision"], where):
        for name, (network, sampler) in samplers.items():
            model = CallCounter(network.eval().to(where))
            draw = lambda m=model, s=sampler: s(m, batch, rng.per_sample(cfg.seed, indices))  # noqa: E731
            rows[name] = _time(draw, model, cfg, where)
    report = {
        "domain": domain.name,
        "hardware": hardware(),
        "batch": cfg.batch,
        "repeats": cfg.repeats,
        "precision": loaded.config["precision"],
        "rows": rows,
        "speed_up": rows["teacher"]["seconds"] / rows["student"]["seconds"],
    }
    Console().print(_table(report))
    if cfg.json:
        Path(cfg.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _time(draw: Callable[[], Any], model: Any, cfg: BenchConfig, where: Any) -> dict[str, Any]:
    """Seconds a sample (median and all repetitions) and network calls a sample, after one uncounted repetition."""
    import torch

    seconds = []
    for _ in range(cfg.repeats + 1):
        before, began = model.calls, time.perf_counter()
        draw()
        if where.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / cfg.batch)
    counted = seconds[1:]
    return {"calls": model.calls - before, "seconds": median(counted), "all_seconds": counted}


def _table(report: dict[str, Any]) -> Table:
    out = Table(title=f"batch {report['batch']}, median of {report['repeats']}, {report['precision']}")
    for column in ("", "network calls a sample", "seconds a sample", "fastest - slowest"):
        out.add_column(column, justify="right" if column else "left")
    for name, row in report["rows"].items():
        spread = f"{min(row['all_seconds']):.3g} - {max(row['all_seconds']):.3g}"
        out.add_row(name, str(row["calls"]), f"{row['seconds']:.4g}", spread)
    out.caption = f"speed-up {report['speed_up']:.3g} x on {report['hardware']}; not at matched quality: see evaluate"
    return out
