"""What a process moves: `Field` (continuous) and `Tokens` (discrete), with per-sample algebra over valid entries.

A layout knows which entries are real. Every sum, mean and norm of a state goes through it, so an objective
cannot depend on padding, on batch composition or on the gauge (a protein has no absolute position).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from xdistill import rng


class Layout(Protocol):
    """How a batch of samples lies in one tensor."""

    @property
    def batch(self) -> int:
        """Number of samples B."""

    def dims(self, value: Tensor) -> Tensor:
        """Number of valid scalars of each sample, [B]."""

    def elements(self, value: Tensor) -> Tensor:
        """Number of valid elements (residues, voxels; 1 for a dense sample), [B]."""

    def sum(self, value: Tensor) -> Tensor:
        """Per-sample sum over valid scalars, [B]; accumulated in float32 or wider."""

    def expand(self, per_sample: Tensor, value: Tensor) -> Tensor:
        """[B] -> a tensor that broadcasts against `value`."""

    def project(self, value: Tensor, prediction: bool = False) -> Tensor:
        """Zero invalid entries and remove the gauge; idempotent. `prediction`: of a clean estimate, not a state."""

    def randn(self, like: Tensor, generator: rng.Generator) -> Tensor:
        """Prior noise with the shape of `like`, masked and gauge-free."""

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


@dataclass(frozen=True)
class Dense:
    """`value [B, ...]`, every entry valid."""

    batch: int

    def dims(self, value: Tensor) -> Tensor:
        return torch.full((self.batch,), value[0].numel() if self.batch else 0, device=value.device)

    def elements(self, value: Tensor) -> Tensor:
        return torch.ones(self.batch, device=value.device)

    def sum(self, value: Tensor) -> Tensor:
        return _wide(value).flatten(1).sum(1)

    def expand(self, per_sample: Tensor, value: Tensor) -> Tensor:
        return per_sample.reshape(-1, *[1] * (value.dim() - 1))

    def project(self, value: Tensor, prediction: bool = False) -> Tensor:
        return value

    def randn(self, like: Tensor, generator: rng.Generator) -> Tensor:
        if isinstance(generator, rng.Recorded):
            return generator.next().to(like)
        if isinstance(generator, torch.Generator):
            return rng.randn(like.shape, generator, like.device, like.dtype)
        return torch.stack([rng.randn(like.shape[1:], g, like.device, like.dtype) for g in generator])

    def to(self, device: torch.device | str) -> Dense:
        return self


@dataclass(frozen=True)
class Padded:
    """`value [B, N, D]` with `mask [B, N]` (True = real element) and padding at the end.

    zero_com: the state lives in the zero-centre-of-mass subspace (noise, data and predictions alike).
    padded_mean: centre states by the padded length instead of the valid one, and leave the mean in clean
        estimates. This reproduces a flaw of the published SiD-for-Proteina code (spec protein 2.3) and exists
        for its fixtures only; with it `project` is not idempotent and padding changes results.
    scored: [B, N] bool, the elements that sums, means and norms count (the masked span of an infilling loss); None is
        all real ones. It must lie inside `mask`.
    """

    mask: Tensor
    zero_com: bool = False
    padded_mean: bool = False
    scored: Tensor | None = None

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | Tensor, width: int | None = None, **kw: Any) -> Padded:
        """Layout of samples of the given lengths, padded to `width` (default: the longest)."""
        n = torch.as_tensor(lengths)
        return cls(torch.arange(width or int(n.max()))[None] < n[:, None], **kw)

    @property
    def batch(self) -> int:
        return self.mask.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Valid elements of each sample, [B] int64."""
        return self.mask.sum(1)

    @property
    def counted(self) -> Tensor:
        """[B, N] bool: the elements that sums and means are over."""
        return self.mask if self.scored is None else self.scored

    def dims(self, value: Tensor) -> Tensor:
        return self.elements(value) * value.shape[-1]

    def elements(self, value: Tensor) -> Tensor:
        return self.counted.sum(1)

    def sum(self, value: Tensor) -> Tensor:
        return _wide(value).masked_fill(~self.counted[..., None], 0).sum((1, 2))

    def expand(self, per_sample: Tensor, value: Tensor) -> Tensor:
        return per_sample[:, None, None]

    def project(self, value: Tensor, prediction: bool = False) -> Tensor:
        if self.padded_mean and prediction:
            return value.masked_fill(~self.mask[..., None], 0)
        count = torch.full_like(self.lengths, self.mask.shape[1]) if self.padded_mean else self.lengths
        return self._centre(value, count)

    def _centre(self, value: Tensor, count: Tensor) -> Tensor:
        padding = ~self.mask[..., None]  # filled, not multiplied: a network may leave NaN there
        value = value.masked_fill(padding, 0)
        if not self.zero_com:
            return value
        mean = value.sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]
        return (value - mean).masked_fill(padding, 0)

    def randn(self, like: Tensor, generator: rng.Generator) -> Tensor:
        if isinstance(generator, rng.Recorded):
            return self._centre(generator.next().to(like), self.lengths)
        noise = torch.zeros_like(like)
        if isinstance(generator, torch.Generator):
            # Valid elements only, sample after sample: the draw is that of `Ragged` and no padding can change it.
            shape = (int(self.lengths.sum()), *like.shape[2:])
            noise[self.mask] = rng.randn(shape, generator, like.device, like.dtype)
        else:
            for i, (g, n) in enumerate(zip(generator, self.lengths.tolist(), strict=True)):
                noise[i, :n] = rng.randn((n, *like.shape[2:]), g, like.device, like.dtype)
        return self._centre(noise, self.lengths)

    def to(self, device: torch.device | str) -> Padded:
        scored = None if self.scored is None else self.scored.to(device)
        return replace(self, mask=self.mask.to(device), scored=scored)


