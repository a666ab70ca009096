"""Building blocks of the Proteina transformer; padded positions may hold any finite value unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.domains.protein.network.tables import differentiable


def compute_dtype(like: Tensor) -> torch.dtype:
    """The dtype matrix products run in: autocast's if it is on, else that of the parameter `like`."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def full_precision(like: Tensor) -> torch.autocast:
    """Context without autocast, for geometry and for what is small and sensitive."""
    return torch.autocast(like.device.type, enabled=False)


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32, returned in the dtype of the matrix product that follows."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(compute_dtype(self.weight))


def normalise(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without affine parameters, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:])


@dataclass(frozen=True)
class Conditioning:
    """Per-token conditioning, stored once per distinct row.

    `rows` is `[b + 1, dim_cond]` when all residues of a sample share one row; the last row, zero, serves the register
    tokens. Otherwise it is `[b, registers + residues, dim_cond]`.
    """

    rows: Tensor
    registers: int
    residues: int

    @classmethod
    def build(cls, c: Tensor, registers: int, residues: int) -> Conditioning:
        """From `c [b, residues or 1, dim_cond]`; registers get zeros."""
        rows = F.pad(c.squeeze(1), (0, 0, 0, 1)) if c.shape[1] == 1 else F.pad(c, (0, 0, registers, 0))
        return cls(rows, registers, residues)

    def scale(self, x: Tensor, gamma: Tensor, beta: Tensor | None = None) -> Tensor:
        """`x [b, N, d]` times `gamma` plus `beta`, two pointwise functions of `rows`; in place without derivatives."""
        in_place = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or differentiable((x, gamma)))
        if not in_place or gamma.ndim == 3 or x.dtype != gamma.dtype:
            # Not addcmul: its backward is several times slower on a CPU.
            x = x * self.spread(gamma)
            return x if beta is None else x + self.spread(beta)
        for part, rows in ((x[:, : self.registers], slice(-1, None)), (x[:, self.registers :], slice(-1))):
            part.mul_(gamma[rows].unsqueeze(1))
            if beta is not None:
                part.add_(beta[rows].unsqueeze(1))
        return x

    def spread(self, y: Tensor) -> Tensor:
        """A pointwise function of `rows`, brought to `[b, registers + residues, d]` (or `[b, 1, d]`, to broadcast)."""
        if y.ndim == 3:
            return y
        samples, register = y[:-1].unsqueeze(1), y[-1]
        if not self.registers:
            return samples
        b = len(samples)
        return torch.cat((register.expand(b, self.registers, -1), samples.expand(b, self.residues, -1)), dim=1)


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

    def gamma_beta(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """`[..., dim_cond]` -> scale and shift `[..., dim]`."""
        normed = self.norm_cond(c)
        return self.to_gamma(normed), self.to_beta(normed)

    def modulate(self, x: Tensor, c: Conditioning) -> Tensor:
        gamma, beta = self.gamma_beta(c.rows)
        return c.scale(normalise(x).to(gamma.dtype), gamma, beta)


class OutputScale(nn.Module):
    """`sigmoid(W c + b)`, starting near zero (b = -2) so that a fresh block is almost the identity."""

    def __init__(self, dim: int, dim_cond: int) -> None:
        super().__init__()
        linear = nn.Linear(dim_cond, dim)
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, -2.0)
        self.to_adaln_zero_gamma = nn.Sequential(linear, nn.Sigmoid())

    def forward(self, c: Tensor) -> Tensor:
        return self.to_adaln_zero_gamma(c)


