"""Closed forms and exact expectations on one axis: what an objective must equal, without sampling error.

Everything is float64 and one-dimensional. Integrals of smooth, decaying functions use the trapezoid rule, which
converges faster than any power of the step; 1e-8 relative is routine. Notation: objectives spec 0 and 4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xdistill.models import Cond
from xdistill.process import GaussianProcess, Kind
from xdistill.state import Dense, Field


@dataclass(frozen=True)
class Mixture:
    """sum_k weights_k N(means_k, stds_k^2); tensors [K] that may carry a graph. One component is a Gaussian."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    @classmethod
    def normal(cls, mean: Tensor | float, std: Tensor | float) -> Mixture:
        """N(mean, std^2)."""
        m, s = (torch.as_tensor(v, dtype=torch.float64).reshape(1) for v in (mean, std))
        return cls(m, s, torch.ones(1, dtype=torch.float64))

    def noised(self, alpha: Tensor, sigma: Tensor) -> Mixture:
        """The law of alpha x + sigma e for scalar coefficients."""
        return Mixture(alpha * self.means, ((alpha * self.stds) ** 2 + sigma**2).sqrt(), self.weights)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), same shape as x."""
        return self._parts(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """d log p / dx, same shape as x."""
        return (self._parts(x).softmax(-1) * (self.means - x[..., None]) / self.stds**2).sum(-1)

    def denoiser(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x | alpha x + sigma e = x_t] by Tweedie's formula, for scalar coefficients with alpha > 0."""
        return (x_t + sigma**2 * self.noised(alpha, sigma).score(x_t)) / alpha

    def _parts(self, x: Tensor) -> Tensor:
        z = (x[..., None] - self.means) / self.stds
        return self.weights.log() - self.stds.log() - 0.5 * (z**2 + math.log(2 * math.pi))


