"""Attention biases of every distinct pair feature: a function of the weights alone, kept until these change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

ROWS = 2**16  # a table of up to so many rows is made however few pairs there are: the next calls find it


def differentiable(tensors: Sequence[Tensor]) -> bool:
    """Whether a derivative may be asked of a function of `tensors`, backward or forward."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    return not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


@dataclass(frozen=True)
class _Entry:
    weights: tuple[Tensor, ...]
    table: Tensor

    def holds(self, weights: Sequence[Tensor]) -> bool:
        """By value: optimizers that write through flat buffers change weights without a trace in their versions."""
        return len(weights) == len(self.weights) and all(
            a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
            for a, b in zip(weights, self.weights, strict=True)
        )


class TableCache:
    """Tables by key, on CPUs; elsewhere the comparison of the weights would wait for the device, and is not worth it.

    Copies and pickles of a network start with an empty one.
    """

    def __init__(self) -> None:
        self._entries: dict[Any, _Entry] = {}

    def __reduce__(self) -> tuple[type[TableCache], tuple[()]]:
        return TableCache, ()

    def get(self, key: Any, weights: Sequence[Tensor], build: Callable[[], Tensor]) -> Tensor:
        """What `build` returns for `key` and these weights; it must depend on nothing else, and nobody may ask a
        derivative of it (see `differentiable`).
        """
        if torch.compiler.is_compiling() or weights[0].device.type != "cpu":
            return build()
        found = self._entries.get(key)
        if found is None or not found.holds(weights):
            found = _Entry(tuple(w.detach().clone() for w in weights), build())
            self._entries[key] = found
        return found.table


def gather(table: Tensor, index: Tensor) -> Tensor:
    """`table[:, index]` for a flat index."""
    if table.requires_grad or table.is_cuda or torch.compiler.is_compiling():
        # Rows of the transposed table: its gradient is an index_add, 6 times faster than that of an embedding.
        return table.index_select(1, index)
    # Row by row: in bfloat16 a third of the time of one index_select on a CPU.
    out = table.new_empty(len(table), len(index))
    for row, target in zip(table, out, strict=True):
        torch.index_select(row, 0, index, out=target)
    return out
