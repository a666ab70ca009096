"""The four Gaussian paths in use: rectified flow, variance preserving, trigonometric, EDM."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill.process.gaussian import Coeffs, GaussianProcess


@dataclass(frozen=True)
class Linear(GaussianProcess):
    """Rectified flow: alpha = 1 - t, sigma = t, velocity e - x0."""

    def coeffs(self, t: Tensor) -> Coeffs:
        t = t.double()
        one = torch.ones_like(t)
        return Coeffs(1 - t, t, -one, one)


@dataclass(frozen=True)
class Trig(GaussianProcess):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def coeffs(self, t: Tensor) -> Coeffs:
        half = math.pi / 2
        phi = half * t.double()
        return Coeffs(phi.cos(), phi.sin(), -half * phi.sin(), half * phi.cos())


@dataclass(frozen=True)
class VP(GaussianProcess):
    """Variance preserving with linear beta(t): alpha = exp(-1/2 int_0^t beta), sigma^2 = 1 - alpha^2."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def coeffs(self, t: Tensor) -> Coeffs:
        t = t.double()
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        integral = t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)
        alpha = torch.exp(-0.5 * integral)
        sigma = torch.sqrt(-torch.expm1(-integral))
        dalpha = -0.5 * beta * alpha
        return Coeffs(alpha, sigma, dalpha, -alpha * dalpha / sigma)


@dataclass(frozen=True)
class EDM(GaussianProcess):
    """alpha = 1, sigma(t) = (s0 + t (s1 - s0))^rho with s = sigma_{min,max}^(1/rho) (2206.00364, eq. 5).

    t is a label: what matters is sigma. sigma(0) = sigma_min is not zero.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def coeffs(self, t: Tensor) -> Coeffs:
        t = t.double()
        s0, s1 = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        base = s0 + t * (s1 - s0)
        one = torch.ones_like(t)
        return Coeffs(one, base**self.rho, 0 * one, self.rho * base ** (self.rho - 1) * (s1 - s0))
