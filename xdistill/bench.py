"""Student against teacher: cost and quality on the same requests, and how fast one forward is. It asserts nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from xdistill import rng
from xdistill.domain import Domain, Metric
from xdistill.errors import UsageError
from xdistill.evaluation import CallCounter, Draw, autocast, draw
from xdistill.objectives import Objective


@dataclass(frozen=True)
class Setting:
    """What all rows share. batch: samples drawn at once when timing. repeats: timed draws, when warm.
    num: samples whose quality is measured, 0 is none.
    """

    batch: int
    repeats: int
    num: int
    seed: int
    precision: str
    device: torch.device
    request: Mapping[str, Any]


@torch.no_grad()
def cost(domain: Domain, network: nn.Module, sampler: Draw, s: Setting) -> dict[str, Any]:
    """Seconds (median, and all repetitions) and network calls a sample; the first draw counts only after others."""
    indices = range(s.batch)
    batch, model = domain.plan(indices, s.seed, **s.request).to(s.device), CallCounter(network.eval().to(s.device))
    with autocast(s.precision, s.device):
        seconds, calls = _timed(lambda: sampler(model, batch, rng.per_sample(s.seed, indices)), model, s)
    model.remove()
    return {"calls": calls, "seconds": median(seconds), "all_seconds": seconds}


def _timed(run: Callable[[], Any], model: CallCounter, s: Setting) -> tuple[list[float], int]:
    seconds, before = [], 0
    cold = s.num == 0  # else the samples whose quality was measured have warmed it up
    for _ in range(s.repeats + cold):
        before, began = model.calls, time.perf_counter()
        run()
        if s.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / s.batch)
    return seconds[cold:], model.calls - before


def quality(domain: Domain, network: nn.Module, sampler: Draw, s: Setting) -> tuple[dict[str, Metric], list[str]]:
    """The domain's `compared` metrics of `num` samples, and why any of them could not be measured here."""
    drawn = draw(
        domain, network, sampler, s.num, seed=s.seed, precision=s.precision, device=s.device, request=s.request
    )
    found, missing = dict(domain.metrics(drawn.samples, s.seed)), []
    for name in domain.compared_extra:
        try:
            found |= domain.extra_metrics()[name](drawn.samples, s.seed)
        except UsageError as absent:
            missing.append(str(absent))
    return {name: found[name] for name in domain.compared if name in found}, missing


def verdict(student: Metric, teacher: Metric) -> str:
    """`ok` when the student is within the teacher's interval or better, else by how much it misses the interval."""
    miss = teacher.low - student.value if teacher.better == "high" else student.value - teacher.high
    if teacher.better == "none":
        miss = max(teacher.low - student.value, student.value - teacher.high)
    return "ok" if miss <= 0 else f"misses by {miss:.3g}"


def compare(domain: Domain, samplers: Mapping[str, tuple[nn.Module, Draw]], s: Setting) -> dict[str, Any]:
    """Rows by name, the first one the teacher; speed-up and verdicts of the others."""
    rows: dict[str, Any] = {}
    reference: dict[str, Metric] = {}
    for name, (network, sampler) in samplers.items():
        found, missing = quality(domain, network, sampler, s) if s.num else ({}, [])
        rows[name] = cost(domain, network, sampler, s)
        rows[name]["quality"] = {k: asdict(m) for k, m in found.items()}
        rows[name]["not_measured"] = missing
        if not reference and len(rows) == 1:
            reference = found
        rows[name]["verdict"] = {k: verdict(m, reference[k]) for k, m in found.items() if k in reference}
    return rows


@torch.no_grad()
def forwards(domain: Domain, network: nn.Module, s: Setting) -> dict[str, Any]:
    """Seconds a sample of one float32 forward in each of the domain's variants, and how far their outputs differ."""
    indices = range(s.batch)
    batch = domain.plan(indices, s.seed, **domain.forward_request).to(s.device)
    x = domain.process.prior(batch.like, rng.per_sample(s.seed, indices))
    t = torch.full((s.batch,), 0.5, device=s.device)
    out, seconds = {}, {}
    for name, variant in domain.forward_variants(network.eval().to(s.device)).items():
        with variant:
            out[name] = network(x, t, batch.cond).value
            counted = []
            for _ in range(s.repeats):
                began = time.perf_counter()
                network(x, t, batch.cond)
                if s.device.type == "cuda":
                    torch.cuda.synchronize()
                counted.append((time.perf_counter() - began) / s.batch)
        seconds[name] = median(counted)
    if not seconds:
        return {}
    first, *_, last = seconds
    difference = float((out[first] - out[last]).abs().max())
    return {"seconds": seconds, "speedup": seconds[first] / seconds[last], "max_difference": difference}


def calls_of(text: str, objective: Objective) -> Sequence[int]:
    """`16,8` -> [16, 8]; nothing -> the two largest counts of an any-step student, or [0], as trained."""
    counts = getattr(objective, "counts", ())
    try:
        given = [int(k) for k in text.split(",") if k]
    except ValueError:
        given = [0]
    if any(k < 1 for k in given):
        raise UsageError(f"steps={text}: expected numbers of network calls such as 16,8")
    return given or (list(counts[:-3:-1]) if len(counts) > 1 else [0])