@dataclass(frozen=True)
class Ragged:
    """`value [M, C]`: the elements of all samples one after the other; `index [M]` names their sample."""

    index: Tensor
    batch: int
    coords: Tensor | None = None

    def dims(self, value: Tensor) -> Tensor:
        return self.elements(value) * value.shape[-1]

    def elements(self, value: Tensor) -> Tensor:
        return torch.bincount(self.index, minlength=self.batch)

    def sum(self, value: Tensor) -> Tensor:
        rows = _wide(value).sum(-1)
        return torch.zeros(self.batch, dtype=rows.dtype, device=rows.device).index_add(0, self.index, rows)

    def expand(self, per_sample: Tensor, value: Tensor) -> Tensor:
        return per_sample[self.index][:, None]

    def project(self, value: Tensor, prediction: bool = False) -> Tensor:
        return value

    def randn(self, like: Tensor, generator: rng.Generator) -> Tensor:
        if isinstance(generator, rng.Recorded):
            return generator.next().to(like)
        if isinstance(generator, torch.Generator):
            return rng.randn(like.shape, generator, like.device, like.dtype)
        noise = torch.zeros_like(like)
        for i, g in enumerate(generator):
            mine = self.index == i
            noise[mine] = rng.randn((int(mine.sum()), like.shape[1]), g, like.device, like.dtype)
        return noise

    def to(self, device: torch.device | str) -> Ragged:
        coords = None if self.coords is None else self.coords.to(device)
        return Ragged(self.index.to(device), self.batch, coords)


@dataclass(frozen=True)
class Field:
    """A continuous state: a tensor and the layout that says what in it is real."""

    value: Tensor
    layout: Layout

    def _with(self, value: Tensor) -> Field:
        return Field(value, self.layout)

    def scale(self, a: Tensor) -> Field:
        """Multiply sample b by a[b]; float64 coefficients are cast to the state's dtype last."""
        factor = self.layout.expand(a, self.value).to(self.value)
        return self._with(self.value * factor)

    def __add__(self, other: Field) -> Field:
        return self._with(self.value + other.value)

    def __sub__(self, other: Field) -> Field:
        return self._with(self.value - other.value)

    def __mul__(self, a: float) -> Field:
        return self._with(self.value * a)

    __rmul__ = __mul__

    def __neg__(self) -> Field:
        return self._with(-self.value)

    def dot(self, other: Field) -> Tensor:
        """Per-sample inner product over valid scalars, [B]."""
        return self.layout.sum(_wide(self.value) * _wide(other.value))

    def mean_dot(self, other: Field) -> Tensor:
        """`dot` divided by the number of valid scalars, [B]."""
        return self.dot(other) / self.dims

    def mean_square(self) -> Tensor:
        """Per-sample mean of squares over valid scalars, [B]."""
        return self.mean_dot(self)

    def mean_abs(self) -> Tensor:
        """Per-sample mean of absolute values over valid scalars, [B]."""
        return self.layout.sum(self.value.abs()) / self.dims

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self.layout.batch

    @property
    def dims(self) -> Tensor:
        """Valid scalars of each sample, [B]."""
        return self.layout.dims(self.value)

    @property
    def elements(self) -> Tensor:
        """Valid elements (residues, voxels) of each sample, [B]."""
        return self.layout.elements(self.value)

    def project(self, prediction: bool = False) -> Field:
        """Mask and gauge re-applied; `prediction` says that this is a clean estimate rather than a state."""
        return self._with(self.layout.project(self.value, prediction))

    def randn(self, generator: rng.Generator) -> Field:
        """Prior noise of this layout: unit normal, masked, gauge-free."""
        return self._with(self.layout.randn(self.value, generator))

    def zeros(self) -> Field:
        """The zero state of this layout."""
        return self._with(torch.zeros_like(self.value))

    def detach(self) -> Field:
        """The same values without a graph."""
        return self._with(self.value.detach())

    def to(self, device: torch.device | str) -> Field:
        """The same state on another device."""
        return Field(self.value.to(device), self.layout.to(device))


def lerp(terms: Sequence[tuple[Tensor, Field]]) -> Field:
    """sum_i a_i x_i with per-sample coefficients a_i [B]."""
    total = terms[0][1].scale(terms[0][0])
    for a, x in terms[1:]:
        total = total + x.scale(a)
    return total


@dataclass(frozen=True)
class Tokens:
    """A discrete state: `ids [B, L]` int64 and `mask [B, L]` bool (True = real token).

    given: [B, L] bool, positions whose token the user fixed (a prompt, the text around a gap); None is none.
    """

    ids: Tensor
    mask: Tensor
    given: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self.ids.shape[0]

    @property
    def elements(self) -> Tensor:
        """Real tokens of each sample, [B]."""
        return self.mask.sum(1)

    @property
    def free(self) -> Tensor:
        """[B, L] bool: real tokens that corruption and samplers may change."""
        return self.mask if self.given is None else self.mask & ~self.given

    def with_ids(self, ids: Tensor) -> Tokens:
        """Other tokens in the same layout."""
        return Tokens(ids, self.mask, self.given)

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        given = None if self.given is None else self.given.to(device)
        return Tokens(self.ids.to(device), self.mask.to(device), given)
