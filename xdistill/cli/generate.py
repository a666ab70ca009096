"""`xdistill generate`: samples into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from xdistill.cli.keys import domain_class, read, split
from xdistill.config import GenerateConfig


def run(args: Sequence[str]) -> int:
    """Check the request, load the student, write the files."""
    pairs = split(args)
    cfg, request = read(GenerateConfig, pairs, domain_class(pairs).request_keys)
    from xdistill.cli.student import device, load, options
    from xdistill.generation import generate

    loaded = load(cfg)
    columns = (TextColumn("generate"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task("generate", total=cfg.num)

    def show(done: int) -> None:
        progress.start()  # not before the request is known to be good
        progress.update(task, completed=done)

    try:
        folder = generate(
            loaded,
            cfg.num,
            Path(cfg.out),
            seed=cfg.seed,
            batch=cfg.batch,
            options=options(loaded, cfg.steps, cfg.noise_scale),
            request=request,
            format=cfg.format,
            device=device(),
            on_batch=show,
        )
    finally:
        progress.stop()
    calls = folder.records[0]["calls"]
    seconds = sum(r["seconds"] for r in folder.records.values()) / cfg.num
    print(
        f"{cfg.num} samples in {folder.path} ({calls} network calls and {seconds:.3g} s each), listed in manifest.json"
    )
    return 0
