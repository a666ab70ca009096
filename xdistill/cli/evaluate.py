"""`xdistill evaluate`: a table of the domain's metrics, with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from xdistill.cli.keys import domain_class, read, split
from xdistill.config import EvaluateConfig, compose
from xdistill.errors import UsageError

if TYPE_CHECKING:
    from xdistill.domain import Domain, Metric

ARROWS = {"high": " ↑", "low": " ↓", "none": ""}


@dataclass(frozen=True)
class Row:
    """Metrics of one source of samples; calls and seconds a sample are known for checkpoints only."""

    source: str
    n: int
    metrics: dict[str, Metric]
    calls: float | None = None
    seconds: float | None = None


def run(args: Sequence[str]) -> int:
    """Measure every source, print the table, save it."""
    pairs = split(args)
    cfg, request = read(EvaluateConfig, pairs, domain_class(pairs).request_keys)
    runs, folders = _paths(cfg.ckpt), _paths(cfg.dir)
    if not runs and not folders:
        raise UsageError("evaluate what? Give ckpt=RUN[,RUN], dir=DIR[,DIR], or both")
    rows = [_checkpoint(cfg, path, request) for path in runs] + _folders(cfg, folders, request)
    Console().print(table(rows))
    target = Path(cfg.json) if cfg.json else (runs + folders)[0] / "evaluation.json"
    print(f"saved to {save(rows, target)}")
    return 0


def table(rows: Sequence[Row]) -> Table:
    """One column a source, one row a metric: value and 95 % interval; the arrow says which way is better."""
    out = Table(title="quality (value, 95 % bootstrap interval)")
    out.add_column("metric")
    for row in rows:
        out.add_column(row.source, justify="right")
    for name in dict.fromkeys(name for row in rows for name in row.metrics):
        better = next(row.metrics[name].better for row in rows if name in row.metrics)
        out.add_row(name + ARROWS[better], *[_cell(row.metrics.get(name)) for row in rows])
    out.add_section()
    out.add_row("samples", *[str(row.n) for row in rows])
    out.add_row("network calls a sample", *["" if row.calls is None else f"{row.calls:g}" for row in rows])
    out.add_row("seconds a sample", *["" if row.seconds is None else f"{row.seconds:.3g}" for row in rows])
    return out


def save(rows: Sequence[Row], path: Path) -> Path:
    """Write the rows as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return part.rename(path)


def _paths(text: str | None) -> list[Path]:
    return [Path(p) for p in (text or "").split(",") if p]


def _measure(domain: Domain, samples: list[Any], seed: int, request: dict[str, Any]) -> dict[str, Metric]:
    return {**domain.metrics(samples, seed), **domain.request_metrics(samples, seed, **request)}


def _checkpoint(cfg: EvaluateConfig, path: Path, request: dict[str, Any]) -> Row:
    from xdistill.cli.student import device, load, options
    from xdistill.evaluation import draw, student_sampler

    loaded = load(replace(cfg, ckpt=str(path)))
    drawn = draw(
        loaded.domain,
        loaded.model.to(device()),
        student_sampler(loaded.objective, **options(loaded, cfg.steps, cfg.noise_scale)),
        cfg.num,
        seed=cfg.seed,
        batch_size=cfg.batch,
        precision=loaded.config["precision"],
        device=device(),
        request=request,
    )
    found = _measure(loaded.domain, drawn.samples, cfg.seed, request)
    return Row(str(path), cfg.num, found, drawn.calls, drawn.seconds)


def _folders(cfg: EvaluateConfig, folders: Sequence[Path], request: dict[str, Any]) -> list[Row]:
    if not folders:
        return []
    from xdistill.sections import build_domain

    domain, rows = build_domain(compose([f"domain={cfg.domain}"])), []
    for path in folders:
        if not path.is_dir():
            raise UsageError(f"no folder {path}: dir= takes folders of samples")
        samples = domain.read(path)
        rows.append(Row(str(path), len(samples), _measure(domain, samples, cfg.seed, request)))
    return rows


def _cell(metric: Metric | None) -> str:
    return "" if metric is None else f"{metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"
