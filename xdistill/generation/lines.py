"""Designs a line each: one file in index order at the end of a run, or a stream as they are drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from xdistill.domain import Domain
from xdistill.errors import UsageError
from xdistill.generation.job import Job
from xdistill.generation.maker import Artist
from xdistill.generation.plan import Shard
from xdistill.generation.shards import PACKED


def lines_name(domain: Domain) -> str:
    """The file that holds all designs of a finished run."""
    return f"samples{domain.packed_suffix}"


def collect(folder: Path, rows: pa.Table, domain: Domain) -> Path:
    """Write the lines of all designs that passed, in index order, atomically; memory is a line and its place each.

    rows: the manifest of a run whose packed shards hold a line a design.
    """
    rows = rows.filter(pc.and_(rows["passed"], rows["file"].is_valid()))
    path = folder / lines_name(domain)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    places = {name: _starts(folder / name) for name in pc.unique(rows["file"]).to_pylist()}
    shards = {name: open(folder / name, "rb") for name in places}  # noqa: SIM115 - closed below
    try:
        with open(part, "wb") as out:
            for name, offset in zip(rows["file"].to_pylist(), rows["offset"].to_pylist(), strict=True):
                shards[name].seek(places[name][offset])
                out.write(shards[name].readline())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        for file in shards.values():
            file.close()
    return path


def _starts(path: Path) -> list[int]:
    starts = [0]
    with open(path, "rb") as file:
        starts += [file.tell() for _ in iter(file.readline, b"")]
    return starts


def stream(job: Job, device: torch.device | str) -> Iterator[bytes]:
    """What files would hold of the designs that pass, a piece a batch, as batches are done; by index where all designs
    have one size. Raises UsageError for a domain whose designs are no lines.
    """
    for indices, samples in _passed(job, Artist(job, device)):
        if job.file_format == PACKED:
            yield job.domain.pack(samples, indices)
        else:
            yield b"".join(job.domain.encode(sample, job.file_format) for sample in samples)


def watch(job: Job, device: torch.device | str, on_state: Callable[[Any], None]) -> Any:
    """Draw design 0; on_state sees the states that the network is shown, one a call. Returns the decoded sample."""
    artist = Artist(job, device)
    hook = artist.model.register_forward_pre_hook(lambda _, args: on_state(args[0]))
    try:
        return artist.draw(Shard(0, ((0,),))).designs[0].sample
    finally:
        hook.remove()
        artist.close()


def in_parts(job: Job, device: torch.device | str) -> Iterator[Any]:
    """Designs 0..num-1 in order, each drawn by itself when it is asked for: the first is there as soon as can be."""
    artist = Artist(job, device, least=1)
    try:
        for index in range(job.num):
            yield artist.draw(Shard(index, ((index,),))).designs[index].sample
    finally:
        artist.close()


def check_lines(domain: Domain) -> None:
    """Raise UsageError when the designs of a domain are no lines."""
    if not domain.packed_lines:
        raise UsageError(f"samples of domain '{domain.name}' are no lines of text: give a folder as out=")


def _passed(job: Job, artist: Artist) -> Iterator[tuple[list[int], list[Any]]]:
    try:
        for number, batch in enumerate(job.plan.batches):
            indices = batch.tolist()
            drawn = artist.draw(Shard(number, (tuple(indices),))).designs
            samples = [drawn[i].sample for i in indices]
            kept = [k for k, record in enumerate(job.funnel.apply(samples, indices)) if record.passed]
            yield [indices[k] for k in kept], [samples[k] for k in kept]
    finally:
        artist.close()
