"""The protocols a domain's networks satisfy, and the little that objectives and samplers share about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.process import GaussianProcess, Kind
from xdistill.state import Field, Tokens

X = TypeVar("X")


class Cond(Protocol):
    """Conditioning, opaque to the core: labels, text, a reference spectrogram, voxel coordinates.

    Where a student can be told how strongly its teacher is guided, a condition also has `guidance` (the scale w [B], or
    None) and `with_guidance(w)`; `told` and `tell` ask.
    """

    def drop(self) -> Cond:
        """The unconditional version."""

    def to(self, device: torch.device | str) -> Cond:
        """The same conditioning on another device."""


@dataclass(frozen=True)
class NoCond:
    """Nothing to condition on."""

    def drop(self) -> NoCond:
        return self

    def to(self, device: torch.device | str) -> NoCond:
        return self


def told(cond: Cond) -> Tensor | None:
    """The guidance scale w [B] that a condition tells a student; None where it tells none."""
    return getattr(cond, "guidance", None)


def tell(cond: Cond, scale: Tensor | None) -> Cond:
    """The condition with the scale w [B] that a student shall imitate, or without one.

    Raises UsageError for conditions that tell none.
    """
    if not hasattr(cond, "with_guidance"):
        raise UsageError("conditions of this domain tell a network no guidance scale: leave guidance.range out")
    return cond.with_guidance(scale)


class FlowModel(Protocol):
    """A network at one time of a continuous process.

    Implementations are nn.Modules that keep their parameters in submodules (ZeRO hooks see tensors there)
    and return a prediction of `kind`, in the layout of x_t.
    """

    kind: Kind

    def __call__(self, x_t: Field, t: Tensor, cond: Cond) -> Field: ...


@runtime_checkable
class FlowMapModel(Protocol):
    """A flow model with a second time input: the end r [B] <= t of a jump (SplitMeanFlow, MeanFlow 2505.13447).

    A call with `r` predicts, in `kind`, the average over the jump; without it, or with r = t, what a FlowModel predicts
    at t. flow_map: whether `r` is taken. time_scale: what the network multiplies t with before its sinusoids; its time
    derivative grows with it, and finite differences need steps below 1 / time_scale.
    """

    kind: Kind
    flow_map: bool
    time_scale: float

    def __call__(self, x_t: Field, t: Tensor, cond: Cond, *, r: Tensor | None = None) -> Field: ...


class TokenModel(Protocol):
    """Log-probabilities of the clean tokens given a partly masked sequence.

    A call returns log p(x0) [B, L, V], float32 or float64; visible tokens are copied and the mask, where it has a
    column, has probability 0. With `at` ([B, L] bool) only those positions go through the vocabulary head: [N, V], rows
    in the order of `at.nonzero()`. Padding must not change the other positions.
    """

    def __call__(self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None) -> Tensor: ...


class ARModel(Protocol):
    """Next-token network with an explicit cache."""

    def start(self, cond: Cond) -> object: ...

    def next(self, cache: object, prev: Tensor) -> tuple[Tensor, object]: ...


@runtime_checkable
class Featurizer(Protocol):
    """A network that exposes pooled features of a noised state: what a discriminator head reads."""

    feature_dim: int

    def features(self, x_t: Field, t: Tensor, cond: Cond) -> Tensor:
        """[B, feature_dim], pooled over valid elements so that one sample gives one logit."""


@dataclass(frozen=True)
class Batch(Generic[X]):
    """What a training phase starts from.

    like: a state with the layout that samples take (lengths, masks); its values are data when `real`.
    real: whether `like` holds clean data; data-free objectives work with either.
    """

    like: X
    cond: Cond = field(default_factory=NoCond)
    real: bool = True

    def to(self, device: torch.device | str) -> Batch[X]:
        """The same batch on another device."""
        return Batch(self.like.to(device), self.cond.to(device), self.real)  # type: ignore[attr-defined]


def denoise(model: FlowModel, process: GaussianProcess, x_t: Field, t: Tensor, cond: Cond) -> Field:
    """The clean estimate E[x0 | x_t] of any flow model, masked and gauge-free."""
    return process.convert(model(x_t, t, cond), model.kind, Kind.X0, x_t, t).project(prediction=True)


def velocity(model: FlowModel, process: GaussianProcess, x_t: Field, t: Tensor, cond: Cond) -> Field:
    """The probability-flow velocity dx_t/dt of any flow model, masked and gauge-free."""
    return process.convert(model(x_t, t, cond), model.kind, Kind.VELOCITY, x_t, t).project()


def average_velocity(
    model: FlowMapModel, process: GaussianProcess, x_t: Field, t: Tensor, r: Tensor, cond: Cond
) -> Field:
    """u(x_t, t, r), so that x_r = x_t - (t - r) u, on the linear path; masked and gauge-free.

    The change of prediction at (x_t, t) is affine with weights that do not depend on x_t, so it holds for averages too.
    A plain flow model gives its velocity at t: its jumps are Euler steps.
    """
    found = model(x_t, t, cond, r=r) if getattr(model, "flow_map", False) else model(x_t, t, cond)
    return process.convert(found, model.kind, Kind.VELOCITY, x_t, t).project()
