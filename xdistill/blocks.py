"""What a block of tokens is conditioned on in block diffusion (BD3-LM, 2503.09573): clean earlier blocks, or a cache.

A model that serves block diffusion takes these as its `cond`; they replace any other conditioning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class EarlierBlocks:
    """The clean sequence: a position of block b sees its own block of z_t, and the clean blocks before b.

    ids: [B, L] int64; what is not before the last block that anybody looks at is never seen. size: of a block.
    """

    ids: Tensor
    size: int

    def drop(self) -> EarlierBlocks:
        return self

    def to(self, device: torch.device | str) -> EarlierBlocks:
        return EarlierBlocks(self.ids.to(device), self.size)


@dataclass(frozen=True)
class Past:
    """Keys and values of tokens that a call does not see again.

    start: position of the call's first token. store: whether the call's own keys and values are remembered too.
    layers: [B, heads, P, d] keys and values of each layer, positions 0..P-1; those of the call's positions are replaced
    by its own, so that P = start is a cache of what precedes a block, and P = L one of all around it.
    mask: [B, L] bool, True = real token; None when there is no padding.
    """

    start: int = 0
    store: bool = False
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    mask: Tensor | None = None

    def join(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values that a layer attends to, those of this call [B, heads, n, d] in their place."""
        if layer in self.layers:
            k, v = (
                torch.cat([old[:, :, : self.start], new, old[:, :, self.start + new.shape[2] :]], 2)
                for old, new in zip(self.layers[layer], (k, v), strict=True)
            )
        if self.store:
            self.layers[layer] = (k, v)
        return k, v

    def at(self, start: int, *, store: bool = False) -> Past:
        """The same memory for a call whose tokens begin at `start`."""
        return Past(start, store, self.layers, self.mask)

    def seen(self, mask: Tensor) -> Tensor:
        """Which of all keys are real, [B, P], when those of the call are by `mask` [B, n]."""
        stop = self.start + mask.shape[1]
        whole = self.mask
        if whole is None:
            whole = torch.ones(len(mask), max(self.length, stop), dtype=torch.bool, device=mask.device)
        return torch.cat([whole[:, : self.start], mask, whole[:, stop : self.length]], 1)

    @property
    def length(self) -> int:
        """Positions remembered."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def drop(self) -> Past:
        return self

    def to(self, device: torch.device | str) -> Past:
        layers = {i: (k.to(device), v.to(device)) for i, (k, v) in self.layers.items()}
        return Past(self.start, self.store, layers, None if self.mask is None else self.mask.to(device))


def doubled_mask(length: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """[2L, 2L] bool, who sees whom in [z_t ; x0] (text spec 3): True where row attends to column.

    A noisy token sees its own noisy block and the clean blocks before it; a clean one the clean blocks up to its own.
    """
    block = torch.arange(length, device=device) // size
    row, column = block[:, None], block[None]
    noisy = torch.cat([row == column, column < row], 1)
    clean = torch.cat([torch.zeros_like(row == column), column <= row], 1)
    return torch.cat([noisy, clean])
