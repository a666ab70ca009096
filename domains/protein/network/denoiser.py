"""The Proteina backbone denoiser (arXiv:2503.00710): CA coordinates in, velocity (its training target) out."""

from __future__ import annotations

from collections.abc import Sequence

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
    normalise,
)
from xdistill.domains.protein.network.config import ProteinaConfig
from xdistill.domains.protein.network.features import Inputs, PairFactory, SequenceFactory
from xdistill.domains.protein.network.pair import PairUpdate


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
            z = self.adaln.modulate(z, self.adaln.gamma_beta(self.cond_factory(inputs)))
        return z * _pair_mask(inputs.mask).unsqueeze(-1)


class Proteina(nn.Module):
    """Transformer over residues with pair-biased attention.

    Attributes:
        config: the `ProteinaConfig` it was built from.
        num_classes: number of CATH classes, architectures and topologies known to the fold embedding.
        activation_checkpointing: recompute transformer layers and pair updates in the backward pass (off).
    """

    def __init__(self, config: ProteinaConfig, num_classes: Sequence[int] = (5, 43, 1336)) -> None:
        super().__init__()
        self.config, self.num_classes = config, tuple(num_classes)
        self.activation_checkpointing = False
        dim, pair_dim, cond_dim = config.token_dim, config.pair_repr_dim, config.dim_cond
        if config.num_registers:
            self.registers = nn.Parameter(torch.randn(config.num_registers, dim) / 20)
        self.linear_3d_embed = nn.Linear(3, dim, bias=False)
        self.init_repr_factory = SequenceFactory(config.feats_init_seq, dim, config, self.num_classes)
        self.cond_factory = SequenceFactory(config.feats_cond_seq, cond_dim, config, self.num_classes)
        self.transition_c_1 = SwiGLU(cond_dim, expansion=2)
        self.transition_c_2 = SwiGLU(cond_dim, expansion=2)
        if config.use_attn_pair_bias:
            self.pair_repr_builder = PairBuilder(config)
        self.transformer_layers = nn.ModuleList(_layer(config) for _ in range(config.nlayers))
        if config.updates_pair:
            self.pair_update_layers = nn.ModuleList(
                PairUpdate(dim, pair_dim, config.use_tri_mult) if config.pair_update_after(i) else None
                for i in range(config.nlayers - 1)
            )
        if config.predicts_pair:
            self.pair_head_prediction = nn.Sequential(
                LayerNorm(pair_dim), nn.Linear(pair_dim, config.num_buckets_predict_pair)
            )
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

        Returns:
            `coors_pred [b, n, 3]`, zero at padding, and possibly `pair_pred [b, n, n, buckets]` (distogram logits).
        """
        inputs = Inputs(_clear(x_t, mask), t, mask, _clear(x_sc, mask), labels, residue_pdb_idx, chain_breaks)
        c = self._conditioning(inputs)
        s = self.linear_3d_embed(inputs.x_t.to(self.linear_3d_embed.weight.dtype)) + self.init_repr_factory(inputs)
        r = self.config.num_registers
        if r:
            s = torch.cat((self.registers.to(s.dtype).expand(len(s), -1, -1), s), dim=1)
        s, z = self._trunk(s.to(self.linear_3d_embed.weight.dtype), c, inputs)
        coors = self.coors_3d_decoder(s[:, r:])
        out = {"coors_pred": coors * mask.unsqueeze(-1)}
        if need_pair and self.config.predicts_pair:
            out["pair_pred"] = self.pair_head_prediction(z[:, r:, r:])
        return out

    def _conditioning(self, inputs: Inputs) -> Conditioning:
        c = self.transition_c_2(self.transition_c_1(self.cond_factory(inputs)))
        r, n = self.config.num_registers, inputs.mask.shape[1]
        if c.shape[1] != 1:
            c = F.pad(c, (0, 0, r, 0))
        return Conditioning(c, r, n)

    def _trunk(self, s: Tensor, c: Conditioning, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Transformer layers and pair updates over registers and residues; returns the final s and z."""
        mask = F.pad(inputs.mask, (self.config.num_registers, 0), value=True)
        z: Tensor | None = None
        biases = self._table_biases(inputs, mask)
        if biases is None and self.config.use_attn_pair_bias:
            r = self.config.num_registers
            z = F.pad(self.pair_repr_builder(inputs), (0, 0, r, 0, r, 0))
        for i, layer in enumerate(self.transformer_layers):
            if not biases:
                biases = self._biases(z, mask, i)
            s = self._run(layer, s, biases.pop(0), c)
            if self.config.pair_update_after(i):
                z = self._run(self.pair_update_layers[i], s, z, _pair_mask(mask))
        return s, z

    def _biases(self, z: Tensor | None, mask: Tensor, first: int) -> list[Tensor]:
        """Attention biases of layer `first` and of those after it that read the same z, one `[b, heads, N, N]` each."""
        cfg = self.config
        last = next((i for i in range(first, cfg.nlayers) if cfg.pair_update_after(i)), cfg.nlayers - 1)
        layers = self.transformer_layers[first : last + 1]
        keys = mask[:, None, None, :]
        if z is None:
            dtype = self.linear_3d_embed.weight.dtype
            bias = torch.zeros(keys.shape, dtype=dtype, device=mask.device)
            return [bias.masked_fill(~keys, torch.finfo(dtype).min)] * len(layers)
        bias = attention_bias(normalise(z), layers).permute(0, 3, 1, 2)
        bias = bias.masked_fill(~keys, torch.finfo(bias.dtype).min)
        return list(bias.split(cfg.nheads, dim=1))

    def _table_biases(self, inputs: Inputs, mask: Tensor) -> list[Tensor] | None:
        """All layers' biases gathered from one table over the distinct pair features, when z is that simple."""
        cfg = self.config
        if not cfg.use_attn_pair_bias or cfg.updates_pair or cfg.feats_pair_cond:
            return None
        found = self.pair_repr_builder.init_repr_factory.table(inputs, max_rows=mask.numel() * mask.shape[1])
        if found is None:
            return None
        rows, index = found
        # Two more rows: z = 0 (pairs with a register), and masked keys.
        bias = attention_bias(normalise(F.pad(rows, (0, 0, 0, 1))), self.transformer_layers)
        bias = F.pad(bias, (0, 0, 0, 1), value=torch.finfo(bias.dtype).min)
        r = cfg.num_registers
        index = F.pad(index.expand(len(mask), -1, -1), (r, 0, r, 0), value=len(rows))
        index = index.masked_fill(~mask.unsqueeze(1), len(rows) + 1)
        return [F.embedding(index, column).permute(0, 3, 1, 2) for column in bias.split(cfg.nheads, dim=1)]

    def _run(self, module: nn.Module, *args: Tensor | Conditioning | None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)


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
