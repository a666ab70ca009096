"""O3S: where a flow-map student's sampler puts its calls, by ternary search against a metric on a fixed dev set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xdistill import rng
from xdistill.domain import Domain
from xdistill.errors import UsageError, XDistillError
from xdistill.evaluation import autocast, by_size
from xdistill.models import Batch
from xdistill.process import GaussianProcess
from xdistill.registry import nearest
from xdistill.samplers import Plan, ode
from xdistill.state import Field
from xdistill.student import Loaded, steps_file

#: Times of a sampler, from 1 to 0 -> what is to be low.
Score = Callable[[Sequence[float]], float]
DIGITS = 4  # of a time: what is written is what was measured


@dataclass(frozen=True)
class Found:
    """times: the best that were tried; value, equal: of the metric there and at equal steps; tried: how many."""

    times: tuple[float, ...]
    value: float
    equal: float
    tried: int


@dataclass(frozen=True)
class DevSet:
    """The fixed samples that times are judged on: batches, and the indices whose noise each of them starts from."""

    domain: Domain
    batches: Sequence[tuple[Batch[Field], Sequence[int]]]
    seed: int
    precision: str
    device: torch.device

    @classmethod
    def plan(
        cls,
        domain: Domain,
        num: int,
        *,
        seed: int = 0,
        batch: int = 32,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        request: Mapping[str, Any] | None = None,
    ) -> DevSet:
        """`num` samples as `generate` plans them for `request`, in batches of similar size."""
        order, asked = by_size(domain, num, seed, request or {}), dict(request or {})
        parts = [order[i : i + batch] for i in range(0, num, batch)]
        batches = [(domain.plan(part, seed, **asked).to(device), part) for part in parts]
        return cls(domain, batches, seed, precision, torch.device(device))

    @torch.no_grad()
    def draw(self, sample: Callable[[Batch[Field], rng.Generator], Field]) -> list[Field]:
        """What `sample` makes of every batch, from the same noise each time."""
        with autocast(self.precision, self.device):
            return [sample(batch, rng.per_sample(self.seed, indices)) for batch, indices in self.batches]


def search(score: Score, steps: int, *, tolerance: float = 0.01, sweeps: int = 3) -> Found:
    """The times of `steps` calls that `score` likes best.

    From equal steps on, each interior time in turn, from noisy to clean, is placed by ternary search between its
    neighbours until it is known to `tolerance`; again, at most `sweeps` times, while any moved further (O3S of
    IntMeanFlow, speech spec 2.4). The best of everything tried is kept: a score with several minima costs optimality,
    never quality. Raises UsageError for fewer than 2 steps, XDistillError when the score of equal steps is not finite.
    """
    if steps < 2:
        raise UsageError(f"steps={steps}: a sampler of fewer than 2 calls has no time to place")
    times = [round(t, DIGITS) for t in Plan.uniform(steps).times.tolist()]
    seen: dict[tuple[float, ...], float] = {}

    def at(i: int, t: float) -> float:
        tried = (*times[:i], round(t, DIGITS), *times[i + 1 :])
        if tried not in seen:
            seen[tried] = score(tried)
        return seen[tried]

    equal = at(0, 1.0)
    if not abs(equal) < float("inf"):
        raise XDistillError(f"the metric of {steps} equal steps is {equal}: this student makes no samples to judge")
    for _ in range(sweeps):
        before = tuple(times)
        for i in range(1, steps):
            times[i] = _ternary(partial(at, i), times[i + 1], times[i - 1], times[i], tolerance)
        if max(abs(a - b) for a, b in zip(before, times, strict=True)) <= tolerance:
            break
    best = tuple(times)
    return Found(best, seen.get(best, equal), equal, len(seen))


def _ternary(f: Callable[[float], float], low: float, high: float, start: float, tolerance: float) -> float:
    """The best argument tried strictly inside (low, high), `start` among them; a value that is not finite loses."""
    gap = 10.0**-DIGITS
    low, high, tried = low + gap, high - gap, {start: f(start)}
    while high - low > max(tolerance, 1.5 * gap):  # trials are rounded to the gap: closer ones would be the same
        a, b = (round(t, DIGITS) for t in (low + (high - low) / 3, high - (high - low) / 3))
        tried |= {a: _finite(f(a)), b: _finite(f(b))}
        low, high = (low, b) if tried[a] <= tried[b] else (a, high)
    return min(tried, key=lambda t: tried[t])


def _finite(value: float) -> float:
    return value if abs(value) < float("inf") else float("inf")


def paired_error(loaded: Loaded, teacher: Any, dev: DevSet, *, calls: int = 64, noise_scale: float = 1.0) -> Score:
    """Root mean square difference to the teacher's ODE from the same noise, in the state's units.

    The ODE is solved once, by Heun's method in (calls + 1) / 2 equal steps; the teacher comes guided as it was
    distilled. noise_scale: of the common start.
    """
    process = dev.domain.process
    assert isinstance(process, GaussianProcess)
    plan = Plan.uniform((calls + 1) // 2)

    def solve(batch: Batch[Field], generator: rng.Generator) -> Field:
        batch = dev.domain.prepare(teacher, batch)
        start = process.prior(batch.like, generator) * noise_scale
        return ode(teacher, process, plan, start, batch.cond, heun=True)

    wanted = dev.draw(solve)

    def score(times: Sequence[float]) -> float:
        made = dev.draw(_student(loaded, times, noise_scale))
        squares = torch.cat([(a - b).mean_square() for a, b in zip(made, wanted, strict=True)])
        return float(squares.double().mean().sqrt())

    return score


def domain_metric(loaded: Loaded, name: str, dev: DevSet, *, noise_scale: float = 1.0) -> Score:
    """A metric of the domain's `metrics`, its sign turned where high is better; raises UsageError for another name."""

    def score(times: Sequence[float]) -> float:
        made = dev.draw(_student(loaded, times, noise_scale))
        found = dev.domain.metrics([x for state in made for x in dev.domain.decode(state)], dev.seed)
        known = [k for k, m in found.items() if m.better != "none"]
        if name not in known:
            raise UsageError(f"unknown metric '{name}'{nearest(name, ['rmse', *known])}")
        return -found[name].value if found[name].better == "high" else found[name].value

    return score


def _student(loaded: Loaded, times: Sequence[float], noise_scale: float) -> Callable[[Batch[Field], Any], Field]:
    options = {"steps": len(times) - 1, "times": list(times), "noise_scale": noise_scale}

    def draw(batch: Batch[Field], generator: Any) -> Field:
        ready = loaded.domain.prepare(loaded.model, batch)
        return loaded.objective.sample(loaded.model, ready.like, ready.cond, generator, **options)

    return draw


def store(loaded: Loaded, found: Found, how: Mapping[str, Any]) -> Path:
    """Add what was found to the run's `steps.json`, where samplers of this checkpoint look (`searched_times`)."""
    path = steps_file(loaded.path)
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("checkpoint") != loaded.path.name:
        kept = {"checkpoint": loaded.path.name, "calls": {}}
    kept["calls"][str(len(found.times) - 1)] = {**asdict(found), **how}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1) + "\n")
    return part.rename(path)
