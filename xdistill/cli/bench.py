"""`xdistill bench`: student against teacher, cost and quality, and one forward in its fast and its plain form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from xdistill.cli.keys import domain_class, method_keys, prefixed, read, split
from xdistill.config import BenchConfig
from xdistill.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from xdistill.bench import Contender, Setting
    from xdistill.domain import Domain
    from xdistill.student import Loaded

APPROXIMATED = 16  # samples that the gap of a cache is measured of, at most


def run(args: Sequence[str]) -> int:
    """Measure all rows on the same requests, print the table, save it."""
    given, pairs = prefixed(split(args), "domain")
    own, pairs = method_keys(pairs)
    kind = domain_class(pairs)
    cfg, request = read(BenchConfig, pairs, kind.request_keys, kind.text_keys)
    import torch

    from xdistill import bench
    from xdistill.cli.student import device, domain_changes, load
    from xdistill.evaluation import PRECISIONS

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    loaded = load(cfg, domain_changes(cfg.domain, given))
    domain, precision = loaded.domain, cfg.precision or loaded.config["precision"]
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision}: expected {' or '.join(PRECISIONS)}")
    batches = bench.batches_of(cfg.batch, domain)
    setting = bench.Setting(batches, cfg.repeats, cfg.num, cfg.seed, precision, device(), request)
    contenders = _contenders(cfg, loaded, request, own)
    rows, matched = bench.compare(domain, contenders, setting)
    report = _facts(cfg, domain, precision, batches) | {"rows": rows}
    students = [row for row in rows.values() if row["kind"] == "student"]
    report |= {f"speedup_{row['calls']}_calls": row["speedup"] for row in students}
    report["speed_up"] = students[0]["speedup"]
    report["matched"], lines = matched or ({}, [])
    report["forward"] = bench.forwards(domain, loaded.model, setting)
    report["approximations"] = _approximations(loaded, setting, students[0]["calls"])
    Console().print(_table(report))
    for line in [*_speed(report), *lines, *_gaps(report["approximations"], students[0]["calls"])]:
        print(line)
    for missing in dict.fromkeys(m for row in rows.values() for m in row["not_measured"]):
        print(f"not measured: {missing}")
    if cfg.json:
        Path(cfg.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _contenders(
    cfg: BenchConfig, loaded: Loaded, request: Mapping[str, Any], own: Mapping[str, Any]
) -> list[Contender]:
    """The teacher as the student's run guided it, and without where that differs, the student at each number of calls,
    then, where the domain has a curve, the teacher at as few, and
    the domain's other networks.
    """
    from functools import partial

    from xdistill.assemble import guided_teacher
    from xdistill.bench import Contender, calls_of
    from xdistill.cli.student import asked, device, options
    from xdistill.compiled import Compiled
    from xdistill.evaluation import Draw, student_sampler, teacher_sampler

    domain, objective = loaded.domain, loaded.objective
    swept = domain.curve_axes.setting if domain.curve_axes else ""

    def prepared(network: nn.Module) -> nn.Module:
        return Compiled(network.eval().to(device()), device()) if cfg.compile else network

    def student(given: Mapping[str, Any], **changed: Any) -> Draw:
        return student_sampler(objective, **{**given, **changed})

    reference = domain.teacher_samplers()["reference"]
    bare = domain.teacher()
    guided = guided_teacher(loaded.config, domain, bare)
    teacher, model = prepared(guided), prepared(loaded.model)
    whole = partial(teacher_sampler, reference, cfg.teacher_steps or None)
    found = [Contender("teacher", "teacher", teacher, whole)]
    found += [Contender("teacher without guidance", "unguided", prepared(bare), whole)] if guided is not bare else []
    few = {}
    for steps in calls_of(cfg.steps, objective):
        given = options(loaded, steps, asked(cfg), request, own)
        calls = steps or getattr(objective, "steps", 0) or getattr(objective, "sample_steps", 0)
        name, less = f"student, {steps} calls" if steps else "student", f"teacher, {calls} calls"
        found.append(Contender(name, "student", model, partial(student, given), less, given.get(swept, 1.0)))
        few[less] = Contender(less, "few", teacher, partial(teacher_sampler, reference, calls))
    if domain.curve_axes is None:
        return found
    rivals = [Contender(name, "rival", net, partial(teacher_sampler, s)) for name, (net, s) in domain.rivals().items()]
    return [*found, *few.values(), *rivals]


def _facts(cfg: BenchConfig, domain: Domain, precision: str, batches: Sequence[int]) -> dict[str, Any]:
    import torch

    from xdistill.machine import hardware

    return {
        "domain": domain.name,
        "unit": domain.unit,
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "batch": batches[0],
        "repeats": cfg.repeats,
        "num": cfg.num,
        "seed": cfg.seed,
        "precision": precision,
        "compiled": cfg.compile,
    }


def _approximations(loaded: Loaded, s: Setting, steps: int) -> dict[str, Any]:
    """What caches change of a student that they are not exact for."""
    if loaded.objective.needs.blocks or not s.num:
        return {}
    indices = range(min(s.num, APPROXIMATED))
    batch = loaded.domain.plan(indices, s.seed, **s.request).to(s.device)
    return loaded.domain.approximations(loaded.model.to(s.device), steps, batch, s.seed)


def _speed(report: Mapping[str, Any]) -> list[str]:
    """How fast each student is beside every other row."""
    rows, found = report["rows"], []
    for name, row in rows.items():
        for size, own in row["batches"].items() if row["kind"] == "student" else ():
            others = [
                f"{o['batches'][size]['seconds'] / own['seconds']:.3g}x {n}" for n, o in rows.items() if n != name
            ]
            rate = f"{own['elements_per_second']:.4g} {report['unit']} a second"
            found.append(f"{name}, batch {size}: {rate}; {', '.join(others)}")
    return found


def _gaps(found: Mapping[str, Mapping[str, float]], steps: int) -> list[str]:
    return [
        f"method={name} against no cache at {steps} calls: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        for name, numbers in found.items()
    ]


def _table(report: dict[str, Any]) -> Table:
    """A column a row of the report: cost, then every compared metric with its interval and verdict."""
    rows, unit = report["rows"], report["unit"]
    out = Table(title=f"batch {report['batch']}, median of {report['repeats']}, {report['precision']}")
    out.add_column("")
    for name in rows:
        out.add_column(name, justify="right")
    out.add_row("network calls a sample", *[str(r["calls"]) for r in rows.values()])
    for key in dict.fromkeys(k for r in rows.values() for k in r if k.endswith("_calls")):
        out.add_row(f"{key.replace('_', ' ')} a sample", *[str(r.get(key, "")) for r in rows.values()])
    out.add_row("seconds a sample", *[f"{r['seconds']:.4g}" for r in rows.values()])
    out.add_row(
        "fastest - slowest", *[f"{min(r['all_seconds']):.3g} - {max(r['all_seconds']):.3g}" for r in rows.values()]
    )
    for i, size in enumerate(next(iter(rows.values()))["batches"]):
        costs, at = [r["batches"][size] for r in rows.values()], f", batch {size}" if i else ""
        out.add_row(f"{unit} a second{at}", *[f"{c['elements_per_second']:.4g}" for c in costs])
        if any("render_seconds" in c for c in costs):
            out.add_row(f"rendered too{at}", *[f"{c['rendered_per_second']:.4g}" for c in costs])
        out.add_row(f"speed-up{at}", "", *[f"{c['speedup']:.3g}x" for c in costs[1:]])
        out.add_row(
            f"sampler beside the network{at}", *[f"{c['overhead']:.1%}" if "overhead" in c else "" for c in costs]
        )
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
