"""`xdistill evaluate`: checkpoints, folders and teacher samplers in one table of metrics with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from xdistill.cli.keys import domain_class, read, split
from xdistill.config import EvaluateConfig, compose
from xdistill.errors import UsageError

if TYPE_CHECKING:
    from xdistill.domain import Domain, Metric, TeacherSampler
    from xdistill.evaluation import Row


def run(args: Sequence[str]) -> int:
    """Measure every source, print the table, save it."""
    given, pairs = domain_options(split(args))
    cfg, request = read(EvaluateConfig, pairs, domain_class(pairs).request_keys)
    runs, folders = _paths(cfg.ckpt), _paths(cfg.dir)
    if not runs and not folders and not cfg.teacher:
        raise UsageError("evaluate what? Give ckpt=RUN[,RUN], dir=DIR[,DIR], teacher=SAMPLER[,SAMPLER], or several")
    from xdistill.evaluation import as_json, measure_reference
    from xdistill.machine import hardware
    from xdistill.report import table
    from xdistill.sections import build_domain, plain

    console = Console()
    config = compose([f"domain={cfg.domain}", *(f"domain.{key}={value}" for key, value in given.items())])
    changes = {key: plain(config.domain)[key] for key in (path.partition(".")[0] for path in given)}
    domain = build_domain(config)
    extras = choose_metrics(domain, cfg.metrics, console)
    samplers = choose_samplers(domain, cfg.teacher)
    for path in folders:
        if not path.is_dir():
            raise UsageError(f"no folder {path}: dir= takes folders of samples")
    rows = [_teacher(cfg, domain, name, sampler, request, extras, console) for name, sampler in samplers.items()]
    rows += [_checkpoint(cfg, path, changes, request, extras, console) for path in runs]
    rows += [_folder(cfg, domain, path, request, extras, console) for path in folders]
    with console.status("measuring real data"):
        real = measure_reference(domain, cfg.num, cfg.seed, extras)
    console.print(table(rows, real, title=f"{domain.name}: 95 % bootstrap intervals, seed {cfg.seed}"))
    report = {**as_json(rows, real), "seed": cfg.seed, "metrics": cfg.metrics, "hardware": hardware()}
    target = Path(cfg.json) if cfg.json else (runs + folders + [Path()])[0] / "evaluation.json"
    print(f"saved to {save(report, target)}")
    if cfg.html:
        from xdistill.html_report import write_html

        print(f"report {write_html(Path(cfg.html), f'{domain.name}: evaluation', rows, domain, real)}")
    return 0


def domain_options(pairs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Keys `domain.KEY` without their prefix, and the other pairs."""
    own = {key: value for key, value in pairs.items() if key.startswith("domain.")}
    others = {key: value for key, value in pairs.items() if key not in own}
    return {key.removeprefix("domain."): value for key, value in own.items()}, others


def choose_metrics(domain: Domain, text: str, console: Console) -> list[str]:
    """Names of the domain's costly metrics that `metrics=text` asks for, checked for what they need.

    `full` leaves out, and says so, what this machine lacks something for. Raises UsageError for an unknown name, and
    for a named metric that lacks something.
    """
    from xdistill.registry import nearest

    known = domain.extra_metrics()
    names = [n for n in dict.fromkeys(_names(text)) if n != "fast"]
    chosen = []
    for name in known if "full" in names else names:
        if name not in known:
            choices = ", ".join(["fast", "full", *known])
            raise UsageError(f"metrics={text}: no '{name}'{nearest(name, known)}; expected of {choices}")
        try:
            known[name]([], 0)
        except UsageError as error:
            if name in names:
                raise
            console.print(f"metrics=full leaves out {name}: {error}", style="yellow", soft_wrap=True)
        else:
            chosen.append(name)
    return chosen


def choose_samplers(domain: Domain, text: str | None) -> dict[str, TeacherSampler]:
    """The teacher's samplers of `teacher=text`, or `all`; commas inside a name may be left out."""
    known = {name.replace(",", ""): (name, sampler) for name, sampler in domain.teacher_samplers().items()}
    names = list(known) if text == "all" else _names(text)
    for name in names:
        if name not in known:
            raise UsageError(f"teacher={text}: no sampler '{name}'; expected all or of {', '.join(known)}")
    return dict(known[name] for name in names)


def save(report: Mapping[str, Any], path: Path) -> Path:
    """Write the table as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    return part.rename(path)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _paths(text: str | None) -> list[Path]:
    return [Path(name) for name in _names(text)]


def _measured(
    cfg: EvaluateConfig,
    domain: Domain,
    name: str,
    samples: Sequence[Any],
    request: Mapping[str, Any],
    extras: Sequence[str],
    console: Console,
) -> dict[str, Metric]:
    from xdistill.evaluation import measure

    with console.status(f"measuring {name}"):
        return measure(domain, samples, cfg.seed, extras, request)


def _checkpoint(
    cfg: EvaluateConfig,
    path: Path,
    changes: Mapping[str, Any],
    request: Mapping[str, Any],
    extras: Sequence[str],
    console: Console,
) -> Row:
    from xdistill.cli.student import device, options
    from xdistill.evaluation import Row, draw, student_sampler
    from xdistill.student import load_student

    loaded = load_student(path, cfg.domain, options=changes)
    sampler = student_sampler(loaded.objective, **options(loaded, cfg.steps, cfg.noise_scale))
    with console.status(f"sampling {path}"):
        drawn = draw(
            loaded.domain, loaded.model.to(device()), sampler, cfg.num, seed=cfg.seed, batch_size=cfg.batch,
            precision=loaded.config["precision"], device=device(), request=request,
        )  # fmt: skip
    found = _measured(cfg, loaded.domain, str(path), drawn.samples, request, extras, console)
    return Row(str(path), found, drawn.samples, drawn.calls, drawn.seconds)


def _teacher(
    cfg: EvaluateConfig,
    domain: Domain,
    name: str,
    sampler: TeacherSampler,
    request: Mapping[str, Any],
    extras: Sequence[str],
    console: Console,
) -> Row:
    from xdistill.cli.student import device
    from xdistill.evaluation import Row, draw, teacher_sampler

    with console.status(f"sampling the teacher: {name}"):
        drawn = draw(
            domain, domain.teacher().to(device()), teacher_sampler(sampler, cfg.teacher_steps or None), cfg.num,
            seed=cfg.seed, batch_size=cfg.batch, device=device(), request=request,
        )  # fmt: skip
    found = _measured(cfg, domain, name, drawn.samples, request, extras, console)
    return Row(f"teacher ({name})", found, drawn.samples, drawn.calls, drawn.seconds)


def _folder(
    cfg: EvaluateConfig,
    domain: Domain,
    path: Path,
    request: Mapping[str, Any],
    extras: Sequence[str],
    console: Console,
) -> Row:
    from xdistill.evaluation import Row, read_samples

    samples = read_samples(domain, path)
    return Row(str(path), _measured(cfg, domain, str(path), samples, request, extras, console), samples)
