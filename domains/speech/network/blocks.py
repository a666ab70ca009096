"""Parts of the F5-TTS transformer: time and input embeddings, rotary attention, adaLN blocks."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from xdistill.domains.speech.network.config import CONV_GROUPS, F5Config
from xdistill.domains.speech.network.tables import Table, time_frequencies

_FREQUENCIES = 128  # of the time features
_KERNEL = 31  # of the convolutional position embedding
_EPS = 1e-6
_HIDDEN = 1e4  # taken from a score, exp gives zero


class Padding(NamedTuple):
    """What layers need of a mask: keep [B, N, 1], 0 at padding; bias [B, 1, 1, N], added to the scores of keys."""

    keep: Tensor
    bias: Tensor

    @classmethod
    def of(cls, mask: Tensor, dtype: torch.dtype) -> Padding:
        """From [B, N] bool, True = real frame."""
        keep = mask.to(dtype)
        return cls(keep[..., None], ((keep - 1) * _HIDDEN)[:, None, None, :])

    def zero(self, x: Tensor) -> Tensor:
        """x [B, N, C] without its padding, in the dtype of x."""
        return x * self.keep.to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sinusoids of `scale` times a scalar, sines first, then a two-layer MLP; autocast never reduces its precision."""

    def __init__(self, dim: int, scale: float, *, zero: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.frequencies = Table(partial(time_frequencies, _FREQUENCIES))
        last = nn.Linear(dim, dim)
        self.time_mlp = nn.Sequential(nn.Linear(2 * _FREQUENCIES, dim), nn.SiLU(), _zero(last) if zero else last)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.time_mlp.parameters()).dtype

    def forward(self, s: Tensor) -> Tensor:
        """s [B] -> [B, dim]."""
        with torch.autocast(s.device.type, enabled=False):
            s = s if s.dtype == torch.float64 else s.float()  # 1000 s needs more than 8 bits
            angle = self.scale * s[:, None] * self.frequencies.on(s.device).to(s)
            return self.time_mlp(torch.cat([angle.sin(), angle.cos()], -1).to(self.dtype))


class ConvPosition(nn.Module):
    """Relative positions by two grouped convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        conv = [nn.Conv1d(dim, dim, _KERNEL, padding=_KERNEL // 2, groups=CONV_GROUPS) for _ in range(2)]
        self.conv1d = nn.Sequential(conv[0], nn.Mish(), conv[1], nn.Mish())

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        """x [B, N, C]."""
        x = x if padding is None else padding.zero(x)
        y = self.conv1d[0](x.transpose(1, 2)).transpose(1, 2)
        y = y if padding is None else padding.zero(y)
        # The backward pass of Mish is slow where gradient and input differ in strides: those of its convolution here,
        y = F.mish(y.transpose(1, 2).contiguous())
        y = self.conv1d[2](y).transpose(1, 2)
        y = y if padding is None else padding.zero(y)
        return F.mish(y.contiguous())  # and those of the transformer here.


class InputEmbedding(nn.Module):
    """State, conditioning mel and text side by side to the width of the transformer."""

    def __init__(self, config: F5Config) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * config.mel_dim + config.text_dim, config.dim)
        self.conv_pos_embed = ConvPosition(config.dim)

    def forward(self, z: Tensor, cond_mel: Tensor, text: Tensor, padding: Padding | None) -> Tensor:
        x = self.proj(torch.cat([z, cond_mel.to(z), text.to(z)], -1))
        return x + self.conv_pos_embed(x, padding)


class RotaryTable(nn.Module):
    """Frequencies of the rotary embedding (2104.09864); a buffer, as official checkpoints store it."""

    inv_freq: Tensor

    def __init__(self, dim_head: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10_000.0 ** (torch.arange(0, dim_head, 2).float() / dim_head))

    def forward(self, length: int) -> Tensor:
        """Unit complex numbers [length, 1, dim_head / 2], of float32 parts or wider."""
        inv_freq = self.inv_freq if self.inv_freq.dtype == torch.float64 else self.inv_freq.float()
        angle = torch.arange(length, device=inv_freq.device).to(inv_freq)[:, None] * inv_freq
        return torch.polar(torch.ones_like(angle), angle)[:, None]


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn the interleaved pairs of x [..., N, heads, D], in float32 or wider."""
    pairs = (x if x.dtype == torch.float64 else x.float()).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(pairs) * rotary).flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of [B, heads, N, d].

    torch's fused kernels, but for plain products under forward-mode AD, which those lack, and for training on a
    CPU, where their backward pass is the slower one at a few hundred frames.
    """
    plain = q.requires_grad if q.device.type == "cpu" else False
    if not plain and (torch.compiler.is_compiling() or forward_ad.unpack_dual(q).tangent is None):
        return F.scaled_dot_product_attention(q, k, v, bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions on all or the first `pe_attn_head` heads."""

    def __init__(self, config: F5Config) -> None:
        super().__init__()
        inner = config.heads * config.dim_head
        self.heads, self.dim_head, self.rotated = config.heads, config.dim_head, config.pe_attn_head
        self.hide_padding = config.attn_mask_enabled or config.aligned
        self.to_q, self.to_k, self.to_v = (nn.Linear(config.dim, inner) for _ in range(3))
        if config.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(config.dim_head, eps=_EPS) for _ in range(2))
        self.has_norm = config.qk_norm is not None
        self.to_out = nn.Sequential(nn.Linear(inner, config.dim), nn.Dropout(config.dropout))

    def forward(self, x: Tensor, rotary: Tensor, padding: Padding | None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, self.dim_head)) for f in (self.to_q, self.to_k, self.to_v))
        if self.has_norm:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k, v = (part.transpose(1, 2) for part in (self._rotate(q, rotary), self._rotate(k, rotary), v))
        bias = padding.bias.to(q.dtype) if padding is not None and self.hide_padding else None
        out = self.to_out(attention(q, k, v, bias).transpose(1, 2).flatten(2))
        return out if padding is None else padding.zero(out)

    def _rotate(self, x: Tensor, rotary: Tensor) -> Tensor:
        if self.rotated is None:
            return rotate(x, rotary)
        return torch.cat([rotate(x[:, :, : self.rotated], rotary), x[:, :, self.rotated :]], 2)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, dim: int, mult: float, dropout: float) -> None:
        super().__init__()
        inner = int(dim * mult)
        first = nn.Sequential(nn.Linear(dim, inner), nn.GELU(approximate="tanh"))
        self.ff = nn.Sequential(first, nn.Dropout(dropout), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Modulation(nn.Module):
    """`parts` vectors [B, 1, d] from the conditioning, zero at initialisation."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.linear = _zero(nn.Linear(dim, parts * dim))
        self.parts = parts

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(c)[:, None].chunk(self.parts, -1)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without parameters, then times 1 + scale plus shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=_EPS), 1 + scale)


class DiTBlock(nn.Module):
    """adaLN-zero block: attention, then feed-forward."""

    def __init__(self, config: F5Config) -> None:
        super().__init__()
        self.attn_norm = Modulation(config.dim, 6)
        self.attn = Attention(config)
        self.ff = FeedForward(config.dim, config.ff_mult, config.dropout)

    def forward(self, x: Tensor, c: Tensor, rotary: Tensor, padding: Padding | None) -> Tensor:
        """x [B, N, d]; c [B, d] is the activated time embedding."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.attn_norm(c)
        x = torch.addcmul(x, gate1, self.attn(modulate(x, scale1, shift1), rotary, padding))
        return torch.addcmul(x, gate2, self.ff(modulate(x, scale2, shift2)))


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
