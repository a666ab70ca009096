"""Tokens small enough to enumerate: a joint table of V^L sequences, absorbing masking, and its exact posterior."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill import rng
from xdistill.domain import Metric
from xdistill.domains.toy.metrics import bootstrap
from xdistill.models import Batch, Cond, NoCond
from xdistill.state import Tokens


def sequences(vocabulary: int, length: int) -> Tensor:
    """[V^L, L] every sequence, last position fastest."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def random_table(vocabulary: int, length: int) -> Tensor:
    """[V^L] float64: a fixed joint law whose positions depend on each other."""
    weights = rng.rand(vocabulary**length, rng.generator("toy-table", vocabulary, length)) ** 2 + 0.02
    return weights / weights.sum()


class TablePosterior(nn.Module):
    """The exact TokenModel of a joint table: log p(x_i = v | the unmasked tokens of z_t), which no t changes."""

    table: Tensor
    sequences: Tensor

    def __init__(self, table: Tensor, vocabulary: int, length: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("table", table.double())
        self.register_buffer("sequences", sequences(vocabulary, length))

    def forward(
        self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None, depth: float | None = None
    ) -> Tensor:
        """[B, L, V] float64; with `depth`, hidden states [B, L, V^L] that name the sequence at every position."""
        masked = (z_t.ids == self.vocabulary)[:, None]
        agrees = (masked | (z_t.ids[:, None] == self.sequences)).all(2)  # [B, V^L]
        if depth is not None:
            return agrees.double()[:, None].expand(-1, z_t.ids.shape[1], -1)
        weight = agrees * self.table
        log_p = torch.einsum("bs,slv->blv", weight / weight.sum(1, keepdim=True), self._one_hot()).log()
        return log_p if at is None else log_p[at]

    def _one_hot(self) -> Tensor:
        return F.one_hot(self.sequences, self.vocabulary).double()


class TokenNet(nn.Module):
    """A small TokenModel: every position sees the mean of all embeddings. Unmasked tokens are copied."""

    def __init__(self, vocabulary: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.vocabulary, self.sizes = vocabulary, {"vocabulary": vocabulary, "length": length, "width": width}
        self.token, self.position = nn.Embedding(vocabulary + 1, width), nn.Embedding(length, width)
        self.time, self.mix = nn.Linear(1, width), nn.Linear(2 * width, width)
        self.output = nn.Linear(width, vocabulary)

    def forward(
        self, z_t: Tokens, t: Tensor, cond: Cond, *, at: Tensor | None = None, depth: float | None = None
    ) -> Tensor:
        """[B, L, V] log-probabilities; with `depth`, the hidden states [B, L, width] they are read from."""
        dtype, mask = self.mix.weight.dtype, z_t.mask[..., None]
        here = torch.arange(z_t.ids.shape[1], device=z_t.ids.device)
        h = self.token(z_t.ids) + self.position(here) + self.time(t[:, None].to(here.device, dtype))[:, None]
        mean = (h * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        hidden = F.silu(self.mix(torch.cat([h, mean.expand_as(h)], 2)))
        if depth is not None:
            return hidden
        logits = self.output(hidden).log_softmax(2)
        copied = F.one_hot(z_t.ids.clamp(max=self.vocabulary - 1), self.vocabulary).to(dtype).log()
        log_p = torch.where((z_t.ids == self.vocabulary)[..., None], logits, copied)
        return log_p if at is None else log_p[at]


@dataclass(frozen=True)
class TokenSource:
    """Batches of sequences; draw `index` of `rank` is chunk index * world + rank of one endless stream."""

    table: Tensor
    vocabulary: int
    length: int
    batch_size: int
    seed: int
    real: bool = True

    def batch(self, index: int, rank: int, world: int) -> Batch[Tokens]:
        """ids [batch_size, L]; all masked without `real`."""
        g = rng.generator("toy-tokens", self.seed, index * world + rank)
        pick = torch.multinomial(self.table, self.batch_size, replacement=True, generator=g)
        ids = sequences(self.vocabulary, self.length)[pick]
        return Batch(
            Tokens(ids if self.real else torch.full_like(ids, self.vocabulary), torch.ones_like(ids, dtype=torch.bool)),
            NoCond(),
            real=self.real,
        )


def token_metrics(samples: Sequence[np.ndarray], table: Tensor, vocabulary: int, seed: int) -> dict[str, Metric]:
    """Total variation between the samples' histogram and the table; score = -total_variation."""
    ids = torch.as_tensor(np.stack(samples)).long()
    code = (ids * vocabulary ** torch.arange(ids.shape[1] - 1, -1, -1)).sum(1)
    one_hot = F.one_hot(code, len(table)).double()

    def distance(weights: Tensor | None) -> Tensor:
        histogram = one_hot.mean(0) if weights is None else weights @ one_hot
        return 0.5 * (histogram - table).abs().sum(-1)

    m = bootstrap(distance, len(ids), seed, "low")
    return {"score": Metric(-m.value, -m.high, -m.low, m.n, "high"), "total_variation": m}
