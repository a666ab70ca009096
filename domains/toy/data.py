"""Toy data as a pure function of its index, and the default sizes of the domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xdistill import rng
from xdistill.domains.toy.teacher import Label, circle
from xdistill.errors import UsageError
from xdistill.models import Batch
from xdistill.process import EDM, VP, GaussianProcess, Kind, Linear, Trig
from xdistill.state import Dense, Field, Padded

PROCESSES: dict[str, Callable[[], GaussianProcess]] = {"linear": Linear, "vp": VP, "trig": Trig, "edm": EDM}


@dataclass(frozen=True)
class ToyConfig:
    """The toy domain's section of a configuration.

    task: `gaussian`, `mixture` or `tokens`. process: `linear`, `vp`, `trig` or `edm`. kind: what networks predict.
    dim: coordinates of a point. mean, std: of the Gaussian (mean in every coordinate), and of each mode.
    modes, radius: the mixture's circle. points: 0 for one point a sample, else sets of 1 to `points` points that
    share a mode. labels: tell the networks the mode. teacher: `analytic` (exact) or `mlp` (shipped weights).
    vocabulary, length: of the tokens. width, depth: of the MLP. teacher_steps: network calls of the reference sampler.
    """

    task: str = "mixture"
    process: str = "linear"
    kind: str = "velocity"
    dim: int = 2
    mean: float = 0.0
    std: float = 0.15
    modes: int = 8
    radius: float = 1.5
    points: int = 0
    labels: bool = False
    vocabulary: int = 3
    length: int = 2
    teacher: str = "analytic"
    width: int = 64
    depth: int = 3
    teacher_steps: int = 64

    def __post_init__(self) -> None:
        one_of("task", self.task, ("gaussian", "mixture", "tokens"))
        one_of("process", self.process, PROCESSES)
        one_of("kind", self.kind, tuple(Kind))
        one_of("teacher", self.teacher, ("analytic", "mlp"))

    @classmethod
    def parse(cls, cfg: Mapping[str, Any]) -> ToyConfig:
        """From a plain mapping (`name`, the registered domain, is ignored); raises UsageError for what is unknown."""
        cfg = {k: v for k, v in cfg.items() if k != "name"}
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(cfg) - known):
            raise UsageError(f"toy domain: unknown key '{unknown[0]}', it knows {', '.join(sorted(known))}")
        return cls(**cfg)

    @property
    def means(self) -> Tensor:
        """[K, D] float64 centres of the components."""
        if self.task == "gaussian":
            return torch.full((1, self.dim), self.mean, dtype=torch.float64)
        return circle(self.modes, self.radius, self.dim)


def one_of(key: str, value: str, choices: Any) -> None:
    """Raise UsageError unless `value` is among the choices."""
    if value not in choices:
        raise UsageError(f"toy domain: {key} '{value}' is not one of {', '.join(choices)}")


def integer(key: str, value: Any, low: int, high: int) -> int:
    """A requested integer in [low, high]; raises UsageError naming the key."""
    try:
        number = int(value)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise UsageError(f"toy domain: {key}={value} must be a whole number from {low} to {high}")
    return number


@dataclass(frozen=True)
class PointSource:
    """Batches of points; draw `index` of `rank` is chunk index * world + rank of one endless stream.

    So two ranks see what one rank sees in two draws. Without `real` the values are zero: sizes and labels only.
    """

    cfg: ToyConfig
    batch_size: int
    seed: int
    real: bool = True

    def batch(self, index: int, rank: int, world: int) -> Batch[Field]:
        """Values [batch_size, D], or [batch_size, points, D] for sets; float32."""
        g = rng.generator("toy", self.seed, index * world + rank)
        cfg, n = self.cfg, self.batch_size
        component = torch.randint(len(cfg.means), (n,), generator=g)
        lengths = torch.randint(1, cfg.points + 1, (n,), generator=g) if cfg.points else None
        like = blank(cfg, n, lengths)
        if self.real:
            like = draw(cfg, like, component, g)
        return Batch(like, condition(cfg, component), real=self.real)


@dataclass(frozen=True)
class FolderSource:
    """Batches drawn with replacement from the user's own point sets [n_i, D]; labels are unknown."""

    cfg: ToyConfig
    samples: Sequence[np.ndarray]
    batch_size: int
    seed: int
    real: bool = True

    def batch(self, index: int, rank: int, world: int) -> Batch[Field]:
        """As `PointSource.batch`, with values from the files."""
        g = rng.generator("toy-folder", self.seed, index * world + rank)
        picks = torch.randint(len(self.samples), (self.batch_size,), generator=g).tolist()
        points = [torch.as_tensor(self.samples[i], dtype=torch.float32) for i in picks]
        lengths = torch.tensor([len(p) for p in points]) if self.cfg.points else None
        like = blank(self.cfg, self.batch_size, lengths)
        if self.real:
            for row, p in zip(like.value, points, strict=True):
                row.view(-1, self.cfg.dim)[: len(p)] = p
        return Batch(like, Label(torch.full((self.batch_size,), -1)), real=self.real)


def check_samples(cfg: ToyConfig, samples: Sequence[np.ndarray], folder: str) -> None:
    """Raise UsageError unless every sample is [n, dim] with n = 1, or 1 to `points` for sets."""
    most = cfg.points or 1
    for s in samples:
        if s.ndim != 2 or s.shape[1] != cfg.dim or not 1 <= len(s) <= most:
            raise UsageError(f"{folder}: a sample of shape {s.shape}, expected [1 to {most}, {cfg.dim}]")


def blank(cfg: ToyConfig, n: int, lengths: Tensor | None) -> Field:
    """A zero state of n points, or of n sets of the given sizes padded to `points`."""
    if lengths is None:
        return Field(torch.zeros(n, cfg.dim), Dense(n))
    return Field(torch.zeros(n, cfg.points, cfg.dim), Padded.from_lengths(lengths, cfg.points))


def draw(cfg: ToyConfig, like: Field, component: Tensor, generator: rng.Generator) -> Field:
    """Data of the given components [B] in the layout of `like`."""
    centre = cfg.means[component].to(like.value)
    centre = centre[:, None].expand_as(like.value) if like.value.dim() == 3 else centre
    return (Field(centre, like.layout) + like.randn(generator) * cfg.std).project()


def condition(cfg: ToyConfig, component: Tensor) -> Label:
    """The label of each sample, or none."""
    return Label(component if cfg.labels else torch.full_like(component, -1))