def gaussian_flow_map(process: GaussianProcess, mean: float, std: float, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Where the probability flow of N(mean, std^2) takes x_t from time t to r: exact on every linear path."""
    a, b = process.coeffs(t), process.coeffs(r)
    at_t, at_r = (torch.hypot(c.alpha * std, c.sigma) for c in (a, b))
    return b.alpha * mean + at_r / at_t * (x_t - a.alpha * mean)


def gaussian_velocity(process: GaussianProcess, mean: float, std: float, x_t: Tensor, t: Tensor) -> Tensor:
    """dx_t/dt of that flow: the derivative of `gaussian_flow_map` in r at r = t."""
    c = process.coeffs(t)
    variance = (c.alpha * std) ** 2 + c.sigma**2
    slope = (c.alpha * c.dalpha * std**2 + c.sigma * c.dsigma) / variance
    return c.dalpha * mean + slope * (x_t - c.alpha * mean)


def axis(low: float = -12.0, high: float = 12.0, n: int = 4001) -> tuple[Tensor, float]:
    """Trapezoid nodes [n] and their spacing: sum f(nodes) * spacing integrates any f that decays inside."""
    return torch.linspace(low, high, n, dtype=torch.float64), (high - low) / (n - 1)


#: Generators of D_f = E_q[f(p / q)] as functions of log r; each has h(r) = r^2 f''(r) in objectives spec 4.0.
GENERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda log_r: -log_r,
    "forward_kl": lambda log_r: log_r.exp() * log_r,
    "js": lambda log_r: log_r.exp() * log_r - (1 + log_r.exp()) * (torch.nn.functional.softplus(log_r) - math.log(2)),
    "hellinger": lambda log_r: (1 - (log_r / 2).exp()) ** 2,
    "jeffreys": lambda log_r: log_r.expm1() * log_r,
    "neyman": lambda log_r: log_r.expm1() ** 2 * (-log_r).exp(),
}


def f_divergence(name: str, q: Mixture, p: Mixture) -> Tensor:
    """D_f(p || q) by quadrature (reverse_kl is KL(q || p)); differentiable in the parameters of q."""
    x, dx = axis()
    log_q, log_p = q.log_density(x), p.log_density(x)
    return (log_q.exp() * GENERATORS[name](log_p - log_q)).sum() * dx


def fisher_divergence(q: Mixture, p: Mixture) -> Tensor:
    """E_q |score_q - score_p|^2 by quadrature; differentiable in the parameters of q."""
    x, dx = axis()
    return (q.log_density(x).exp() * (q.score(x) - p.score(x)) ** 2).sum() * dx


def normal_nodes(draws: int, n: int = 121, width: float = 9.0) -> tuple[list[Tensor], Tensor]:
    """Product nodes of `draws` independent standard normals: ([n^draws, 1] each, weights [n^draws] that sum to one)."""
    z, dz = axis(-width, width, n)
    weight = torch.exp(-0.5 * z**2) * dz / math.sqrt(2 * math.pi)
    grids = torch.meshgrid(*[z] * draws, indexing="ij")
    weights = torch.ones(1, dtype=torch.float64)
    for _ in range(draws):
        weights = torch.outer(weights, weight).flatten()
    return [g.reshape(-1, 1) for g in grids], weights


@dataclass(frozen=True)
class Nodes(Dense):
    """A dense layout whose noise is a fixed sequence of tensors: runs an objective's own code on quadrature nodes.

    The i-th call of `randn` returns draws[i] whatever the generator; a surplus call raises StopIteration.
    """

    draws: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    @classmethod
    def state(cls, draws: list[Tensor]) -> Field:
        """A zero state over the given draws [B, D]."""
        return Field(torch.zeros_like(draws[0]), cls(len(draws[0]), iter(draws)))

    def randn(self, like: Tensor, generator: Any) -> Tensor:
        return next(self.draws).to(like)


class ExactDenoiser(nn.Module):
    """The network of a `Mixture` (a teacher, or an exact critic of a student): a FlowModel without parameters."""

    kind = Kind.X0

    def __init__(self, process: GaussianProcess, law: Mixture) -> None:
        super().__init__()
        self.process, self.law = process, law

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Field:
        """All samples must be at one time."""
        c = self.process.coeffs(t[:1])
        return Field(self.law.denoiser(x_t.value, c.alpha, c.sigma), x_t.layout)


class ExactLogit(nn.Module):
    """The optimal discriminator log p_t - log q_t of two mixtures."""

    def __init__(self, process: GaussianProcess, p: Mixture, q: Mixture) -> None:
        super().__init__()
        self.process, self.p, self.q = process, p, q

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Tensor:
        """[B]; all samples must be at one time."""
        c = self.process.coeffs(t[:1])
        p, q = (law.noised(c.alpha, c.sigma).log_density(x_t.value) for law in (self.p, self.q))
        return (p - q).squeeze(-1)


class AffineGenerator(nn.Module):
    """A one-step student with a Gaussian output: x_hat = mean + std z at the input sigma(1) z."""

    kind = Kind.X0

    def __init__(self, process: GaussianProcess, mean: float, std: float) -> None:
        super().__init__()
        self.process = process
        self.mean, self.std = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (mean, std))

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Field:
        z = x_t.scale(1 / self.process.coeffs(t).sigma)
        return Field(self.mean + self.std * z.value, x_t.layout)

    @property
    def law(self) -> Mixture:
        """N(mean, std^2) without a graph."""
        return Mixture.normal(self.mean.detach(), self.std.detach())


class GaussianFlowMap(nn.Module):
    """The exact average velocity of N(mean, std^2) in every coordinate, on the linear path; without r the velocity.

    u = (x_t - x_r) / (t - r) with the difference divided out, so that r = t is no special case. shift: an error of the
    clean estimate, D = x_t - t u; u is off by -shift / t. `scale` multiplies u and is there to be trained.
    """

    kind, flow_map, time_scale = Kind.VELOCITY, True, 1.0

    def __init__(self, mean: float, std: float, shift: float = 0.0) -> None:
        super().__init__()
        self.mean, self.std, self.shift = mean, std, shift
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x_t: Field, t: Tensor, cond: Cond, *, r: Tensor | None = None) -> Field:
        t, r = (x_t.layout.expand(s, x_t.value) for s in (t, t if r is None else r))
        at_t, at_r = (torch.sqrt(((1 - s) * self.std) ** 2 + s**2) for s in (t, r))
        slope = ((t + r) - self.std**2 * (2 - t - r)) / (at_t * (at_t + at_r))
        u = slope * (x_t.value - (1 - t) * self.mean) - self.mean - self.shift / t
        return Field((u * self.scale).to(x_t.value), x_t.layout).project()


@dataclass(frozen=True)
class At:
    """The time law of a single time."""

    t: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] float64."""
        return torch.full((n,), self.t, dtype=torch.float64)


def mask_marginal(table: Tensor, vocabulary: int, length: int, keep: float) -> Tensor:
    """Law of z_t over (V+1)^L states (mask id V, last position fastest) when a token survives with probability keep."""
    states = list(itertools.product(range(vocabulary + 1), repeat=length))
    clean = list(itertools.product(range(vocabulary), repeat=length))
    out = torch.zeros(len(states), dtype=torch.float64)
    for i, z in enumerate(states):
        masked = z.count(vocabulary)
        agree = sum(float(table[j]) for j, x in enumerate(clean) if _agrees(z, x, vocabulary))
        out[i] = keep ** (length - masked) * (1 - keep) ** masked * agree
    return out


def mask_posterior(table: Tensor, vocabulary: int, z: tuple[int, ...]) -> Tensor:
    """p(x_i = v | z) by Bayes' rule over all sequences, [L, V]."""
    out = torch.zeros(len(z), vocabulary, dtype=torch.float64)
    for j, x in enumerate(itertools.product(range(vocabulary), repeat=len(z))):
        if _agrees(z, x, vocabulary):
            for i, v in enumerate(x):
                out[i, v] += table[j]
    return out / out.sum(1, keepdim=True)


def _agrees(z: tuple[int, ...], x: tuple[int, ...], mask_id: int) -> bool:
    return all(a in (mask_id, b) for a, b in zip(z, x, strict=True))
