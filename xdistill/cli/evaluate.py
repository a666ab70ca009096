"""`xdistill evaluate`: checkpoints, folders and teacher samplers in one table of metrics with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from xdistill.cli.keys import domain_class, method_keys, prefixed, read, split
from xdistill.config import SHIPPED, EvaluateConfig, compose
from xdistill.errors import UsageError

if TYPE_CHECKING:
    from xdistill.domain import Domain, Metric, TeacherSampler
    from xdistill.evaluation import Row
    from xdistill.measured import Measuring, Source
    from xdistill.student import Loaded


def run(args: Sequence[str]) -> int:
    """Measure every source, print the table, save it."""
    given, pairs = domain_options(split(args))
    own, pairs = method_keys(pairs)
    kind = domain_class(pairs)
    cfg, request = read(EvaluateConfig, pairs, kind.request_keys, kind.text_keys)
    runs, folders = _names(cfg.ckpt), [Path(name) for name in _names(cfg.dir)]
    if not runs and not folders and not cfg.teacher:
        raise UsageError(
            "evaluate what? Give ckpt=RUN[,RUN] or ckpt=shipped, dir=DIR[,DIR], teacher=SAMPLER[,SAMPLER], or several"
        )
    from xdistill.cli.student import device
    from xdistill.evaluation import as_json, measure_reference
    from xdistill.machine import hardware
    from xdistill.measured import Measuring
    from xdistill.report import table
    from xdistill.sections import build_domain, plain

    console = Console()
    config: Any = compose([f"domain={cfg.domain}", *(f"domain.{key}={value}" for key, value in given.items())])
    changes = {key: plain(config.domain)[key] for key in (path.partition(".")[0] for path in given)}
    trained = [_load(cfg, name, changes) for name in runs]
    # Whoever asks for a run asks about its data and its teacher.
    config, domain = (trained[0].config, trained[0].domain) if trained else (config, build_domain(config))
    request, _ = domain.open_request(request)
    extras, settings = choose_metrics(domain, cfg.metrics, console), curve_settings(domain, cfg.curve)
    measuring = Measuring(cfg.num, cfg.seed, cfg.batch, extras, request, device())
    sources = [
        *_teachers(cfg, domain, config),
        *(_checkpoint(cfg, name, loaded, own) for name, loaded in zip(runs, trained, strict=True)),
        *(_folder(domain, path) for path in folders),
    ]
    rows = []
    for source in sources:
        with console.status(f"measuring {source.name}"):
            rows.append(measuring.row(source))
    with console.status("measuring real data"):
        real = measure_reference(domain, cfg.num, cfg.seed, extras)
    console.print(table(rows, real, title=f"{domain.name}: 95 % bootstrap intervals, seed {cfg.seed}"))
    report = {**as_json(rows, real), "seed": cfg.seed, "metrics": cfg.metrics, "hardware": hardware()}
    target = Path(cfg.json) if cfg.json else _first_folder(runs, folders) / "evaluation.json"
    if settings:
        report["curves"] = _curves(measuring, sources, rows, settings, real, target, console)
    print(f"saved to {save(report, target)}")
    if cfg.html:
        from xdistill.html_report import write_html

        print(f"report {write_html(Path(cfg.html), f'{domain.name}: evaluation', rows, domain, real)}")
    return 0


def domain_options(pairs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Keys `domain.KEY` without their prefix, and the other pairs."""
    return prefixed(pairs, "domain")


def choose_metrics(domain: Domain, text: str, console: Console) -> list[str]:
    """Names of the domain's costly metrics that `metrics=text` asks for, checked for what they need.

    `full` leaves out, and says so, what this machine lacks something for. Raises UsageError for an unknown name, and
    for a named metric that lacks something.
    """
    from xdistill.domain import Domain
    from xdistill.measured import PAIRED
    from xdistill.registry import nearest

    extra = domain.extra_metrics()
    pairs = type(domain).paired_metrics is not Domain.paired_metrics
    known = [*extra, *domain.model_metrics(), *([PAIRED] if pairs else [])]
    names = [n for n in dict.fromkeys(_names(text)) if n != "fast"]
    chosen = []
    for name in known if "full" in names else names:
        if name not in known:
            choices = ", ".join(["fast", "full", *known])
            raise UsageError(f"metrics={text}: no '{name}'{nearest(name, known)}; expected of {choices}")
        try:
            if name in extra:
                extra[name]([], 0)
        except UsageError as error:
            if name in names:
                raise
            console.print(f"metrics=full leaves out {name}: {error}", style="yellow", soft_wrap=True)
        else:
            chosen.append(name)
    return chosen


def choose_samplers(domain: Domain, text: str | None) -> dict[str, tuple[TeacherSampler, int]]:
    """The teacher's samplers of `teacher=text`, or `all`, and the calls that NAME@CALLS asks for (0: none).

    Commas inside a name may be left out.
    """
    known = {name.replace(",", ""): (name, sampler) for name, sampler in domain.teacher_samplers().items()}
    found = {}
    for asked in list(known) if text == "all" else _names(text):
        short, at, calls = asked.partition("@")
        if short not in known:
            raise UsageError(f"teacher={text}: no sampler '{short}'; expected all or of {', '.join(known)}")
        if at and (not calls.isdecimal() or int(calls) < 1):
            raise UsageError(f"teacher={text}: '{asked}' has no number of calls, expected as in {short}@8")
        name, sampler = known[short]
        found[name + at + calls] = (sampler, int(calls or 0))
    return found


