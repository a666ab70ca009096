"""What a run has achieved: teacher at full length, teacher at the student's calls, student; a table and a figure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from xdistill import curves
from xdistill.curves import Axes
from xdistill.domain import Domain, Metric, TeacherSampler
from xdistill.errors import XDistillError
from xdistill.evaluation import Draw, Row, as_json, best_by_score, student_sampler, teacher_sampler
from xdistill.machine import hardware
from xdistill.measured import Measuring, Source, targets
from xdistill.module import DistillModule
from xdistill.objectives import Objective
from xdistill.passages import side_by_side
from xdistill.student import sampler_options

ARROWS = {"high": " ↑", "low": " ↓", "none": ""}


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
    sources, rows = compare(cfg, domain, objective, module, console)
    more = at_other_calls(cfg, domain, objective, sources, rows, console)
    speed = _seconds(rows[0]) / _seconds(rows[-1])
    real = domain.reference_metrics()
    title = f"{domain.name}: {rows[0].n} samples each, 95 % bootstrap intervals"
    console.print(table(rows, real, domain.headline(), title=title, baseline=rows[0]))
    if more:
        console.print(by_calls([*more, *rows], domain.headline()))
    result = {
        **as_json([*rows, *more], real),
        "speed_up": speed,
        "train_seconds": train_seconds,
        "macro_steps": module.macro_step,
        "updates": module.updates,
        "seed": cfg.seed,
        "hardware": hardware(),
    }
    if domain.curve_axes is not None:
        result["curves"] = _curves(cfg, domain.curve_axes, sources, rows, real, out, console)
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(domain, rows, out)
    examples(domain, rows, out, console)
    if rows[0].samples and domain.sample_text(rows[0].samples[0]) is not None:
        console.print(side_by_side(rows, domain))
    if len(rows) > 1:
        console.print(
            f"student: {rows[-1].calls:g} network calls instead of {rows[0].calls:g}, "
            f"{_seconds(rows[-1]):.3g} s a sample instead of {_seconds(rows[0]):.3g}: [bold]{speed:.1f}x faster[/]"
        )
    console.print(f"table {out / 'results.json'}, figure {out / 'report.png'} and .svg; generate with ckpt={out}")
    return rows


def compare(
    cfg: DictConfig, domain: Domain, objective: Objective, module: DistillModule, console: Console
) -> tuple[list[Source], list[Row]]:
    """The rows of the table and what they were drawn from: the teacher's reference sampler, its best sampler at the
    student's calls, the student.
    """
    usual = sampler_options(cfg, objective)
    swept = domain.curve_axes.setting if domain.curve_axes else ""

    def own(**changed: Any) -> Draw:
        return student_sampler(objective, **{**usual, **changed})

    model, measuring = module.networks["student_ema"], _measuring(cfg)
    last = Source("student", domain, None, model, own, usual, cfg.precision)
    student = measuring.row(last)
    if "teacher" not in module.networks:
        return [last], [student]
    samplers = dict(domain.teacher_samplers())

    def source(name: str, sampler: TeacherSampler, steps: int | None = None) -> Source:
        bound = partial(teacher_sampler, sampler, steps)
        return Source(name, domain, None, module.networks["teacher"], bound, {swept: 1.0}, cfg.precision)

    first = source("teacher", samplers.pop("reference"))
    with console.status("sampling the teacher at its full number of calls"):
        full = measuring.row(first)
    calls = round(student.calls or 1)
    few = {name: source(f"teacher ({name})", sampler, calls) for name, sampler in samplers.items()}
    found: dict[str, Row] = {}
    for name in few:
        with console.status(f"sampling the teacher at {student.calls:g} calls: {name}"):
            found[name] = measuring.row(few[name])
    best = best_by_score({name: row.metrics for name, row in found.items()})
    rows = [_paired(row, full, domain, cfg.seed + 1) for row in (full, found[best], student)]
    return [first, few[best], last], rows


def at_other_calls(
    cfg: DictConfig,
    domain: Domain,
    objective: Objective,
    sources: Sequence[Source],
    rows: Sequence[Row],
    console: Console,
) -> list[Row]:
    """Teacher and student at the other numbers of calls that the objective's students serve as well."""
    others = [k for k in objective.shown_calls if k != round(rows[-1].calls or 1)]
    if len(sources) < 3:
        return []
    measuring, student, teacher, found = _measuring(cfg), sources[-1], sources[0], []
    name = sources[1].name.removeprefix("teacher (").removesuffix(")")
    for k in others:
        few = partial(teacher_sampler, domain.teacher_samplers()[name], k)
        own = partial(student_sampler, objective, **{**sampler_options(cfg, objective), "steps": k, "times": None})
        for source in (replace(teacher, name=sources[1].name, sampler=few), replace(student, sampler=own)):
            with console.status(f"sampling at {k} steps: {source.name}"):
                found.append(_paired(measuring.row(source), rows[0], domain, cfg.seed + 1))
    return found


