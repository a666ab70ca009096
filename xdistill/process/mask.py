"""Absorbing corruption of tokens: every token survives with probability keep(t), else it becomes the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill import rng
from xdistill.process.base import Process
from xdistill.rng import Generator, Recorded
from xdistill.state import Tokens


@dataclass(frozen=True)
class MaskProcess(Process[Tokens]):
    """Masked diffusion with the log-linear schedule of MDLM (2406.07524): keep(t) = 1 - (1 - eps) t.

    mask_id: the absorbing id, anywhere in or just behind the vocabulary. eps: what survives at t = 1.
    Times are float64 [B], 0 clean and 1 masked; padding and positions `given` by the user are never masked.
    """

    mask_id: int
    eps: float = 1e-3

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

    def corrupt(self, x0: Tokens, t: Tensor, generator: Generator, noise: Tokens | None = None) -> Tokens:
        """A draw of z_t; `noise` fixes it: its mask is True where a token survives."""
        kept = noise.mask if noise else uniforms(x0, generator) < self.keep(t).to(x0.ids.device)[:, None]
        return x0.with_ids(torch.where(kept | ~x0.free, x0.ids, self.mask_id))


def uniforms(like: Tokens, generator: Generator) -> Tensor:
    """[B, L] float64 in [0, 1); one generator a sample makes row i a function of generator i alone.

    Drawn for real tokens only, sample after sample, and 0 elsewhere: padding changes no draw.
    """
    if isinstance(generator, Recorded):
        return generator.next()
    u = torch.zeros(like.ids.shape, dtype=torch.float64, device=like.ids.device)
    if isinstance(generator, torch.Generator):
        return u.masked_scatter(like.mask, rng.rand(int(like.mask.sum()), generator).to(u))
    assert isinstance(generator, Sequence)
    counts = like.elements.tolist()
    rows = [rng.rand(n, g).to(u) for n, g in zip(counts, generator, strict=True)]
    return u.masked_scatter(like.mask, torch.cat(rows)) if rows else u