def curve_settings(domain: Domain, text: str) -> list[float]:
    """The numbers of `curve=text` in order; raises UsageError when they are none, or the domain has no curve."""
    if not text:
        return []
    if domain.curve_axes is None:
        raise UsageError(f"curve={text}: domain '{domain.name}' has no curve of quality against diversity")
    try:
        found = sorted({float(part) for part in _names(text)})
    except ValueError:
        found = []
    if not found or not all(0 < value < float("inf") for value in found):
        name = domain.curve_axes.setting
        raise UsageError(f"curve={text}: expected values of {name} above 0, separated by commas, as in 0.7,0.8,0.9,1")
    return found


def save(report: Mapping[str, Any], path: Path) -> Path:
    """Write the table as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    return part.rename(path)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _first_folder(runs: Sequence[str], folders: Sequence[Path]) -> Path:
    """Of the sources, the first that is the user's; else where we are."""
    return next((path for path in [*map(Path, runs), *folders] if str(path) != SHIPPED), Path())


def _load(cfg: EvaluateConfig, name: str, changes: Mapping[str, Any]) -> Loaded:
    from xdistill.cli.student import beside, checkpoint_path
    from xdistill.student import load_student

    return beside(load_student(checkpoint_path(cfg.domain, name), cfg.domain, options=changes), cfg.method)


def _checkpoint(cfg: EvaluateConfig, name: str, loaded: Loaded, own: Mapping[str, Any]) -> Source:
    from xdistill.cli.student import asked, options
    from xdistill.evaluation import Draw, student_sampler
    from xdistill.measured import Source

    usual = options(loaded, cfg.steps, asked(cfg), own=own)

    def sampler(**changed: Any) -> Draw:
        return student_sampler(loaded.objective, **{**usual, **changed})

    said = "shipped student" if name == SHIPPED else name
    found = Source(said, loaded.domain, model=loaded.model, sampler=sampler, usual=usual)
    return replace(found, precision=loaded.config["precision"], **_taught(cfg, loaded.config, loaded.domain))


def _taught(cfg: EvaluateConfig, config: Any, domain: Domain) -> dict[str, Any]:
    """The teacher that samples of a configuration are paired with, and what tells it from others."""
    from xdistill.assemble import guided_teacher
    from xdistill.sections import plain

    config = {**config, "guidance": plain(config["guidance"])}
    if cfg.guidance is not None:
        if config["guidance"]["name"] == "none":
            raise UsageError(f"guidance={cfg.guidance:g}: this teacher is not guided: leave it out")
        config["guidance"]["scale"] = cfg.guidance
    taught = repr((domain.teacher_weights, plain(config["domain"]), plain(config["guidance"])))
    return {"teacher": partial(guided_teacher, config, domain), "taught": taught}


def _teachers(cfg: EvaluateConfig, domain: Domain, config: Any) -> list[Source]:
    """The teacher's samplers; its guidance is that of the first checkpoint, the domain's usual one, or as asked."""
    from xdistill.evaluation import teacher_sampler
    from xdistill.measured import Source

    chosen = choose_samplers(domain, cfg.teacher)
    taught = _taught(cfg, config, domain)
    model = taught["teacher"]() if chosen else None
    usual = {domain.curve_axes.setting: 1.0} if domain.curve_axes else {}
    return [
        Source(
            f"teacher ({name})",
            domain,
            model=model,
            sampler=partial(teacher_sampler, sampler, steps),
            usual=usual,
            **taught,
        )
        for name, (sampler, calls) in chosen.items()
        for steps in [calls or cfg.teacher_steps or None]
    ]


def _folder(domain: Domain, path: Path) -> Source:
    from xdistill.evaluation import read_samples
    from xdistill.measured import Source

    if not path.is_dir():
        raise UsageError(f"no folder {path}: dir= takes folders of samples")
    return Source(str(path), domain, samples=read_samples(domain, path))


def _curves(
    measuring: Measuring,
    sources: Sequence[Source],
    rows: Sequence[Row],
    settings: Sequence[float],
    real: Mapping[str, Metric],
    target: Path,
    console: Console,
) -> dict[str, Any]:
    """Print the curves' table, save their plot beside `target`; their JSON."""
    from xdistill import curves
    from xdistill.measured import targets

    axes = sources[0].domain.curve_axes
    assert axes is not None
    found = []
    for source, row in zip(sources, rows, strict=True):
        with console.status(f"curve of {source.name}"):
            found.append(measuring.curve(source, axes, settings, row))
    at = targets(found, sources, axes, real)
    console.print(curves.table(found, axes, at, measuring.seed))
    console.print(f"plot {curves.plot(found, axes, at, target.with_suffix('.png'), measuring.seed)}")
    return curves.as_json(found, axes, at, measuring.seed)
