"""`xdistill generate`: samples into files, from a handful to millions."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from xdistill.cli.keys import domain_class, method_keys, read, split
from xdistill.config import GenerateConfig
from xdistill.errors import UsageError

if TYPE_CHECKING:
    from xdistill.generation import Engine, Job, Outcome
    from xdistill.generation.folder import DesignFolder
    from xdistill.generation.shortlist import Choice

MANY = 128  # samples: fewer are done before a second process has started


def run(args: Sequence[str]) -> int:
    """Check the request, load the student, write the samples."""
    from xdistill.generation.filters import filter_options

    judged, pairs = filter_options(split(args))
    own, pairs = method_keys(pairs)
    kind = domain_class(pairs)
    cfg, request = read(GenerateConfig, pairs, kind.request_keys, kind.text_keys)
    from xdistill.compiled import check_compiler
    from xdistill.generation import generate

    if cfg.stream:
        cfg = _alone(cfg, pairs)
    cfg, job = _job(cfg, pairs, request, judged, own)
    work = engine(cfg)
    if cfg.compile and cfg.engine == "local":
        check_compiler(work.devices[0])
    choice = _choice(cfg, job)
    if said := job.domain.notice(**job.request):
        print(said, file=sys.stderr)
    if cfg.stream:
        parts = job.domain.parts(job.request)
        if parts is None:
            _refuse(pairs, "out")
            return _watch(job, work.devices[0])
        return _record(replace(job, request=parts[0], num=parts[1]), cfg.out, work.devices[0])
    if cfg.out == "-":
        return _lines(cfg, job, work.devices[0])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task, began = progress.add_task("generate", total=-(-cfg.num // work.rank.world)), time.monotonic()

    def show(done: int) -> None:
        progress.start()  # not before the request is known to be good
        progress.update(task, completed=done)

    try:
        outcome = generate(job, Path(cfg.out), work, show, partial(_end, job, choice, progress))
    finally:
        progress.stop()
    _report(job, work, outcome, time.monotonic() - began)
    return 0


def engine(cfg: GenerateConfig) -> Engine:
    """How the work is spread over this machine, the ranks of a launcher, or a Ray cluster."""
    import torch

    from xdistill.generation import Engine, Rank
    from xdistill.machine import cores

    if cfg.engine != "local":
        return Engine(cfg.engine, cfg.workers, address=cfg.ray_address)
    rank, gpus = Rank.here(), torch.cuda.device_count()
    if rank.world > 1:
        return Engine(workers=cfg.workers or 1, devices=[f"cuda:{rank.local % gpus}" if gpus else "cpu"], rank=rank)
    devices = [f"cuda:{k}" for k in range(gpus)] or ["cpu"]
    default = 1 if cfg.num < MANY else gpus or max(1, cores() // cfg.threads)
    return Engine(workers=cfg.workers or default, devices=devices)


def _alone(cfg: GenerateConfig, pairs: Mapping[str, str]) -> GenerateConfig:
    """The request for one streamed sample; raises UsageError for anything that asks for more."""
    _refuse(pairs, "keep", "filter", "format", "workers", "engine")
    if cfg.num != 1 and "num" in pairs:
        raise UsageError(f"num={cfg.num}: stream=true shows one text: leave it out")
    return replace(cfg, num=1)


def _refuse(pairs: Mapping[str, str], *keys: str) -> None:
    for key in keys:
        if key in pairs:
            raise UsageError(f"{key}={pairs[key]}: stream=true shows one text and keeps no file: leave it out")


def _record(job: Job, out: str, device: str) -> int:
    """Parts of one sample into a file as they are done, and how long the first one took."""
    from xdistill.generation.lines import in_parts

    recorder, began, first = job.domain.recorder(out), time.perf_counter(), 0.0
    for index in range(job.num):  # what cannot be said is refused before anything is written
        job.domain.plan([index], job.seed, **job.request)
    try:
        for sample in in_parts(job, device):
            recorder.add(sample)
            first = first or time.perf_counter() - began
    finally:
        recorder.close()
    took, lasts = time.perf_counter() - began, recorder.seconds
    print(
        f"{lasts:.1f} s in {job.num} parts, the first after {first:.2f} s, all after {took:.2f} s "
        f"(real-time factor {took / max(lasts, 1e-9):.2f})",
        file=sys.stderr,
    )
    return 0


def _watch(job: Job, device: str) -> int:
    """Show a text while it is written; the standard output gets the finished one."""
    from rich.live import Live
    from rich.text import Text

    from xdistill.generation.lines import watch

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        sample = watch(job, device, lambda state: live.update(Text(job.domain.partial(state)), refresh=True))
    _write(job.domain.encode(sample, "txt"))
    return 0


def _lines(cfg: GenerateConfig, job: Job, device: str) -> int:
    """Lines to the standard output, as batches are done."""
    from xdistill.generation.lines import check_lines, stream

    check_lines(job.domain)
    if cfg.keep or cfg.workers > 1 or cfg.engine != "local":
        raise UsageError("out=- draws in this process and keeps no folder: leave out keep=, workers= and engine=")
    for piece in stream(job, device):
        _write(piece)
    return 0


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _job(
    cfg: GenerateConfig,
    pairs: Mapping[str, str],
    request: dict[str, Any],
    judged: dict[str, str],
    own: Mapping[str, Any],
) -> tuple[GenerateConfig, Job]:
    """The request resolved: files that it names are read, and say how many samples there are unless num= does."""
    from xdistill.cli.student import asked, load, options
    from xdistill.generation import Job
    from xdistill.generation.filters import Funnel

    loaded = load(cfg)
    request, count = loaded.domain.open_request(request)
    if count and "num" not in pairs and not cfg.stream:
        cfg = replace(cfg, num=count)
    funnel = Funnel.from_text(cfg.filter, loaded.domain, judged)
    job = Job(
        loaded,
        cfg.num,
        cfg.seed,
        cfg.batch,
        cfg.shard,
        cfg.threads,
        cfg.format or "",
        options(loaded, cfg.steps, asked(cfg), request, own),
        request,
        funnel.names,
        funnel.description,
        cfg.precision or "",
        cfg.compile,
    )
    return cfg, job


def _choice(cfg: GenerateConfig, job: Job) -> Choice | None:
    """The shortlist to end with; raises UsageError when the run could not."""
    from xdistill.generation.shortlist import Choice, check

    if not cfg.keep:
        if cfg.by or cfg.diversity is not None:
            raise UsageError("by= and diversity= say which samples a shortlist takes: add keep=NUMBER")
        return None
    if not cfg.by:
        raise UsageError(f"keep={cfg.keep} of which? Give by=COLUMN: {', '.join(job.loaded.domain.ranking)}")
    choice = Choice(cfg.keep, cfg.by, cfg.diversity)
    check(choice, job.loaded.domain, job.funnel.columns)
    return choice


def _end(job: Job, choice: Choice | None, progress: Progress, folder: DesignFolder) -> None:
    """What a run ends with: all lines in one file, and the shortlist."""
    from xdistill.generation.lines import collect
    from xdistill.generation.shards import PACKED
    from xdistill.generation.shortlist import shortlist

    if job.domain.packed_lines and job.file_format == PACKED:
        collect(folder.path, folder.rows(), job.domain)
    if choice is None:
        return
    task = progress.add_task("shortlist", total=choice.keep)

    def show(examined: int, kept: int) -> None:
        progress.update(task, completed=kept, description=f"shortlist ({examined} examined)")

    format = None if job.file_format == PACKED else job.file_format
    print(shortlist(folder.path, folder.rows(), job.domain, choice, format, show).line(choice))


def _report(job: Job, work: Engine, outcome: Outcome, seconds: float) -> None:
    """What there is now, and where."""
    from xdistill.generation.filters import counts_table, filter_counts

    path, rows = outcome.folder.path, outcome.folder.rows()
    rate = f", {outcome.made} made now in {seconds:.3g} s" if outcome.made else ""
    if outcome.missing:
        print(
            f"rank {work.rank.number} of {work.rank.world} is done with its share of {path}{rate}; {outcome.missing} "
            f"shards of others are not there yet: the last one writes manifest.parquet"
        )
        return
    if job.filters:
        failed = rows["failed_at"].to_pylist()
        Console().print(counts_table(filter_counts(job.filters, failed), failed.count(None)))
    kinds = [name for name in rows.column_names if name == "calls" or name.endswith("_calls")]
    named = [f"{rows[k][0].as_py()} {'network calls' if k == 'calls' else k.replace('_', ' ')}" for k in kinds]
    print(
        f"{job.num} sample{'s' * (job.num > 1)} in {path} ({', '.join(named)} each{rate}), listed in manifest.parquet"
    )
    if unwritten := rows["file"].null_count:
        print(f"{unwritten} of them have no file: format {job.file_format} cannot hold them (see `finite` there)")
