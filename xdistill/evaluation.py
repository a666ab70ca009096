"""Draw samples from any sampler, count its calls, time it, measure: what the final table and `evaluate` rest on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from xdistill import rng
from xdistill.domain import Domain, Metric, TeacherSampler
from xdistill.models import Batch
from xdistill.objectives import Objective

PRECISIONS = ("fp32", "bf16")


class Draw(Protocol):
    """A sampler with its model bound: batch and generators -> states."""

    def __call__(self, model: Any, batch: Batch, generator: rng.Generator) -> Any: ...


class CallCounter(nn.Module):
    """A model that counts its forward calls (a guided call counts each of its networks' calls).

    others: calls by kind of what stands beside the model: `discriminator`, and `discriminator_backward`, as many of
    them as were differentiated.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0
        self.kind, self.flow_map = getattr(model, "kind", None), getattr(model, "flow_map", False)
        inner = [m for m in (getattr(model, "model", None), getattr(model, "weak", None)) if isinstance(m, nn.Module)]
        self.counted = inner or [model]
        self._hooks = [module.register_forward_pre_hook(self._count) for module in self.counted]
        self.discriminator: nn.Module | None = getattr(model, "discriminator", None)
        self.others: dict[str, int] = {}
        if self.discriminator is not None:
            self.others = {"discriminator": 0, "discriminator_backward": 0}
            self._hooks.append(self.discriminator.register_forward_pre_hook(self._count_judge))

    def remove(self) -> None:
        """Stop counting: the model may outlive its counter."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def _count_judge(self, *_: Any) -> None:
        self.others["discriminator"] += 1
        self.others["discriminator_backward"] += torch.is_grad_enabled()

    def since(self, before: Mapping[str, int]) -> dict[str, int]:
        """`others` that came after a copy of it."""
        return {kind: count - before[kind] for kind, count in self.others.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


@dataclass(frozen=True)
class Drawn:
    """Decoded samples in index order; calls: network calls a sample; seconds: wall time a sample.

    others: calls a sample of other networks, by kind.
    """

    samples: list[Any]
    calls: float
    seconds: float
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One source of samples with its metrics; network calls, those of other kinds, wall seconds, a sample."""

    name: str
    metrics: Mapping[str, Metric]
    samples: Sequence[Any]
    calls: float | None = None
    seconds: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many samples."""
        return len(self.samples)


def measure(
    domain: Domain,
    samples: Sequence[Any],
    seed: int = 0,
    extras: Sequence[str] = (),
    request: Mapping[str, Any] | None = None,
) -> dict[str, Metric]:
    """The domain's metrics of decoded samples, those of the request they were drawn for, and the costly `extras`."""
    found = {**domain.metrics(samples, seed), **domain.request_metrics(samples, seed, **(request or {}))}
    known = domain.extra_metrics()
    for name in extras:
        found |= known[name](samples, seed)
    return found


def measure_reference(domain: Domain, num: int, seed: int = 0, extras: Sequence[str] = ()) -> dict[str, Metric]:
    """What real data scores: the domain's recorded reference, and `extras` of at most `num` held-out samples."""
    found, known, of_models = domain.reference_metrics(), domain.extra_metrics(), domain.model_metrics()
    samples = domain.reference_samples(num, seed) if any(name in known for name in extras) else []
    for name in extras:
        if name in of_models:
            found |= of_models[name](None, None, num, seed)
        elif samples and name in known:
            found |= known[name](samples, seed)
    return found


def read_samples(domain: Domain, folder: Path) -> list[Any]:
    """Decoded samples of a folder: those in the manifest of `generate`, in index order and without its shortlist, else
    of packed shards in index order, else of files in the domain's formats.
    """
    from xdistill.generation import manifest
    from xdistill.generation.folder import MANIFEST
    from xdistill.generation.shards import Designs, read_shard, shard_name

    if (folder / MANIFEST).is_file():
        rows = manifest.read(folder / MANIFEST)
        named = zip(rows["index"].to_pylist(), rows["file"].to_pylist(), strict=True)
        files = {index: folder / file for index, file in named if file is not None}
        return list(Designs(domain, files).among(sorted(files)).values())

    pattern = shard_name(domain, 0).replace("000000", "*") if domain.packed_suffix else ""
    shards = sorted(folder.rglob(pattern)) if pattern else []
    packed = {i: sample for path in shards for i, sample in read_shard(path, domain).items()}
    return [packed[i] for i in sorted(packed)] if shards else domain.read(folder)


def as_json(rows: Sequence[Row], real: Mapping[str, Metric]) -> dict[str, Any]:
    """Plain values of a table: `rows` and `real`, every metric with its interval and n, null where undefined."""
    plain = [
        {"name": r.name, "n": r.n, "calls": r.calls, **_named(r.others), "seconds": r.seconds}
        | {"metrics": _plain(r.metrics)}
        for r in rows
    ]
    return {"rows": plain, "real": _plain(real)}


def _named(others: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}_calls": count for kind, count in others.items()}


def _plain(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Numbers that the samples do not define are null: JSON knows no NaN."""
    found = {name: asdict(m).items() for name, m in metrics.items()}
    return {n: {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in m} for n, m in found.items()}


@torch.no_grad()
def draw(
    domain: Domain,
    model: nn.Module,
    sampler: Draw,
    num: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    request: Mapping[str, Any] | None = None,
) -> Drawn:
    """`num` samples in batches of similar size; sample i depends on (seed, i) alone."""
    counter, calls, seconds = CallCounter(model.eval()), 0, 0.0
    others = dict.fromkeys(counter.others, 0)
    order = by_size(domain, num, seed, request or {})
    samples: list[Any] = [None] * num
    for start in range(0, num, batch_size):
        indices = order[start : start + batch_size]
        batch = domain.plan(indices, seed, **(request or {})).to(device)
        before, already, began = counter.calls, dict(counter.others), time.perf_counter()
        with autocast(precision, device):
            state = sampler(counter, domain.prepare(counter, batch), rng.per_sample(seed, indices))
        seconds += time.perf_counter() - began
        calls += (counter.calls - before) * len(indices)
        others = {kind: others[kind] + n * len(indices) for kind, n in counter.since(already).items()}
        for i, sample in zip(indices, domain.decode(state), strict=True):
            samples[i] = sample
    counter.remove()
    return Drawn(samples, calls / num, seconds / num, {kind: n / num for kind, n in others.items()})


def student_sampler(objective: Objective, **options: Any) -> Draw:
    """The sampler an objective trains for, with its options bound."""
    return lambda model, batch, gen: objective.sample(model, batch.like, batch.cond, gen, **options)


def teacher_sampler(sampler: TeacherSampler, steps: int | None = None, **options: Any) -> Draw:
    """A teacher's sampler at a number of network calls; options: what the domain's curves sweep."""
    return lambda model, batch, gen: sampler(model, batch, gen, steps=steps, **options)


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """bf16 autocast or nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def best_by_score(rows: Mapping[str, Mapping[str, Metric]]) -> str:
    """The name of the row with the highest `score`."""
    return max(rows, key=lambda name: rows[name]["score"].value)


def by_size(domain: Domain, num: int, seed: int, request: Mapping[str, Any]) -> list[int]:
    """Sample indices from small to large, so that a batch wastes little padding; checks the request on the way."""
    sizes = domain.plan(range(num), seed, **request).like.elements.tolist()
    return sorted(range(num), key=lambda i: (sizes[i], i))
