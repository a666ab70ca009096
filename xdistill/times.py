"""Laws of training times and anchors of few-step samplers, in core time (0 clean, 1 prior), float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.registry import call, nearest


def shifted(u: Tensor, kappa: float) -> Tensor:
    """kappa u / (1 + (kappa - 1) u): times moved towards noise by kappa > 1, 0 and 1 stay; raises UsageError."""
    if kappa <= 0:
        raise UsageError(f"shift={kappa}: expected a positive number, 1 is none")
    return kappa * u / (1 + (kappa - 1) * u)


class TimeLaw(Protocol):
    """A distribution of training times."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] float64 on the generator's device."""


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high], with the shift kappa: t = kappa u / (1 + (kappa - 1) u)."""

    low: float = 0.02
    high: float = 0.98
    shift: float = 1.0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.low + (self.high - self.low) * shifted(rng.rand(n, generator), self.shift)


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid(mean + std z), clamped to [low, high]."""

    mean: float = 0.0
    std: float = 1.0
    low: float = 0.001
    high: float = 0.999

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.sigmoid(self.mean + self.std * z).clamp(self.low, self.high)


@dataclass(frozen=True)
class CleanBeta:
    """1 - t ~ uniform_part U(0,1) + (1 - uniform_part) Beta(a, 1): dense near the clean end.

    Proteina trains with a = 1.9 and uniform_part = 0.02 (protein spec 1.3, where time runs the other way).
    """

    a: float = 1.9
    uniform_part: float = 0.02
    low: float = 0.0
    high: float = 1.0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        pick, u, beta = rng.rand(n, generator), rng.rand(n, generator), rng.rand(n, generator)
        clean = torch.where(pick < self.uniform_part, u, beta ** (1 / self.a))
        return (1 - clean).clamp(self.low, self.high)


@dataclass(frozen=True)
class Beta:
    """Beta(a, b) with whole a and b, clamped to [low, high]: a = b = 1 is uniform (DiDi-Instruct, text spec 2.3)."""

    a: float = 2
    b: float = 2
    low: float = 0.02
    high: float = 0.98

    def __post_init__(self) -> None:
        if any(x < 1 or x != int(x) for x in (self.a, self.b)):
            raise UsageError(f"time law beta with a={self.a}, b={self.b}: expected whole numbers, at least 1")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        count = int(self.a + self.b) - 1  # the a-th smallest of so many uniforms has this law
        t = rng.rand(n * count, generator).view(n, count).sort(1).values[:, int(self.a) - 1]
        return t.clamp(self.low, self.high)

    def density(self, t: Tensor) -> Tensor:
        """Of the unclamped law, at t."""
        log_norm = math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)
        return math.exp(log_norm) * t ** (self.a - 1) * (1 - t) ** (self.b - 1)


@dataclass(frozen=True)
class LogGrid:
    """t = 10^(-decades k / steps), k ~ U{0..steps}, clamped: log-spaced noise levels (protein spec 2.3)."""

    decades: float = 2.0
    steps: int = 400
    low: float = 0.02
    high: float = 0.98

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        k = torch.randint(0, self.steps + 1, (n,), generator=generator, device=generator.device)
        return (10.0 ** (-self.decades * k.double() / self.steps)).clamp(self.low, self.high)


