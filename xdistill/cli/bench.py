"""`xdistill bench`: student against teacher, cost and quality, and one forward in its fast and its plain form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xdistill.cli.keys import domain_class, read, split
from xdistill.config import BenchConfig
from xdistill.errors import UsageError


def run(args: Sequence[str]) -> int:
    """Measure all rows on the same requests, print the table, save it."""
    pairs = split(args)
    kind = domain_class(pairs)
    cfg, request = read(BenchConfig, pairs, kind.request_keys, kind.text_keys)
    import torch
    from torch import nn

    from xdistill import bench
    from xdistill.cli.student import device, load, options
    from xdistill.compiled import Compiled
    from xdistill.evaluation import PRECISIONS, student_sampler, teacher_sampler
    from xdistill.machine import hardware

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    loaded = load(cfg)
    domain, precision = loaded.domain, cfg.precision or loaded.config["precision"]
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision}: expected {' or '.join(PRECISIONS)}")

    def prepared(network: nn.Module) -> nn.Module:
        return Compiled(network.eval().to(device()), device()) if cfg.compile else network

    setting = bench.Setting(cfg.batch, cfg.repeats, cfg.num, cfg.seed, precision, device(), request)
    reference = teacher_sampler(domain.teacher_samplers()["reference"], cfg.teacher_steps or None)
    samplers = {"teacher": (prepared(domain.teacher()), reference)}
    student = prepared(loaded.model)
    for steps in bench.calls_of(cfg.steps, loaded.objective):
        name = f"student, {steps} calls" if steps else "student"
        given = options(loaded, steps, cfg.noise_scale, cfg.temperature, cfg.top_p, cfg.method, request)
        samplers[name] = (student, student_sampler(loaded.objective, **given))
    rows = bench.compare(domain, samplers, setting)
    report: dict[str, Any] = {
        "domain": domain.name,
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "batch": cfg.batch,
        "repeats": cfg.repeats,
        "num": cfg.num,
        "seed": cfg.seed,
        "precision": precision,
        "compiled": cfg.compile,
        "rows": rows,
    }
    for name, row in list(rows.items())[1:]:
        report[f"speedup_{row['calls']}_calls"] = rows["teacher"]["seconds"] / row["seconds"]
        row["speedup"] = report[f"speedup_{row['calls']}_calls"]
        report["speed_up"] = row["speedup"] if name == list(rows)[1] else report["speed_up"]
    report["forward"] = bench.forwards(domain, loaded.model, setting)
    Console().print(_table(report))
    for missing in dict.fromkeys(m for row in rows.values() for m in row["not_measured"]):
        print(f"not measured: {missing}")
    if cfg.json:
        Path(cfg.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _table(report: dict[str, Any]) -> Table:
    """A column a row of the report: cost, then every compared metric with its interval and verdict."""
    rows = report["rows"]
    out = Table(title=f"batch {report['batch']}, median of {report['repeats']}, {report['precision']}")
    out.add_column("")
    for name in rows:
        out.add_column(name, justify="right")
    out.add_row("network calls a sample", *[str(r["calls"]) for r in rows.values()])
    out.add_row("seconds a sample", *[f"{r['seconds']:.4g}" for r in rows.values()])
    out.add_row(
        "fastest - slowest", *[f"{min(r['all_seconds']):.3g} - {max(r['all_seconds']):.3g}" for r in rows.values()]
    )
    out.add_row("speed-up", *[f"{r['speedup']:.3g}x" if "speedup" in r else "" for r in rows.values()])
    out.add_section()
    for name in dict.fromkeys(k for r in rows.values() for k in r["quality"]):
        out.add_row(name, *[_cell(r, name, first=i == 0) for i, r in enumerate(rows.values())])
    forward = report["forward"]
    caption = [f"{report['num']} samples, 95 % bootstrap intervals; {report['threads']} threads, {report['hardware']}"]
    if forward:
        times = ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in forward["seconds"].items())
        caption.append(
            f"one float32 forward a sample: {times}: {forward['speedup']:.3g}x, "
            f"outputs differ by at most {forward['max_difference']:.1e}"
        )
    out.caption = "\n".join(caption)
    return out


def _cell(row: dict[str, Any], name: str, first: bool) -> str:
    m = row["quality"].get(name)
    if m is None:
        return "-"
    text = f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
    return text if first or name not in row["verdict"] else f"{text} {row['verdict'][name]}"
