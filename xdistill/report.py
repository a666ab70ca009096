"""What a run has achieved: teacher at full length, teacher at the student's calls, student; a table and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from xdistill.domain import Domain, Metric
from xdistill.evaluation import Draw, Drawn, best_by_score, draw, student_sampler, teacher_sampler
from xdistill.machine import hardware
from xdistill.module import DistillModule
from xdistill.objectives import Objective
from xdistill.student import sampler_options


@dataclass(frozen=True)
class Row:
    """One sampler's samples, their metrics and what they cost."""

    name: str
    metrics: dict[str, Metric]
    calls: float
    seconds: float
    samples: list[Any]


def report(
    cfg: DictConfig,
    domain: Domain,
    objective: Objective,
    module: DistillModule,
    out: Path,
    train_seconds: float,
    console: Console,
) -> list[Row]:
    """Sample, measure, print the table, and write `results.json`, `report.png` and `report.svg` to `out`."""
    rows = compare(cfg, domain, objective, module, console)
    speed = rows[0].seconds / rows[-1].seconds
    console.print(table(domain, rows))
    result = {
        "rows": [{**asdict(r), "samples": len(r.samples)} for r in rows],
        "real": {k: asdict(m) for k, m in domain.reference_metrics().items()},
        "speed_up": speed,
        "train_seconds": train_seconds,
        "macro_steps": module.macro_step,
        "updates": module.updates,
        "seed": cfg.seed,
        "hardware": hardware(),
    }
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(domain, rows, out)
    if len(rows) > 1:
        console.print(
            f"student: {rows[-1].calls:g} network calls instead of {rows[0].calls:g}, "
            f"{rows[-1].seconds:.3g} s a sample instead of {rows[0].seconds:.3g}: [bold]{speed:.1f}x faster[/]"
        )
    console.print(f"table {out / 'results.json'}, figure {out / 'report.png'} and .svg; generate with ckpt={out}")
    return rows


def compare(
    cfg: DictConfig, domain: Domain, objective: Objective, module: DistillModule, console: Console
) -> list[Row]:
    """The rows of the table: the teacher's reference sampler, its best sampler at the student's calls, the student."""
    student = _row(
        "student", domain, module.networks["student_ema"], student_sampler(objective, **sampler_options(cfg)), cfg
    )
    if "teacher" not in module.networks:
        return [student]
    teacher, samplers = module.networks["teacher"], dict(domain.teacher_samplers())
    with console.status("sampling the teacher at its full number of calls"):
        full = _row("teacher", domain, teacher, teacher_sampler(samplers.pop("reference")), cfg)
    few: dict[str, Row] = {}
    for name, sampler in samplers.items():
        with console.status(f"sampling the teacher at {student.calls:g} calls: {name}"):
            bound = teacher_sampler(sampler, round(student.calls))
            few[name] = _row(f"teacher ({name})", domain, teacher, bound, cfg)
    best = best_by_score({name: row.metrics for name, row in few.items()})
    return [full, few[best], student]


def _row(name: str, domain: Domain, model: torch.nn.Module, sampler: Draw, cfg: DictConfig) -> Row:
    num = cfg.eval.final_num
    drawn: Drawn = draw(domain, model, sampler, num, seed=cfg.seed + 1, precision=cfg.precision)
    return Row(name, domain.metrics(drawn.samples, cfg.seed), drawn.calls, drawn.seconds, drawn.samples)


def table(domain: Domain, rows: Sequence[Row]) -> Table:
    """A rich table: a column a sampler, a line a headline metric with its interval; real data last."""
    shown = Table(title=f"{domain.name}: {len(rows[0].samples)} samples each, 95 % bootstrap intervals")
    shown.add_column("")
    real = domain.reference_metrics()
    for row in rows:
        shown.add_column(row.name, justify="right")
    if real:
        shown.add_column("real data, held out", justify="right", style="dim")
    for name in domain.headline():
        shown.add_row(name, *[cell(m.get(name)) for m in [*(r.metrics for r in rows), *([real] if real else [])]])
    shown.add_section()
    shown.add_row("network calls", *[f"{r.calls:g}" for r in rows])
    shown.add_row("seconds a sample", *[f"{r.seconds:.3g}" for r in rows])
    shown.add_row("speed-up", *[f"{rows[0].seconds / r.seconds:.1f}x" for r in rows])
    return shown


def cell(m: Metric | None) -> str:
    """`value [low, high]`; a dash where the samples do not define the metric."""
    return "-" if m is None else f"{m.value:.2f} [{m.low:.2f},{m.high:.2f}]"


def figure(domain: Domain, rows: Sequence[Row], out: Path, each: int = 4) -> None:
    """Headline metrics with intervals, cost on a log axis, and a few samples of every row, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(13, 3.6 + 1.9 * len(rows)), layout="constrained")
    grid = fig.add_gridspec(1 + len(rows), 4, height_ratios=[2.0] + [1.0] * len(rows))
    _bars(fig.add_subplot(grid[0, :3]), domain, rows)
    cost = fig.add_subplot(grid[0, 3])
    cost.barh([r.name for r in rows][::-1], [r.seconds for r in rows][::-1], color=_colours(len(rows))[::-1])
    cost.set_xscale("log")
    cost.set_xlabel("seconds a sample")
    cost.set_yticks([])
    for i, row in enumerate(rows):
        for j in range(each):
            ax = fig.add_subplot(grid[1 + i, j])
            domain.draw(ax, row.samples[j * max(len(row.samples) // each, 1)])
            if j == 0:
                ax.set_title(f"{row.name}: {row.calls:g} calls", loc="left", fontsize=10, color=_colours(len(rows))[i])
    for suffix in ("png", "svg"):
        fig.savefig(out / f"report.{suffix}", dpi=130)
    plt.close(fig)


def _bars(ax: Any, domain: Domain, rows: Sequence[Row]) -> None:
    names, width = list(domain.headline()), 0.8 / len(rows)
    real: Mapping[str, Metric] = domain.reference_metrics()
    for i, row in enumerate(rows):
        defined = [(x, row.metrics[n]) for x, n in enumerate(names) if n in row.metrics]
        ms = [m for _, m in defined]
        at = [x + (i - (len(rows) - 1) / 2) * width for x, _ in defined]
        error = [[max(m.value - m.low, 0) for m in ms], [max(m.high - m.value, 0) for m in ms]]
        ax.bar(at, [m.value for m in ms], width, yerr=error, capsize=2, label=row.name, color=_colours(len(rows))[i])
    for x, name in enumerate(names):
        if name in real:
            ax.plot([x - 0.45, x + 0.45], [real[name].value] * 2, "k--", lw=1, label="real data" if x == 0 else None)
    ax.set_xticks(range(len(names)), names)
    ax.legend(fontsize=8, frameon=False, ncols=len(rows) + 1, loc="lower left", bbox_to_anchor=(0, 1))
    ax.spines[["top", "right"]].set_visible(False)


def _colours(n: int) -> list[str]:
    return ["#4c566a", "#bf616a", "#2e8b57", "#5e81ac", "#d08770", "#b48ead"][:n]
