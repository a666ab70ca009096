"""The contract of a corruption law."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor

from xdistill.rng import Generator

X = TypeVar("X")


class Process(ABC, Generic[X]):
    """p_t(x_t | x_0) with t = 0 clean and t = 1 prior."""

    @abstractmethod
    def prior(self, like: X, generator: Generator) -> X:
        """A sample of p_1 with the layout of `like`."""

    @abstractmethod
    def corrupt(self, x0: X, t: Tensor, generator: Generator, noise: X | None = None) -> X:
        """A sample of p_t(. | x0) for per-sample times t [B]; `noise` fixes the draw."""
