"""Absorbing corruption of tokens: every token survives with probability keep(t), else it becomes the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.process.base import Process
from xdistill.rng import Generator, Recorded
from xdistill.state import Tokens

ORDERS = ("independent", "spread")


@dataclass(frozen=True)
class MaskProcess(Process[Tokens]):
    """Masked diffusion with the log-linear schedule of MDLM (2406.07524): keep(t) = 1 - (1 - eps) t.

    mask_id: the absorbing id, anywhere in or just behind the vocabulary. eps: what survives at t = 1.
    order: how the tokens of a sequence are masked together, each with the same probability at any time. `independent`
    is MDLM; `spread` masks and reveals in an order whose neighbours lie far apart, so that the tokens that a student
    draws in one call, which are independent of each other, are those that depend on each other least.
    Times are float64 [B], 0 clean and 1 masked; padding and positions `given` by the user are never masked.
    """

    mask_id: int
    eps: float = 1e-3
    order: str = "independent"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UsageError(f"order={self.order}: expected {' or '.join(ORDERS)}")

    def keep(self, t: Tensor) -> Tensor:
        """alpha(t), the probability that a token is still visible."""
        return 1 - (1 - self.eps) * t.double()

    def sigma(self, t: Tensor) -> Tensor:
        """-log alpha(t): what networks are told of the time."""
        return -self.keep(t).log()

    def weight(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)) = 1 / t: of a masked token in the negative ELBO (2406.07524 eq. 10)."""
        return (1 - self.eps) / (1 - self.keep(t))

    def reveal(self, t: Tensor, r: Tensor) -> Tensor:
        """Probability that a token masked at t is visible at r < t; r = 0 reveals everything."""
        return (self.keep(r) - self.keep(t)) / (1 - self.keep(t))

    def masked(self, z: Tokens) -> Tensor:
        """[B, L] bool: positions still to be revealed."""
        return (z.ids == self.mask_id) & z.mask

    def prior(self, like: Tokens, generator: Generator) -> Tokens:
        """All masked, but for what is given."""
        return like.with_ids(torch.where(like.free, self.mask_id, like.ids))

    def places(self, like: Tokens, generator: Generator) -> Tensor:
        """[B, L] float64, each uniform in [0, 1): a token is visible at t when its place is below keep(t)."""
        u = uniforms(like, generator)
        if self.order == "independent":
            return u
        shift = (u * ((like.mask.cumsum(1) == 1) & like.mask)).sum(1)  # the first token's
        key = spread_key(like.free, shift).masked_fill(~like.free, 2**62)
        rank, size = key.argsort(1).argsort(1), like.free.sum(1, keepdim=True).clamp(min=1)
        return torch.where(like.free, (rank + (shift[:, None] * size * 2**20) % 1) / size, 0)

    def show(self, x0: Tokens, places: Tensor, t: Tensor) -> Tokens:
        """x0 with the tokens masked whose place is not below keep(t)."""
        kept = places < self.keep(t).to(places.device)[:, None]
        return x0.with_ids(torch.where(kept | ~x0.free, x0.ids, self.mask_id))

    def corrupt(self, x0: Tokens, t: Tensor, generator: Generator, noise: Tokens | None = None) -> Tokens:
        """A draw of z_t; `noise` fixes it: its mask is True where a token survives."""
        if noise is None:
            return self.show(x0, self.places(x0, generator), t)
        return x0.with_ids(torch.where(noise.mask | ~x0.free, x0.ids, self.mask_id))


def spread_key(chosen: Tensor, shift: Tensor) -> Tensor:
    """[B, L] integers that sort the `chosen` [B, L] positions into the van der Corput order from a start `shift` [B].

    Positions among the chosen, moved by shift in [0, 1) of their number, with their bits reversed: any first few of the
    order lie at nearly equal distances.
    """
    size = chosen.sum(1, keepdim=True)
    index = (chosen.cumsum(1) - 1 + (shift[:, None] * size).long()) % size.clamp(min=1)
    key = torch.zeros_like(index)
    for _ in range(max(int(size.max()) - 1, 1).bit_length()):
        key, index = key * 2 + index % 2, index // 2
    return key


def uniforms(like: Tokens, generator: Generator) -> Tensor:
    """[B, L] float64 in [0, 1), see `real_uniforms`."""
    if isinstance(generator, Recorded):
        return generator.next()
    return real_uniforms(like, 1, generator, torch.float64).squeeze(-1)


def real_uniforms(
    like: Tokens, count: int, generator: torch.Generator | Sequence[torch.Generator], dtype: torch.dtype
) -> Tensor:
    """[B, L, count] in [0, 1): one generator a sample makes row i a function of generator i alone.

    Drawn for real tokens only, sample after sample, and 0 elsewhere: padding changes no draw.
    """
    single = isinstance(generator, torch.Generator)
    generators = [generator] if isinstance(generator, torch.Generator) else generator
    tokens = [int(like.elements.sum())] if single else like.elements.tolist()
    drawn = [
        torch.rand(n, count, generator=g, device=g.device, dtype=dtype) for g, n in zip(generators, tokens, strict=True)
    ]
    u = torch.zeros(*like.ids.shape, count, dtype=dtype, device=like.ids.device)
    if drawn:
        u[like.mask] = torch.cat(drawn).to(u.device)
    return u