@dataclass(frozen=True)
class Pairs:
    """Jumps t >= r: two draws of `law`, sorted; a share `whole` of them is the whole way, t = 1 and r = 0.

    MeanFlow sorts two logit-normals (2505.13447); for SplitMeanFlow two uniforms, 15 % whole (speech spec 2.3).
    """

    law: TimeLaw
    whole: float = 0.0

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(t [n], r [n]) float64."""
        a, b = self.law.sample(n, generator), self.law.sample(n, generator)
        whole = rng.rand(n, generator) < self.whole
        t, r = torch.maximum(a, b), torch.minimum(a, b)
        return torch.where(whole, 1.0, t), torch.where(whole, 0.0, r)


class Anchors(Protocol):
    """Times of the network calls of a K-step student, from noisy to clean."""

    def __call__(self, steps: int) -> Tensor: ...


@dataclass(frozen=True)
class LinearAnchors:
    """K times from `first` down to first / K, with the shift kappa."""

    first: float = 1.0
    shift: float = 1.0

    def __call__(self, steps: int) -> Tensor:
        return shifted(self.first * torch.arange(steps, 0, -1, dtype=torch.float64) / steps, self.shift)


@dataclass(frozen=True)
class LogAnchors:
    """t_i = 10^(-decades k_i / grid), k_i = round(linspace(k_first, grid, K)); K = 1 uses k_one (protein spec 2.4)."""

    decades: float = 2.0
    grid: int = 400
    k_first: int = 30
    k_one: int = 40

    def __call__(self, steps: int) -> Tensor:
        k = torch.linspace(self.k_first, self.grid, steps, dtype=torch.float64).round()
        if steps == 1:
            k = torch.tensor([float(self.k_one)], dtype=torch.float64)
        return 10.0 ** (-self.decades * k / self.grid)


def shared(t: Tensor | float, n: int, device: torch.device | str = "cpu") -> Tensor:
    """One time for all n samples, [n] float64."""
    return torch.as_tensor(t, dtype=torch.float64).expand(n).to(device)


class LamLaw(Protocol):
    """Where an interval is split, as the share lam of it that the first leg takes; 0 is the limit (a derivative)."""

    def at(self, macro_step: int) -> float | None:
        """The share at `macro_step`, the same for all samples; None: each draws its own, uniformly."""


@dataclass(frozen=True)
class ConstantLam:
    """value: 0 is MeanFlow, 1/2 a shortcut model, 1 flow matching along the leg."""

    value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise UsageError(f"objective.lam.value={self.value}: expected 0 to 1")

    def at(self, macro_step: int) -> float | None:
        return self.value


@dataclass(frozen=True)
class UniformLam:
    """Uniform on (0, 1) for each sample (SplitMeanFlow)."""

    def at(self, macro_step: int) -> float | None:
        return None


@dataclass(frozen=True)
class SigmoidLam:
    """alpha-Flow's curriculum from 1 to 0 between macro-steps `start` and `end`, 0 and 1 within `clamp` of them.

    lam = sigmoid(temperature (1/2 - progress)).
    """

    start: int = 0
    end: int = 1000
    temperature: float = 25.0
    clamp: float = 5e-3

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise UsageError(f"objective.lam has start={self.start}, end={self.end}: expected 0 <= start < end")

    def at(self, macro_step: int) -> float | None:
        progress = (macro_step - self.start) / (self.end - self.start)
        lam = 1 / (1 + math.exp(-self.temperature * (0.5 - min(max(progress, 0.0), 1.0))))
        return 0.0 if lam < self.clamp else 1.0 if lam > 1 - self.clamp else lam


_LAMS = {"constant": ConstantLam, "uniform": UniformLam, "sigmoid": SigmoidLam}
_LAWS = {
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "clean_beta": CleanBeta,
    "beta": Beta,
    "log_grid": LogGrid,
}
_ANCHORS = {"linear": LinearAnchors, "log": LogAnchors}


def time_law(name: str, **options: float) -> TimeLaw:
    """A time law by its configuration name."""
    return _named(_LAWS, "time law", name, options)


def lam_law(name: str, **options: float) -> LamLaw:
    """A law of interval splits by its configuration name."""
    return _named(_LAMS, "lam law", name, options)


def anchors(name: str, **options: float) -> Anchors:
    """Sampler anchors by their configuration name."""
    return _named(_ANCHORS, "anchors", name, options)


def _named(table: Mapping[str, Any], what: str, name: str, options: Mapping[str, Any]) -> Any:
    if name not in table:
        raise UsageError(f"unknown {what} '{name}'{nearest(name, table)}")
    return call(table[name], options, f"{what} '{name}'")