def by_calls(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """A rich table with a line a row, by source and number of calls; values alone, so that it fits a terminal."""
    shown = Table(title="by number of network calls; intervals are in results.json", box=box.SIMPLE_HEAD)
    for column in ("", "calls", *names):
        shown.add_column(column, justify="right" if column else "left", overflow="fold")
    for row in sorted(rows, key=lambda r: (not r.name.startswith("teacher"), -(r.calls or 0))):
        values = (cell(row.metrics.get(name)).split(" ")[0] for name in names)
        shown.add_row(row.name, f"{row.calls or 0:g}", *values)
    return shown


def _paired(row: Row, full: Row, domain: Domain, seed: int) -> Row:
    """The row with its distance to the teacher's samples of the same noise."""
    return replace(row, metrics={**row.metrics, **domain.paired_metrics(row.samples, full.samples, seed)})


def _measuring(cfg: DictConfig) -> Measuring:
    return Measuring(cfg.eval.final_num, cfg.seed + 1, 32, (), {}, torch.device("cpu"))


def _curves(
    cfg: DictConfig,
    axes: Axes,
    sources: Sequence[Source],
    rows: Sequence[Row],
    real: Mapping[str, Metric],
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Sweep what has the student's calls, take the teacher at full length as it is; print, plot, return the JSON."""
    measuring, found = _measuring(cfg), []
    for i, (source, row) in enumerate(zip(sources, rows, strict=True)):
        usual = source.usual.get(axes.setting, 1.0)
        whole = i == 0 and len(sources) > 1
        with console.status(f"curve of {source.name}"):
            found.append(measuring.curve(source, axes, (usual,) if whole else axes.settings, row))
    at = targets(found, sources, axes, real)
    console.print(curves.table(found, axes, at, cfg.seed))
    curves.plot(found, axes, at, out / "curves.png", cfg.seed)
    return curves.as_json(found, axes, at, cfg.seed)


def table(
    rows: Sequence[Row],
    real: Mapping[str, Metric],
    names: Sequence[str] | None = None,
    *,
    title: str,
    baseline: Row | None = None,
) -> Table:
    """A rich table: a column a source, real data last; a line a metric with its interval, an arrow where it is better.

    Args:
        names: metrics to show; default: all of them.
        baseline: the row that speed-ups are against.
    """
    shown = Table(title=title)
    shown.add_column("", no_wrap=True)
    for row in rows:
        shown.add_column(row.name, justify="right", overflow="fold")
    if real:
        shown.add_column("real data, held out", justify="right", style="dim")
    columns = [*(r.metrics for r in rows), *([real] if real else [])]
    for name in names or dict.fromkeys(name for row in rows for name in row.metrics):
        better = next((m[name].better for m in columns if name in m), "none")
        shown.add_row(name + ARROWS[better], *[cell(m.get(name)) for m in columns])
    shown.add_section()
    shown.add_row("samples", *[str(r.n) for r in rows])
    if any(r.calls is not None for r in rows):
        shown.add_row("network calls", *["" if r.calls is None else f"{r.calls:g}" for r in rows])
        for kind in dict.fromkeys(kind for r in rows for kind in r.others):
            name = f"{kind.replace('_', ' ')} calls"
            shown.add_row(name, *[f"{r.others[kind]:g}" if kind in r.others else "" for r in rows])
        shown.add_row("seconds a sample", *["" if r.seconds is None else f"{r.seconds:.3g}" for r in rows])
    if baseline is not None and baseline.seconds is not None:
        shown.add_row("speed-up", *[f"{baseline.seconds / r.seconds:.1f}x" if r.seconds else "" for r in rows])
    return shown


def cell(m: Metric | None) -> str:
    """`value [low, high]` with digits enough for the interval; a dash where the samples do not define the metric."""
    if m is None or not isfinite(m.value):
        return "-"
    digits = 4 if 0 < max(abs(m.low), abs(m.high)) < 0.1 else 2
    return f"{m.value:.{digits}f} [{m.low:.{digits}f},{m.high:.{digits}f}]"


def figure(domain: Domain, rows: Sequence[Row], out: Path, each: int = 4) -> None:
    """Headline metrics with intervals, cost on a log axis, and a few samples of every row, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    fig = plt.figure(figsize=(13, 3.6 + 1.9 * len(rows)), layout="constrained")
    grid = fig.add_gridspec(1 + len(rows), 4, height_ratios=[2.0] + [1.0] * len(rows))
    _bars(fig.add_subplot(grid[0, :3]), domain, rows)
    cost = fig.add_subplot(grid[0, 3])
    cost.barh([r.name for r in rows][::-1], [_seconds(r) for r in rows][::-1], color=_colours(len(rows))[::-1])
    cost.set_xscale("log")
    cost.set_xlabel("seconds a sample")
    cost.xaxis.set_minor_formatter(NullFormatter())  # its labels run into each other over less than a decade
    cost.set_yticks([])
    for i, row in enumerate(rows):
        for j in range(min(each, len(row.samples))):
            ax = fig.add_subplot(grid[1 + i, j])
            domain.draw(ax, row.samples[j * max(len(row.samples) // each, 1)])
            if j == 0:
                ax.set_title(f"{row.name}: {row.calls:g} calls", loc="left", fontsize=10, color=_colours(len(rows))[i])
    for suffix in ("png", "svg"):
        fig.savefig(out / f"report.{suffix}", dpi=130)
    plt.close(fig)


def examples(domain: Domain, rows: Sequence[Row], out: Path, console: Console, each: int = 4) -> list[Path]:
    """The first samples of every row, and real ones, as files `<row>_<number>` in the domain's folder of examples."""
    if not domain.examples:
        return []
    sources = {"real": domain.reference_samples(each, 0), **{row.name: row.samples[:each] for row in rows}}
    (out / domain.examples).mkdir(parents=True, exist_ok=True)
    written = []
    for name, samples in sources.items():
        plain = re.sub(r"\W+", "_", name).strip("_")
        for i, sample in enumerate(samples):
            try:
                written.append(domain.write(sample, out / domain.examples / f"{plain}_{i}"))
            except XDistillError as error:  # a student that diverged is shown by the table, not by a crash
                console.print(f"no example {i} of {name}: {error}", style="yellow", soft_wrap=True)
    return written


def _seconds(row: Row) -> float:
    return row.seconds or 0.0


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
