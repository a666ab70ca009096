"""Gaussian paths x_t = alpha(t) x0 + sigma(t) e and every change of prediction between them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from xdistill.process.base import Process
from xdistill.rng import Generator
from xdistill.state import Field, lerp


class Kind(StrEnum):
    """What a network predicts."""

    X0 = "x0"
    EPS = "eps"
    VELOCITY = "velocity"
    SCORE = "score"


@dataclass(frozen=True)
class Coeffs:
    """alpha, sigma and their time derivatives, float64 [B]."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor

    @property
    def wronskian(self) -> Tensor:
        """W = alpha sigma' - alpha' sigma, positive on every path used here."""
        return self.alpha * self.dsigma - self.dalpha * self.sigma

    def basis(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """(u, w) such that the quantity `kind` equals u x0 + w e."""
        one, zero = torch.ones_like(self.alpha), torch.zeros_like(self.alpha)
        match kind:
            case Kind.X0:
                return one, zero
            case Kind.EPS:
                return zero, one
            case Kind.VELOCITY:
                return self.dalpha, self.dsigma
            case Kind.SCORE:
                return zero, -1 / self.sigma


class GaussianProcess(Process[Field]):
    """x_t = alpha(t) x0 + sigma(t) e with e ~ N(0, I) in the layout's subspace."""

    @abstractmethod
    def coeffs(self, t: Tensor) -> Coeffs:
        """Schedule at times t [B], computed in float64."""

    def prior(self, like: Field, generator: Generator) -> Field:
        """sigma(1) e: the signal-free state every sampler starts from."""
        one = torch.ones(like.batch, dtype=torch.float64, device=like.value.device)
        return like.randn(generator).scale(self.coeffs(one).sigma)

    def corrupt(self, x0: Field, t: Tensor, generator: Generator, noise: Field | None = None) -> Field:
        c = self.coeffs(t)
        noise = x0.randn(generator) if noise is None else noise
        return lerp([(c.alpha, x0), (c.sigma, noise)])

    def convert(self, p: Field, source: Kind, to: Kind, x_t: Field, t: Tensor) -> Field:
        """Change the prediction `p` of kind `source` at (x_t, t) into kind `to`.

        Both kinds are linear in (x0, e), and so is x_t, hence to = lam x_t + mu p. With source (u, w) and
        target (c, d): lam = (c w - u d) / det, mu = (alpha d - sigma c) / det, det = alpha w - sigma u.
        Singular where the prediction carries no information: x0 and score at t=0, eps at alpha=0.
        """
        if source == to:
            return p
        k = self.coeffs(t)
        (u, w), (c, d) = k.basis(source), k.basis(to)
        det = k.alpha * w - k.sigma * u
        return lerp([((c * w - u * d) / det, x_t), ((k.alpha * d - k.sigma * c) / det, p)])

    def move(self, x0: Field, x_t: Field, t: Tensor, r: Tensor) -> Field:
        """Deterministic (DDIM) hop from t to r <= t along the line through x_t and the clean estimate x0."""
        a, b = self.coeffs(t), self.coeffs(r)
        ratio = b.sigma / a.sigma
        return lerp([(b.alpha - ratio * a.alpha, x0), (ratio, x_t)])

    def transition(self, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_{t|r}, sigma_{t|r}) of the forward kernel p(x_t | x_r), r < t."""
        a, b = self.coeffs(t), self.coeffs(r)
        alpha = a.alpha / b.alpha
        return alpha, (a.sigma**2 - alpha**2 * b.sigma**2).clamp(min=0).sqrt()
