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
from xdistill.models import Batch, Cond, NoCond, TokenModel
from xdistill.process import Process
from xdistill.rng import Generator
from xdistill.samplers import Plan
from xdistill.state import Tokens


def sequences(vocabulary: int, length: int) -> Tensor:
    """[V^L, L] every sequence, last position fastest."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def random_table(vocabulary: int, length: int) -> Tensor:
    """[V^L] float64: a fixed joint law whose positions depend on each other."""
    weights = rng.rand(vocabulary**length, rng.generator("toy-table", vocabulary, length)) ** 2 + 0.02
    return weights / weights.sum()


@dataclass(frozen=True)
class Masking(Process[Tokens]):
    """Every token is kept with probability keep(t) = 1 - t, else replaced by the absorbing id `mask_id`."""

    mask_id: int

    def keep(self, t: Tensor) -> Tensor:
        """[B] float64."""
        return 1 - t.double()

    def prior(self, like: Tokens, generator: Generator) -> Tokens:
        return Tokens(torch.full_like(like.ids, self.mask_id), like.mask)

    def corrupt(self, x0: Tokens, t: Tensor, generator: Generator, noise: Tokens | None = None) -> Tokens:
        """A draw of z_t; `noise` fixes it: its mask is True where a token survives."""
        kept = noise.mask if noise else uniforms(x0, generator) < self.keep(t)[:, None]
        return Tokens(torch.where(kept, x0.ids, self.mask_id), x0.mask)


def uniforms(like: Tokens, generator: Generator) -> Tensor:
    """[B, L] float64 in [0, 1)."""
    batch, length = like.ids.shape
    if isinstance(generator, torch.Generator):
        return rng.rand(batch * length, generator).view(batch, length)
    assert isinstance(generator, Sequence), "tokens draw from real generators"
    return torch.stack([rng.rand(length, g) for g in generator])


class TablePosterior(nn.Module):
    """The exact TokenModel of a joint table: log p(x_i = v | the unmasked tokens of z_t), which no t changes."""

    table: Tensor
    sequences: Tensor

    def __init__(self, table: Tensor, vocabulary: int, length: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("table", table.double())
        self.register_buffer("sequences", sequences(vocabulary, length))

    def forward(self, z_t: Tokens, t: Tensor, cond: Cond) -> Tensor:
        """[B, L, V] float64."""
        masked = (z_t.ids == self.vocabulary)[:, None]
        agrees = (masked | (z_t.ids[:, None] == self.sequences)).all(2)  # [B, V^L]
        weight = agrees * self.table
        return torch.einsum("bs,slv->blv", weight / weight.sum(1, keepdim=True), self._one_hot()).log()

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

    def forward(self, z_t: Tokens, t: Tensor, cond: Cond) -> Tensor:
        """[B, L, V] log-probabilities."""
        dtype, mask = self.mix.weight.dtype, z_t.mask[..., None]
        here = torch.arange(z_t.ids.shape[1], device=z_t.ids.device)
        h = self.token(z_t.ids) + self.position(here) + self.time(t[:, None].to(dtype))[:, None]
        mean = (h * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        logits = self.output(F.silu(self.mix(torch.cat([h, mean.expand_as(h)], 2)))).log_softmax(2)
        copied = F.one_hot(z_t.ids.clamp(max=self.vocabulary - 1), self.vocabulary).to(dtype).log()
        return torch.where((z_t.ids == self.vocabulary)[..., None], logits, copied)


def ancestral(model: TokenModel, process: Masking, plan: Plan, z: Tokens, cond: Cond, generator: Generator) -> Tokens:
    """Unmask along the plan: from t to r, a masked token is revealed with probability (keep_r-keep_t)/(1-keep_t)."""
    for t, r in itertools.pairwise(plan.times):
        tb, rb = t.expand(z.batch), r.expand(z.batch)
        reveal = uniforms(z, generator) < ((process.keep(rb) - process.keep(tb)) / (1 - process.keep(tb)))[:, None]
        cdf = model(z, tb, cond).exp().cumsum(2)
        drawn = (uniforms(z, generator)[..., None] * cdf[..., -1:] >= cdf).sum(2).clamp(max=process.mask_id - 1)
        z = Tokens(torch.where(reveal & (z.ids == process.mask_id), drawn, z.ids), z.mask)
    return z


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
