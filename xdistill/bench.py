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
from xdistill.evaluation import CallCounter, Draw, Drawn, autocast, draw
from xdistill.matched import Matched, Swept, match
from xdistill.objectives import Objective


@dataclass(frozen=True)
class Setting:
    """What all rows share. batches: samples drawn at once when timing. repeats: timed draws, when warm.
    num: samples whose quality is measured, 0 is none.
    """

    batches: Sequence[int]
    repeats: int
    num: int
    seed: int
    precision: str
    device: torch.device
    request: Mapping[str, Any]


@dataclass(frozen=True)
class Contender:
    """A row: a network and its sampler by options. kind: teacher, few (the teacher at few calls), student, rival.

    few: of a student, the name of the teacher at its calls. setting: value of what the domain's curves sweep.
    """

    name: str
    kind: str
    network: nn.Module
    sampler: Callable[..., Draw]
    few: str = ""
    setting: float = 1.0


@torch.no_grad()
def cost(domain: Domain, network: nn.Module, sampler: Draw, s: Setting, size: int, cold: bool) -> dict[str, Any]:
    """Network calls of each kind a sample, seconds a sample (median, and all repetitions), the domain's units a second
    (`elements_per_second`), with rendering too where the domain renders, and `overhead`: the share that the sampler
    adds to the time inside the network.

    cold: whether a first draw, which does not count, warms it up.
    """
    indices = range(size)
    batch, model = domain.plan(indices, s.seed, **s.request).to(s.device), CallCounter(network.eval().to(s.device))
    inside, seconds, shares, state = Clock(model.counted, s.device), [], [], None
    calls, others = 0, dict(model.others)
    with autocast(s.precision, s.device):
        for _ in range(s.repeats + cold):
            calls, others, inside.seconds, began = model.calls, dict(model.others), 0.0, time.perf_counter()
            state = sampler(model, domain.prepare(model, batch), rng.per_sample(s.seed, indices))
            inside.wait()
            seconds.append(time.perf_counter() - began)
            shares.append(seconds[-1] / inside.seconds - 1)
    calls, others = model.calls - calls, model.since(others)
    inside.remove()
    model.remove()
    each = [t / size for t in seconds[cold:]]
    found: dict[str, Any] = {"calls": calls, "seconds": median(each), "all_seconds": each}
    found |= {f"{kind}_calls": n for kind, n in others.items()}
    found["elements_per_second"] = float(batch.like.elements.sum()) / (size * found["seconds"]) / domain.unit_elements
    if type(domain).render is not Domain.render:
        found["render_seconds"] = rendering(domain, state) / size
        slower = found["seconds"] + found["render_seconds"]
        found["rendered_per_second"] = found["elements_per_second"] * found["seconds"] / slower
    # What a discriminator is asked, and differentiated for, is no overhead of the sampler.
    return found | ({} if others else {"overhead": median(shares[cold:])})


def rendering(domain: Domain, state: Any) -> float:
    """Seconds that `Domain.render` takes for a batch, decoded and warm."""
    samples = domain.decode(state)
    domain.render(samples[0])
    began = time.perf_counter()
    for sample in samples:
        domain.render(sample)
    return time.perf_counter() - began


class Clock:
    """Seconds inside the forwards of some modules; a GPU is waited for."""

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self.seconds, self.device, self._began = 0.0, device, 0.0
        self._hooks = [m.register_forward_pre_hook(self._start) for m in modules]
        self._hooks += [m.register_forward_hook(self._stop) for m in modules]

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def remove(self) -> None:
        """Stop."""
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: Any) -> None:
        self.wait()
        self._began = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.wait()
        self.seconds += time.perf_counter() - self._began


def drawn(domain: Domain, network: nn.Module, sampler: Draw, s: Setting) -> Drawn:
    """`num` samples whose quality is measured."""
    return draw(domain, network, sampler, s.num, seed=s.seed, precision=s.precision, device=s.device, request=s.request)


