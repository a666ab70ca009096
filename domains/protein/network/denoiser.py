"""The Proteina backbone denoiser (arXiv:2503.00710): CA coordinates in, velocity (its training target) out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xdistill.domains.protein.network.blocks import (
    AdaptiveLayerNorm,
    Conditioning,
    LayerNorm,
    SwiGLU,
    TransformerLayer,
    attention_bias,
    bias_weights,
    compute_dtype,
    full_precision,
    normalise,
)
from xdistill.domains.protein.network.config import ProteinaConfig
from xdistill.domains.protein.network.features import MAX_TIME, Inputs, PairFactory, SequenceFactory, time_embedding
from xdistill.domains.protein.network.pair import PairUpdate
from xdistill.domains.protein.network.tables import ROWS, TableCache, differentiable, gather
from xdistill.domains.protein.network.vectors import VectorUpdate


class PairBuilder(nn.Module):
    """Initial pair representation: pair features, optionally modulated by pair conditioning (time)."""

    def __init__(self, config: ProteinaConfig) -> None:
        super().__init__()
        self.init_repr_factory = PairFactory(config.feats_pair_repr, config.pair_repr_dim, config)
        self.conditioned = bool(config.feats_pair_cond)
        if self.conditioned:
            self.cond_factory = PairFactory(config.feats_pair_cond, config.dim_cond, config)
            self.adaln = AdaptiveLayerNorm(config.pair_repr_dim, config.dim_cond)

    def forward(self, inputs: Inputs) -> Tensor:
        """`[b, n, n, pair_dim]`, zero at masked pairs."""
        z = self.init_repr_factory(inputs)
        if self.conditioned:
            gamma, beta = self.adaln.gamma_beta(self.cond_factory(inputs))
            z = normalise(z).to(gamma.dtype) * gamma + beta
        return z * _pair_mask(inputs.mask).unsqueeze(-1)


class JumpEmbedding(nn.Module):
    """Conditioning on the length t - r of a jump (MeanFlow's time inputs, 2505.13447), zero until it is trained.

    Its sinusoids have scale 1: a derivative in time is then no larger than the one through t.
    """

    def __init__(self, dim: int, dim_cond: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim_cond), nn.SiLU(), nn.Linear(dim_cond, dim_cond))
        for p in self.mlp[2].parameters():
            nn.init.zeros_(p)

    def forward(self, jump: Tensor) -> Tensor:
        """`[b] -> [b, dim_cond]`."""
        return self.mlp(time_embedding(jump / MAX_TIME, self.dim).to(self.mlp[0].weight.dtype))


class Proteina(nn.Module):
    """Transformer over residues with pair-biased attention.

    Attributes:
        config: the `ProteinaConfig` it was built from.
        num_classes: number of CATH classes, architectures and topologies known to the fold embedding.
        activation_checkpointing: recompute transformer layers and pair updates in the backward pass (off).
        tabulated: gather attention biases from a table where pairs have few distinct features (on).
    """

    def __init__(self, config: ProteinaConfig, num_classes: Sequence[int] = (5, 43, 1336)) -> None:
        super().__init__()
        self.config, self.num_classes = config, tuple(num_classes)
        self.activation_checkpointing, self.tabulated, self._tables = False, True, TableCache()
        dim, pair_dim, cond_dim = config.token_dim, config.pair_repr_dim, config.dim_cond
        if config.num_registers:
            self.registers = nn.Parameter(torch.randn(config.num_registers, dim) / 20)
        if not config.vector_channels:
            self.linear_3d_embed = nn.Linear(3, dim, bias=False)
        self.init_repr_factory = SequenceFactory(config.feats_init_seq, dim, config, self.num_classes)
        self.cond_factory = SequenceFactory(config.feats_cond_seq, cond_dim, config, self.num_classes)
        if config.step_conditioning:
            self.step_embed = nn.Linear(config.t_emb_dim, cond_dim, bias=False)
            nn.init.zeros_(self.step_embed.weight)
        if config.flow_map:
            self.jump_embed = JumpEmbedding(config.t_emb_dim, cond_dim)
        self.transition_c_1 = SwiGLU(cond_dim, expansion=2)
        self.transition_c_2 = SwiGLU(cond_dim, expansion=2)
        if config.use_attn_pair_bias:
            self.pair_repr_builder = PairBuilder(config)
        self.transformer_layers = nn.ModuleList(_layer(config) for _ in range(config.nlayers))
        if config.updates_pair:
            updates = [
                PairUpdate(dim, pair_dim, config.use_tri_mult) if config.pair_update_after(i) else None
                for i in range(config.nlayers - 1)
            ]
            # Empty slots keep the official, sparse numbering of the state dict.
            self.pair_update_layers = nn.ModuleList(cast(list[nn.Module], updates))
        if config.predicts_pair:
            self.pair_head_prediction = nn.Sequential(
                LayerNorm(pair_dim), nn.Linear(pair_dim, config.num_buckets_predict_pair)
            )
        if config.vector_channels:
            self.vector_layers = nn.ModuleList(
                VectorUpdate(dim, config.nheads, config.vector_channels) for _ in range(config.nlayers)
            )
        else:
            self.coors_3d_decoder = nn.Sequential(LayerNorm(dim), nn.Linear(dim, 3, bias=False))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        mask: Tensor,
        x_sc: Tensor | None = None,
        labels: Tensor | None = None,
        residue_pdb_idx: Tensor | None = None,
        chain_breaks: Tensor | None = None,
        need_pair: bool = True,
        need_features: bool = False,
        steps: Tensor | None = None,
        jump: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict from a noisy backbone.

        Args:
            x_t: `[b, n, 3]` CA coordinates in nm, zero-centred; padding may hold anything.
            t: `[b]` Proteina time, **1 = data, 0 = noise**.
            mask: `[b, n]` bool, True = residue.
            x_sc: `[b, n, 3]` earlier estimate of the clean backbone (self-conditioning).
            labels: `[b, 3]` int64 rows of the C, A, T embeddings (`ClassMap.encode`); None = no label.
            residue_pdb_idx: `[b, n]` residue numbers; None = 1..n.
            chain_breaks: `[b, n]` 1 where the chain breaks after a residue; None = unbroken.
            need_pair: also compute the pair head, if the network has one.
            need_features: also return what the decoder reads, the features of each residue.
            steps: `[b]` network calls of the student's chain, for networks with `step_conditioning`; None = not told.
            jump: `[b]` length of the jump whose average is asked for, for networks with `flow_map`; None = 0.

        Returns:
            `coors_pred [b, n, 3]`, zero at padding, and possibly `pair_pred [b, n, n, buckets]` (distogram logits)
            and `features [b, n, token_dim]`.
        """
        inputs = Inputs(_clear(x_t, mask), t, mask, _clear(x_sc, mask), labels, residue_pdb_idx, chain_breaks)
        r = self.config.num_registers
        with full_precision(x_t):
            c = self.cond_factory(inputs)
            if steps is not None and self.config.step_conditioning:
                c = c + self.step_embed(time_embedding(steps.log2() / 16, self.config.t_emb_dim)).unsqueeze(1)
            if self.config.flow_map:
                c = c + self.jump_embed(torch.zeros_like(t) if jump is None else jump).unsqueeze(1)
            c = self.transition_c_2(self.transition_c_1(c))
            s = self.init_repr_factory(inputs).expand(-1, mask.shape[1], -1)
            if not self.config.vector_channels:
                s = s + self.linear_3d_embed(inputs.x_t.to(s.dtype))
        s = s.expand(len(mask), -1, -1)
        if r:
            s = torch.cat((self.registers.expand(len(s), -1, -1), s), dim=1)
        s, z, v = self._trunk(s, Conditioning.build(c, r, mask.shape[1]), inputs)
        if v is None:
            with full_precision(x_t):
                v = self.coors_3d_decoder(s[:, r:].to(self.transition_c_1.linear_out.weight.dtype))
        out = {"coors_pred": v * mask.unsqueeze(-1)}
        if need_pair and z is not None and self.config.predicts_pair:
            out["pair_pred"] = self.pair_head_prediction(z[:, r:, r:])
        if need_features:
            out["features"] = s[:, r:]
        return out

    def _trunk(self, s: Tensor, c: Conditioning, inputs: Inputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Layers and pair updates over registers and residues: s, z if it was built, v if there are vector channels."""
        r = self.config.num_registers
        mask = F.pad(inputs.mask, (r, 0), value=True)
        z: Tensor | None = None
        v = torch.zeros_like(inputs.x_t) if self.config.vector_channels else None
        x, points = inputs.x_t, None
        biases: list[Tensor] = []
        for i, layer in enumerate(self.transformer_layers):
            if v is not None:
                x = inputs.x_t + (1 - inputs.t)[:, None, None] * v
                points = F.pad(F.pad(x, (0, 1), value=1.0), (0, 0, r, 0))
            if i == 0 or i == self.config.refine_after:
                looked_at = inputs if i == 0 else replace(inputs, x_t=x)
                biases = self._table_biases(looked_at, mask, i)
                if not biases and self.config.use_attn_pair_bias:
                    z = F.pad(self.pair_repr_builder(looked_at), (0, 0, r, 0, r, 0))
            if not biases:
                biases = self._biases(z, mask, i)
            s, sums = self._run(layer, s, biases.pop(0), c, points)
            if v is not None and points is not None:
                means = (sums[..., :3] - sums[..., 3:] * points[..., :3]).permute(1, 2, 0, 3)[:, r:]
                moved, v = self._run(self.vector_layers[i], s[:, r:], x, v, means, inputs.mask)
                s = torch.cat((s[:, :r], moved), dim=1)
            if self.config.pair_update_after(i):
                z = self._run(self.pair_update_layers[i], s, z, _pair_mask(mask))
        return s, z, v

    def _biases(self, z: Tensor | None, mask: Tensor, first: int) -> list[Tensor]:
        """Biases `[heads, b, N, N]` of layer `first` and those after it that read the same z (None: the key mask)."""
        cfg = self.config
        ends = (i for i in range(first, cfg.nlayers) if cfg.pair_update_after(i) or i + 1 == cfg.refine_after)
        last = next(ends, cfg.nlayers - 1)
        layers = list(self.transformer_layers)[first : last + 1]
        if z is None:
            bias = torch.zeros(len(layers), 1, 1, 1, 1, device=mask.device)
        else:
            bias = attention_bias(z.flatten(0, 2), layers).view(len(layers), cfg.nheads, *z.shape[:3])
        return list(bias.masked_fill(~mask.unsqueeze(1), torch.finfo(bias.dtype).min))

    def _table_biases(self, inputs: Inputs, mask: Tensor, first: int) -> list[Tensor]:
        """As `_biases`, gathered from a table over the distinct pair features; empty if z is not so simple."""
        cfg = self.config
        if not self.tabulated or not cfg.use_attn_pair_bias or cfg.updates_pair or cfg.feats_pair_cond:
            return []
        b, n = mask.shape
        layers = list(self.transformer_layers)[first : None if first else cfg.refine_after or None]
        factory = self.pair_repr_builder.init_repr_factory
        weights = [*factory.parameters(), *bias_weights(layers)]
        derived = differentiable(weights)
        names = factory.tabular(inputs, max_rows=b * n * n if derived else ROWS)
        if not names:
            return []
        # Gradients of many pairs meet in one row: float32; without them half the memory traffic counts more.
        dtype = torch.float32 if derived else compute_dtype(weights[0])

        def build() -> Tensor:
            # Two more rows: z = 0 (pairs with a register), and masked keys.
            bias = attention_bias(F.pad(factory.rows(names), (0, 0, 0, 1)), layers)
            return F.pad(bias.to(dtype), (0, 1), value=torch.finfo(dtype).min)

        with full_precision(mask):
            table = build() if derived else self._tables.get((first, names, dtype), weights, build)
            index = factory.index(names, inputs)
        r, last = cfg.num_registers, table.shape[1] - 1
        index = F.pad(index.expand(b, -1, -1), (r, 0, r, 0), value=last - 1)
        index = index.masked_fill(~mask.unsqueeze(1), last)
        return list(gather(table, index.flatten()).view(len(layers), cfg.nheads, b, n, n))

    def _run(self, module: nn.Module, *args: Tensor | Conditioning | None) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)


@contextmanager
def straightforward(net: Proteina) -> Iterator[None]:
    """`net` with pair features and biases computed pair by pair, as the equations read: what `bench` compares with."""
    net.tabulated = False
    try:
        yield
    finally:
        net.tabulated = True


def _layer(config: ProteinaConfig) -> TransformerLayer:
    return TransformerLayer(
        config.token_dim,
        config.nheads,
        config.pair_repr_dim if config.use_attn_pair_bias else None,
        config.dim_cond,
        qkln=config.use_qkln,
        residual_mha=config.residual_mha,
        residual_transition=config.residual_transition,
        parallel=config.parallel_mha_transition,
    )


def _pair_mask(mask: Tensor) -> Tensor:
    return mask.unsqueeze(1) & mask.unsqueeze(2)


def _clear(x: Tensor | None, mask: Tensor) -> Tensor | None:
    return None if x is None else x.float().masked_fill(~mask.unsqueeze(-1), 0.0)