class PairBiasedAttention(nn.Module):
    """Gated multi-head attention with an additive bias (AlphaFold 2, algorithm 7)."""

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

    def forward(self, x: Tensor, bias: Tensor, points: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`x [b, n, dim]`; `bias` broadcastable to `[heads, b, n, n]`, masked keys at the dtype's minimum.

        Returns `[b, n, dim]`, and the weighted sums `[heads, b, n, k]` of `points [b, n, k]`.
        """
        x = self.node_norm(x)
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        out, sums = attend(self.q_layer_norm(q), self.k_layer_norm(k), v, bias, self.heads, points)
        return self.to_out_node(torch.sigmoid(self.to_g(x)) * out), sums


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int, points: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of `[b, n, dim]` tensors with a bias `[heads or 1, b, n or 1, n]`; returns `[b, n, dim]`.

    With `points [b, n, k]` also their averages under the same weights, `[heads, b, n, k]` in float32.
    """
    b, n, dim = q.shape
    bias = bias.to(v.dtype)
    if q.is_cuda and points is None:
        q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.transpose(0, 1))
        return out.transpose(1, 2).flatten(-2), None
    # On a CPU the explicit form takes less than half the time of scaled_dot_product_attention with a bias.
    q, k, v = (a.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3).reshape(heads * b, n, -1) for a in (q, k, v))
    bias = bias.expand(heads, b, n, n).reshape(heads * b, n, n)
    weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=(dim // heads) ** -0.5).softmax(dim=-1)
    out = (weights @ v).view(heads, b, n, -1).permute(1, 2, 0, 3).flatten(-2)
    if points is None:
        return out, None
    with full_precision(points):
        # Transposed, a third of the time: matrix products with 4 columns are slow.
        sums = points.transpose(1, 2) @ weights.float().view(heads, b, n, n).transpose(2, 3)
        return out, sums.transpose(2, 3)


class AttentionBlock(nn.Module):
    """adaLN -> attention -> output scale."""

    def __init__(self, dim: int, heads: int, pair_dim: int | None, dim_cond: int, qkln: bool) -> None:
        super().__init__()
        self.adaln = AdaptiveLayerNorm(dim, dim_cond)
        self.mha = PairBiasedAttention(dim, heads, pair_dim, qkln)
        self.scale_output = OutputScale(dim, dim_cond)

    def forward(
        self, x: Tensor, bias: Tensor, c: Conditioning, points: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        out, sums = self.mha(self.adaln.modulate(x, c), bias, points)
        return c.scale(out, self.scale_output(c.rows)), sums


class TransitionBlock(nn.Module):
    """adaLN -> SwiGLU -> output scale."""

    def __init__(self, dim: int, dim_cond: int, expansion: int = 4) -> None:
        super().__init__()
        self.adaln = AdaptiveLayerNorm(dim, dim_cond)
        self.transition = SwiGLU(dim, expansion)
        self.scale_output = OutputScale(dim, dim_cond)

    def forward(self, x: Tensor, c: Conditioning) -> Tensor:
        return c.scale(self.transition(self.adaln.modulate(x, c)), self.scale_output(c.rows))


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

    def forward(
        self, s: Tensor, bias: Tensor, c: Conditioning, points: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`s [b, N, dim]` -> `[b, N, dim]`; see `PairBiasedAttention` for `bias` and `points`."""
        attended, sums = self.mhba(s, bias, c, points)
        if self.residual_mha:
            attended = s + attended
        source = s if self.parallel else attended
        moved = self.transition(source, c)
        if self.residual_transition:
            moved = source + moved
        return (attended + moved if self.parallel else moved), sums


def bias_weights(layers: Sequence[TransformerLayer]) -> list[Tensor]:
    """The parameters that `attention_bias` reads."""
    mhas = [layer.mhba.mha for layer in layers]
    return [w for m in mhas for w in (m.pair_norm.weight, m.pair_norm.bias, m.to_bias.weight)]


def attention_bias(z: Tensor, layers: Sequence[TransformerLayer]) -> Tensor:
    """Biases of several layers that read the same pair representation, with one matrix product.

    The layers share the affine-free LayerNorm of `z [rows, pair_dim]`; each one's `pair_norm` affine is folded into its
    projection. Returns `[len(layers) * heads, rows]`.
    """
    mhas = [layer.mhba.mha for layer in layers]
    weight = torch.cat([m.to_bias.weight.float() * m.pair_norm.weight for m in mhas])
    shift = torch.cat([m.to_bias.weight.float() @ m.pair_norm.bias.float() for m in mhas])
    dtype = compute_dtype(mhas[0].to_bias.weight)
    return torch.addmm(shift.to(dtype).unsqueeze(1), weight.to(dtype), normalise(z).to(dtype).T)