def quality(
    domain: Domain, samples: Sequence[Any], s: Setting, reference: Sequence[Any]
) -> tuple[dict[str, Metric], list[str]]:
    """The domain's `compared` metrics, and why any of them could not be measured here.

    reference: the first row's samples of the same noise.
    """
    missing: list[str] = []
    found = {**domain.metrics(samples, s.seed), **domain.paired_metrics(samples, reference, s.seed)}
    for name in domain.compared_extra:
        try:
            found |= domain.extra_metrics()[name](samples, s.seed)
        except UsageError as absent:
            missing.append(str(absent))
    return {name: found[name] for name in domain.compared if name in found}, missing


def verdict(student: Metric, teacher: Metric) -> str:
    """`ok` when the student is within the teacher's interval or better, else by how much it misses the interval."""
    miss = teacher.low - student.value if teacher.better == "high" else student.value - teacher.high
    if teacher.better == "none":
        miss = max(teacher.low - student.value, student.value - teacher.high)
    return "ok" if miss <= 0 else f"misses by {miss:.3g}"


def compare(domain: Domain, contenders: Sequence[Contender], s: Setting) -> tuple[dict[str, Any], Matched | None]:
    """Rows by name, the first one the teacher, with speed-up and verdicts of the others; and what `match` finds."""
    rows: dict[str, Any] = {}
    reference: dict[str, Metric] = {}
    sources = []
    for c in contenders:
        row: dict[str, Any] = {"kind": c.kind, "quality": {}, "verdict": {}, "not_measured": []}
        if s.num:
            sources.append(_swept(domain, c, s))
            found, row["not_measured"] = quality(domain, sources[-1].drawn.samples, s, sources[0].drawn.samples)
            reference = reference or found
            row["quality"] = {k: asdict(m) for k, m in found.items()}
            row["verdict"] = {k: verdict(m, reference[k]) for k, m in found.items() if k in reference}
        costs = [cost(domain, c.network, c.sampler(), s, size, not s.num) for size in s.batches]
        rows[c.name] = costs[0] | row | {"batches": dict(zip(map(str, s.batches), costs, strict=True))}
        first = next(iter(rows.values()))
        for size, own in rows[c.name]["batches"].items():
            own["speedup"] = first["batches"][size]["seconds"] / own["seconds"]
        rows[c.name]["speedup"] = first["seconds"] / rows[c.name]["seconds"]
    if not sources or domain.curve_axes is None:
        return rows, None
    return rows, match(sources, domain.curve_rows, domain.curve_axes, s.seed)


def _swept(domain: Domain, c: Contender, s: Setting) -> Swept:
    def at(setting: float) -> Drawn:
        assert domain.curve_axes is not None
        return drawn(domain, c.network, c.sampler(**{domain.curve_axes.setting: setting}), s)

    return Swept(c.name, c.kind, c.setting, drawn(domain, c.network, c.sampler(), s), at, c.few)


@torch.no_grad()
def forwards(domain: Domain, network: nn.Module, s: Setting) -> dict[str, Any]:
    """Seconds a sample of one float32 forward in each of the domain's variants, and how far their outputs differ."""
    indices = range(s.batches[0])
    batch = domain.plan(indices, s.seed, **domain.forward_request).to(s.device)
    x = domain.process.prior(batch.like, rng.per_sample(s.seed, indices))
    t = torch.full((len(indices),), 0.5, device=s.device)
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
                counted.append((time.perf_counter() - began) / len(indices))
        seconds[name] = median(counted)
    if not seconds:
        return {}
    first, *_, last = seconds
    difference = float((out[first] - out[last]).abs().max())
    return {"seconds": seconds, "speedup": seconds[first] / seconds[last], "max_difference": difference}


def calls_of(text: str, objective: Objective) -> Sequence[int]:
    """`16,8` -> [16, 8]; nothing -> the two largest counts of an any-step student, or [0], as trained."""
    counts = getattr(objective, "counts", ())
    given = _numbers(text, "steps", "network calls such as 16,8")
    return given or (list(counts[:-3:-1]) if len(counts) > 1 else [0])


def batches_of(text: str, domain: Domain) -> Sequence[int]:
    """`8,1` -> [8, 1]; nothing -> the domain's."""
    return _numbers(text, "batch", "samples such as 8,1") or domain.bench_batches


def _numbers(text: str, key: str, what: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{key}={text}: expected numbers of {what}")
    return [int(part) for part in parts]
