"""Feature factories: time, residue index, fold class and geometry (nm), each set mapped to one width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.domains.protein.network.blocks import LayerNorm
from xdistill.domains.protein.network.config import ProteinaConfig

MAX_TIME = 2000
_MAX_INDEX = 2056


@dataclass(frozen=True)
class Inputs:
    """Inputs of one network call, with the shapes and units of `Proteina.forward`."""

    x_t: Tensor
    t: Tensor
    mask: Tensor
    x_sc: Tensor | None
    labels: Tensor | None
    residue_pdb_idx: Tensor | None
    chain_breaks: Tensor | None

    def residue_index(self) -> Tensor:
        """`[b or 1, n]` index along the chain as given, or 1..n."""
        if self.residue_pdb_idx is not None:
            return self.residue_pdb_idx
        return torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device).unsqueeze(0)


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """`[b] -> [b, dim]`: sines then cosines of 2000 t at geometric frequencies from 1 to 1/2000, in float32."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * -(math.log(MAX_TIME) / (half - 1)))
    angle = (t.float() * MAX_TIME)[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def index_embedding(index: Tensor, dim: int) -> Tensor:
    """`[...] -> [..., dim]`: sines then cosines of the residue index, in float32."""
    k = torch.arange(dim // 2, device=index.device)
    angle = index.unsqueeze(-1) * math.pi / _MAX_INDEX ** (2 * k / dim)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


@torch.no_grad()
def distance_bins(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """`[b,n,3] -> [b,n,n]` int64 distance bins; explicit differences in float32, because bins are discontinuous."""
    x, y, z = ((c.unsqueeze(2) - c.unsqueeze(1)).square_() for c in x.detach().float().unbind(-1))
    return equidistant_bins(x.add_(y).add_(z).sqrt_(), low, high, bins)


@torch.no_grad()
def separation_bins(index: Tensor, bins: int) -> Tensor:
    """`[b,n] -> [b,n,n]` int64 bins of `index_i - index_j`, one bin per separation and open ends."""
    separation = (index.unsqueeze(2) - index.unsqueeze(1)).float()
    return equidistant_bins(separation, 1 - bins / 2, bins / 2 - 1, bins)


def equidistant_bins(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """`torch.bucketize` between `bins - 1` equidistant edges, in a tenth of its time on a CPU.

    The nearest edge is known up to rounding; the value lies on one side of it.
    """
    edges = torch.linspace(low, high, bins - 1, device=values.device)
    if values.is_cuda:
        return torch.bucketize(values, edges)
    scale = (bins - 2) / (high - low) if bins > 2 else 0.0
    nearest = (values * scale).add_(0.5 - low * scale).clamp_(0, bins - 2).nan_to_num_(bins - 2.0).long()
    above = values > edges.index_select(0, nearest.flatten()).view_as(values)
    return nearest.add_(above.logical_or_(values.isnan()))


class TimeFeature(nn.Module):
    def __init__(self, config: ProteinaConfig) -> None:
        super().__init__()
        self.dim = config.t_emb_dim

    def forward(self, inputs: Inputs) -> Tensor:
        return time_embedding(inputs.t, self.dim).unsqueeze(1)


class IndexFeature(nn.Module):
    def __init__(self, config: ProteinaConfig) -> None:
        super().__init__()
        self.dim = config.idx_emb_dim

    def forward(self, inputs: Inputs) -> Tensor:
        index = inputs.residue_index()
        return index_embedding(index - index[:, :1] + 1, self.dim)


class ChainBreakFeature(nn.Module):
    dim = 1

    def forward(self, inputs: Inputs) -> Tensor:
        breaks = inputs.chain_breaks
        return (torch.zeros_like(inputs.mask) if breaks is None else breaks).float().unsqueeze(-1)


class SelfConditionFeature(nn.Module):
    dim = 3

    def forward(self, inputs: Inputs) -> Tensor:
        return torch.zeros_like(inputs.x_t) if inputs.x_sc is None else inputs.x_sc


class FoldFeature(nn.Module):
    """CATH class, architecture and topology embeddings, concatenated; the last row of each table means "unknown"."""

    def __init__(self, config: ProteinaConfig, num_classes: Sequence[int]) -> None:
        super().__init__()
        width = config.fold_emb_dim
        self.dim = 3 * width
        self.embedding_C, self.embedding_A, self.embedding_T = (nn.Embedding(k + 1, width) for k in num_classes)

    def forward(self, inputs: Inputs) -> Tensor:
        tables = (self.embedding_C, self.embedding_A, self.embedding_T)
        if inputs.labels is None:
            rows = [e.weight[-1].expand(len(inputs.t), -1) for e in tables]
        else:
            rows = [e(inputs.labels[:, level]) for level, e in enumerate(tables)]
        return torch.cat(rows, dim=-1).unsqueeze(1)


def _sequence_feature(name: str, config: ProteinaConfig, num_classes: Sequence[int]) -> nn.Module:
    if name == "fold_emb":
        return FoldFeature(config, num_classes)
    if name == "time_emb":
        return TimeFeature(config)
    if name == "res_seq_pdb_idx":
        return IndexFeature(config)
    return ChainBreakFeature() if name == "chain_break_per_res" else SelfConditionFeature()


class SequenceFactory(nn.Module):
    """Concatenated sequence features through one Linear without bias; no features means zeros."""

    def __init__(self, names: Sequence[str], dim: int, config: ProteinaConfig, num_classes: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.feat_creators = nn.ModuleList(_sequence_feature(name, config, num_classes) for name in names)
        if names:
            width = sum(cast(int, feature.dim) for feature in self.feat_creators)
            self.linear_out = nn.Linear(width, dim, bias=False)

    def forward(self, inputs: Inputs) -> Tensor:
        """`[b, n, dim]`, or `[b, 1, dim]` when every feature is constant along the chain."""
        if not len(self.feat_creators):
            return inputs.x_t.new_zeros(len(inputs.t), 1, self.dim)
        feats = [feature(inputs) for feature in self.feat_creators]
        b, n = inputs.mask.shape
        n = n if any(f.shape[1] != 1 for f in feats) else 1
        stacked = torch.cat([f.expand(b, n, -1) for f in feats], dim=-1)
        return self.linear_out(stacked.to(self.linear_out.weight.dtype))


class PairFactory(nn.Module):
    """Pair features through one Linear without bias and a LayerNorm; one-hot features are gathers of weight columns."""

    def __init__(self, names: Sequence[str], dim: int, config: ProteinaConfig) -> None:
        super().__init__()
        self.names, self.config = tuple(names), config
        widths = {
            "rel_seq_sep": config.seq_sep_dim,
            "x_sc_pair_dists": config.x_sc_pair_dist_dim,
            "xt_pair_dists": config.xt_pair_dist_dim,
            "time_emb": config.t_emb_dim,
        }
        self.widths = [widths[name] for name in names]
        self.linear_out = nn.Linear(sum(self.widths), dim, bias=False)
        self.ln_out = LayerNorm(dim)

    def _bins(self, name: str, inputs: Inputs) -> Tensor | None:
        c = self.config
        if name == "rel_seq_sep":
            return separation_bins(inputs.residue_index(), c.seq_sep_dim)
        if name == "xt_pair_dists":
            return distance_bins(inputs.x_t, c.xt_pair_dist_min, c.xt_pair_dist_max, c.xt_pair_dist_dim)
        if inputs.x_sc is None:
            return None
        return distance_bins(inputs.x_sc, c.x_sc_pair_dist_min, c.x_sc_pair_dist_max, c.x_sc_pair_dist_dim)

    def forward(self, inputs: Inputs) -> Tensor:
        """`[b, n, n, dim]` in float32, or `[b, 1, 1, dim]` when time is the only feature; not masked."""
        columns = self.linear_out.weight.float().split(self.widths, dim=1)
        total: Tensor | None = None
        for name, weight in zip(self.names, columns, strict=True):
            if name == "time_emb":
                term = (time_embedding(inputs.t, weight.shape[1]) @ weight.T)[:, None, None]
            else:
                bins = self._bins(name, inputs)
                if bins is None:
                    continue
                term = F.embedding(bins, weight.T)
            total = term if total is None else total + term
        if total is None:
            total = columns[0].new_zeros(len(inputs.t), 1, 1, self.linear_out.out_features)
        return self.ln_out(total)

    def tabular(self, inputs: Inputs, max_rows: int) -> tuple[str, ...]:
        """The features of `inputs` if they are discrete and have at most `max_rows` combinations, else none.

        What follows can then run once per combination: every pair is one of `rows`, the one at `index`.
        """
        if "time_emb" in self.names:
            return ()
        names = tuple(n for n in self.names if n != "x_sc_pair_dists" or inputs.x_sc is not None)
        widths = dict(zip(self.names, self.widths, strict=True))
        return names if math.prod(widths[n] for n in names) <= max_rows else ()

    def rows(self, names: Sequence[str]) -> Tensor:
        """`[rows, dim]`, one for each combination of the features `names`."""
        columns = dict(zip(self.names, self.linear_out.weight.float().split(self.widths, dim=1), strict=True))
        rows = columns[names[0]].T
        for name in names[1:]:
            rows = (rows.unsqueeze(1) + columns[name].T).flatten(0, 1)
        return self.ln_out(rows)

    def index(self, names: Sequence[str], inputs: Inputs) -> Tensor:
        """`[b or 1, n, n]` int64 into `rows(names)`."""
        widths = dict(zip(self.names, self.widths, strict=True))
        flat = cast(Tensor, self._bins(names[0], inputs))
        for name in names[1:]:
            flat = flat * widths[name] + cast(Tensor, self._bins(name, inputs))
        return flat
