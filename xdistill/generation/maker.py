"""A shard made in memory: designs drawn, measured, filtered, encoded. Nothing is written here: the driver writes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from xdistill import registry, rng
from xdistill.compiled import Compiled
from xdistill.errors import UsageError, XDistillError
from xdistill.evaluation import CallCounter, autocast
from xdistill.generation.job import Job
from xdistill.generation.plan import LEAST_ROWS, Shard
from xdistill.generation.shards import PACKED

OnBatch = Callable[[int], None]


@dataclass(frozen=True)
class Design:
    """One decoded sample, its number of elements, and the network calls that it took; others: of other kinds."""

    sample: Any
    length: int
    calls: int
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """Designs of a shard by index. network: seconds spent in the sampler."""

    designs: Mapping[int, Design]
    network: float


@dataclass(frozen=True)
class Made:
    """A shard ready to be written. files: path relative to the folder -> content; rows: of the manifest, by index.

    timing: seconds by what they were spent on (network, rest); not part of the manifest.
    """

    shard: int
    files: Mapping[str, bytes]
    rows: Sequence[Mapping[str, Any]]
    timing: Mapping[str, float]


class Artist:
    """Draws designs with a job's student on one device. least: rows of a call, see `LEAST_ROWS`."""

    def __init__(self, job: Job, device: torch.device | str = "cpu", least: int = LEAST_ROWS) -> None:
        self.job, self.device, self.least = job, device, least
        model = job.loaded.model.eval().to(device)
        self.model = CallCounter(Compiled(model, device) if job.compile else model)

    def close(self) -> None:
        """Leave the student as it was found."""
        self.model.remove()

    @torch.no_grad()
    def draw(self, shard: Shard, on_batch: OnBatch = lambda done: None) -> Drawn:
        """All designs of a shard; on_batch sees how many are drawn."""
        designs: dict[int, Design] = {}
        network = 0.0
        for indices in shard.batches:
            before, already, began = self.model.calls, dict(self.model.others), time.perf_counter()
            samples, lengths = self._batch(indices)
            network += time.perf_counter() - began
            calls, others = self.model.calls - before, self.model.since(already)
            found = zip(indices, samples, lengths, strict=False)  # without the rows that only fill up the batch
            designs |= {i: Design(sample, length, calls, others) for i, sample, length in found}
            on_batch(len(designs))
        return Drawn(designs, network)

    def _batch(self, indices: Sequence[int]) -> tuple[list[Any], list[int]]:
        """Samples of one padded width; a batch of few is filled up with copies of its last (see `LEAST_ROWS`)."""
        job, loaded = self.job, self.job.loaded
        rows = [*indices, *[indices[-1]] * (self.least - len(indices))]
        plan = loaded.domain.plan(rows, job.seed, **job.request).to(self.device)
        with autocast(job.network_precision, self.device):
            plan = loaded.domain.prepare(self.model, plan)
            state = registry.call(
                loaded.objective.sample,
                job.options,
                "this student's sampler",
                self.model,
                plan.like,
                plan.cond,
                rng.per_sample(job.seed, rows),
            )
        return loaded.domain.decode(state), plan.like.elements.int().tolist()


def finish(job: Job, shard: Shard, drawn: Drawn) -> Made:
    """Measure, filter and encode drawn designs; needs no network and no accelerator."""
    began, domain, indices = time.perf_counter(), job.loaded.domain, shard.indices
    designs = [drawn.designs[i] for i in indices]
    samples = [design.sample for design in designs]
    files = _encode(job, shard, samples)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    rows = []
    for place, record in enumerate(job.funnel.apply(samples, indices)):
        index, design = indices[place], designs[place]
        file = job.file_of(index, shard.number)
        found: dict[str, Any] = {
            "index": index,
            "shard": shard.number,
            "file": file if file in files else None,
            "offset": place if job.file_format == PACKED else 0,
            "seed": job.seed,
            "length": design.length,
            "calls": design.calls,
            **{f"{kind}_calls": count for kind, count in design.others.items()},
        }
        values = {**dict.fromkeys(job.funnel.columns), **domain.design_metrics(design.sample), **record.values}
        found |= {k: v for k, v in values.items() if k not in found}
        rows.append(found | {"passed": record.passed, "failed_at": record.failed_at, "sha256": hashes.get(file)})
    return Made(shard.number, files, rows, {"network": drawn.network, "rest": time.perf_counter() - began})


def _encode(job: Job, shard: Shard, samples: Sequence[Any]) -> dict[str, bytes]:
    """Path -> content. A design that the format cannot hold (NaN in PDB) gets no file: its row says so."""
    domain, indices = job.loaded.domain, shard.indices
    if job.file_format == PACKED:
        return {job.file_of(indices[0], shard.number): domain.pack(samples, indices)}
    encoded = {job.file_of(i, shard.number): _file(job, s) for i, s in zip(indices, samples, strict=True)}
    return {name: data for name, data in encoded.items() if data is not None}


def _file(job: Job, sample: Any) -> bytes | None:
    try:
        return job.domain.encode(sample, job.file_format)
    except UsageError:
        raise
    except XDistillError:
        return None
