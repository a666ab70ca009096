"""Building blocks of the Proteina transformer; padded positions may hold any finite value unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32, returned in the parameters' dtype (float32 under autocast)."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        y = F.layer_norm(x.float(), self.normalized_shape, weight.float(), bias.float(), self.eps)
        return y.to(weight.dtype)


def normalise(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without affine parameters, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:])


@dataclass(frozen=True)
class Conditioning:
    """Per-token conditioning, stored once per distinct row.

    `value [b, m, dim_cond]`. With `m == 1` the one row serves all `residues` of a sample, and `registers` tokens with
    zero conditioning precede them; otherwise `m == registers + residues`, one row per token.
    """

    value: Tensor
    registers: int
    residues: int

    def project(self, layer: nn.Module) -> Tensor:
        """Apply a pointwise map; returns `[b, R + n, out]`, or a broadcastable `[b, 1, out]` when R == 0."""
        b, m, _ = self.value.shape
        out = layer(self.value)
        if m != 1 or not self.registers:
            return out
        zero = layer(self.value.new_zeros(1, 1, self.value.shape[-1]))
        parts = (zero.expand(b, self.registers, -1), out.expand(b, self.residues, -1))
        return torch.cat(parts, dim=1)


class SwiGLU(nn.Module):
    """`W_out (silu(g) * x)` with `(x, g) = W_in input` (arXiv:2002.05202), no biases."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        self.swish_linear = nn.Sequential(nn.Linear(dim, 2 * expansion * dim, bias=False))
        self.linear_out = nn.Linear(expansion * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.swish_linear(x).chunk(2, dim=-1)
        return self.linear_out(F.silu(gate) * value)


class AdaptiveLayerNorm(nn.Module):
    """`LN(x) * sigmoid(W_g LN(c) + b_g) + W_b LN(c)`."""

    def __init__(self, dim: int, dim_cond: int) -> None:
        super().__init__()
        self.norm_cond = LayerNorm(dim_cond)
        self.to_gamma = nn.Sequential(nn.Linear(dim_cond, dim), nn.Sigmoid())
        self.to_beta = nn.Linear(dim_cond, dim, bias=False)

    def gamma_beta(self, c: Tensor) -> Tensor:
        """`[..., dim_cond] -> [..., 2 dim]`: scale and shift side by side."""
        normed = self.norm_cond(c)
        return torch.cat((self.to_gamma(normed), self.to_beta(normed)), dim=-1)

    def modulate(self, x: Tensor, gamma_beta: Tensor) -> Tensor:
        gamma, beta = gamma_beta.chunk(2, dim=-1)
        return torch.addcmul(beta, normalise(x).to(gamma.dtype), gamma)


class OutputScale(nn.Module):
    """`sigmoid(W c + b)`, starting near zero (b = -2) so that a fresh block is almost the identity."""

    def __init__(self, dim: int, dim_cond: int) -> None:
        super().__init__()
        self.to_adaln_zero_gamma = nn.Sequential(nn.Linear(dim_cond, dim), nn.Sigmoid())
        nn.init.zeros_(self.to_adaln_zero_gamma[0].weight)
        nn.init.constant_(self.to_adaln_zero_gamma[0].bias, -2.0)

    def forward(self, c: Tensor) -> Tensor:
        return self.to_adaln_zero_gamma(c)


class PairBiasedAttention(nn.Module):
    """Gated multi-head attention with an additive bias `[b, heads, n, n]` (AlphaFold 2, algorithm 7)."""

    def __init__(self, dim: int, heads: int, pair_dim: int | None, qkln: bool) -> None:
        super().__init__()
        self.heads = heads
        self.node_norm = LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_g = nn.Linear(dim, dim)
        self.to_out_node = nn.Linear(dim, dim)
        self.q_layer_norm = LayerNorm(dim) if qkln else nn.Identity()
        self.k_layer_norm = LayerNorm(dim) if qkln else nn.Identity()
        if pair_dim is not None:
            self.pair_norm = LayerNorm(pair_dim)
            self.to_bias = nn.Linear(pair_dim, heads, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x [b, n, dim]`, `bias` broadcastable to `[b, heads, n, n]` with masked keys at the dtype's minimum."""
        x = self.node_norm(x)
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k = self.q_layer_norm(q).to(v.dtype), self.k_layer_norm(k).to(v.dtype)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(v.dtype))
        out = out.transpose(1, 2).flatten(-2)
        return self.to_out_node(torch.sigmoid(self.to_g(x)) * out)


class AttentionBlock(nn.Module):
    """adaLN -> attention -> output scale."""

    def __init__(self, dim: int, heads: int, pair_dim: int | None, dim_cond: int, qkln: bool) -> None:
        super().__init__()
        self.adaln = AdaptiveLayerNorm(dim, dim_cond)
        self.mha = PairBiasedAttention(dim, heads, pair_dim, qkln)
        self.scale_output = OutputScale(dim, dim_cond)

    def forward(self, x: Tensor, bias: Tensor, c: Conditioning) -> Tensor:
        x = self.adaln.modulate(x, c.project(self.adaln.gamma_beta))
        return self.mha(x, bias) * c.project(self.scale_output)


class TransitionBlock(nn.Module):
    """adaLN -> SwiGLU -> output scale."""

    def __init__(self, dim: int, dim_cond: int, expansion: int = 4) -> None:
        super().__init__()
        self.adaln = AdaptiveLayerNorm(dim, dim_cond)
        self.transition = SwiGLU(dim, expansion)
        self.scale_output = OutputScale(dim, dim_cond)

    def forward(self, x: Tensor, c: Conditioning) -> Tensor:
        x = self.adaln.modulate(x, c.project(self.adaln.gamma_beta))
        return self.transition(x) * c.project(self.scale_output)


class TransformerLayer(nn.Module):
    """Attention and transition, in sequence or in parallel, each with an optional residual."""

    def __init__(
        self,
        dim: int,
        heads: int,
        pair_dim: int | None,
        dim_cond: int,
        *,
        qkln: bool,
        residual_mha: bool,
        residual_transition: bool,
        parallel: bool,
    ) -> None:
        super().__init__()
        self.parallel = parallel
        self.residual_mha = residual_mha
        # In parallel form both branches would otherwise add the same input twice.
        self.residual_transition = residual_transition and not (parallel and residual_mha)
        self.mhba = AttentionBlock(dim, heads, pair_dim, dim_cond, qkln)
        self.transition = TransitionBlock(dim, dim_cond)

    def forward(self, s: Tensor, bias: Tensor, c: Conditioning) -> Tensor:
        """`s [b, N, dim]` -> `[b, N, dim]`; see `PairBiasedAttention` for `bias`."""
        attended = self.mhba(s, bias, c)
        if self.residual_mha:
            attended = s + attended
        source = s if self.parallel else attended
        moved = self.transition(source, c)
        if self.residual_transition:
            moved = source + moved
        return attended + moved if self.parallel else moved


def attention_bias(z_hat: Tensor, layers: Sequence[TransformerLayer]) -> Tensor:
    """Biases of several layers that read the same pair representation, with one matmul.

    `z_hat [..., pair_dim]` is the affine-free LayerNorm of z: each layer's `pair_norm` affine is folded into its
    projection. Returns `[..., len(layers) * heads]`.
    """
    mhas = [layer.mhba.mha for layer in layers]
    weight = torch.cat([m.to_bias.weight * m.pair_norm.weight for m in mhas])
    shift = torch.cat([m.to_bias.weight @ m.pair_norm.bias for m in mhas])
    return F.linear(z_hat.to(weight.dtype), weight, shift)
