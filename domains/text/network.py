"""TextDiT: the bidirectional transformer of MDLM (2406.07524; text spec 1.4), under its official parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.blocks import Past
from xdistill.errors import UsageError
from xdistill.registry import nearest

FREQUENCIES = 128  # of the time features
ROTARY_BASE = 10_000.0

#: Own keys and values [B, heads, L, d] -> all that a layer attends to.
Join = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a TextDiT. vocabulary counts the mask; cond is the width of the time conditioning."""

    vocabulary: int
    hidden: int = 768
    blocks: int = 12
    heads: int = 12
    cond: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise UsageError(f"hidden={self.hidden}, heads={self.heads}: expected an even number of features a head")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TextConfig:
        """From plain values; raises UsageError for an unknown key."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UsageError(f"unknown key '{key}' of a TextDiT{nearest(key, known)}")
        return cls(**values)


#: The published sizes (text spec 1.4), without the vocabulary.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 512, "blocks": 8, "heads": 8},
    "small": {"hidden": 768, "blocks": 12, "heads": 12},
    "medium": {"hidden": 1024, "blocks": 24, "heads": 16},
}


class TextDiT(nn.Module):
    """Token ids or soft tokens and a noise level to logits over the vocabulary.

    A noise level sigma of shape [1] holds for the whole batch, and makes the modulation one row that costs nothing.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = Embedding(config.vocabulary, config.hidden)
        self.sigma_map = TimeEmbedding(config.cond)
        self.rotary_emb = Rotary(config.hidden // config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.output_layer = Head(config)
        self.activation_checkpointing = False

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        at: Tensor | None = None,
        mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Logits [B, L, V], or [N, V] of the positions `at` ([B, L] bool) alone.

        Args:
            x: ids [B, L] int64, or float [B, L, V] logits whose softmax mixes the embeddings.
            sigma: [B] or [1].
            mask: [B, L] bool, True = real token; None when there is no padding.
            past: keys and values of tokens that are not in x, which begins at its `start`.
        """
        c = self.condition(sigma)
        h = self.trunk(x, c, mask=mask, past=past)
        return self.output_layer(h, c, at)

    def condition(self, sigma: Tensor) -> Tensor:
        """The conditioning vector [B or 1, C] of all adaLN layers."""
        return F.silu(self.sigma_map(sigma))

    def trunk(
        self,
        x: Tensor,
        c: Tensor,
        *,
        mask: Tensor | None = None,
        blocks: int | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Hidden states [B, L, H] after all or the first `blocks` blocks."""
        h = self.vocab_embed(x)
        rotary = self.rotary_emb(h.shape[1], past.start if past else 0)
        checkpointing = self.activation_checkpointing
        return run_blocks(self.blocks[:blocks], h, c, rotary, mask, checkpointing=checkpointing, past=past)


def run_blocks(
    blocks: Iterable[nn.Module],
    h: Tensor,
    c: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    *,
    checkpointing: bool = False,
    past: Past | None = None,
) -> Tensor:
    """Hidden states [B, L, H] after `blocks`, whose activations are computed again in the backward pass on demand.

    mask: [B, L] bool, True = real token, or [..., L, L] of who sees whom.
    """
    attend = mask if mask is None or mask.ndim == 4 else mask[:, None, None, :]
    for i, block in enumerate(blocks):
        join = None if past is None else partial(past.join, i)
        if checkpointing and torch.is_grad_enabled():
            h = torch.utils.checkpoint.checkpoint(block, h, c, rotary, attend, join, use_reentrant=False)
        else:
            h = block(h, c, rotary, attend, join)
    return h


class Embedding(nn.Module):
    """Rows of a matrix by id, or mixed by the softmax of soft tokens."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocabulary, hidden))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return F.embedding(x, self.embedding)
        with torch.autocast(x.device.type, enabled=False):
            return x.float().softmax(-1) @ self.embedding.float()


class TimeEmbedding(nn.Module):
    """Sinusoidal features of sigma, cosines first, then a two-layer MLP."""

    def __init__(self, cond: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, cond), nn.SiLU(), nn.Linear(cond, cond))

    def forward(self, sigma: Tensor) -> Tensor:
        with torch.autocast(sigma.device.type, enabled=False):
            k = torch.arange(FREQUENCIES, device=sigma.device, dtype=torch.float32)
            angle = sigma.float()[:, None] * torch.exp(-math.log(1e4) * k / FREQUENCIES)
            return self.mlp(torch.cat([angle.cos(), angle.sin()], 1))


class Rotary(nn.Module):
    """Rotary position embedding of all features of a head, first half paired with second (2104.09864)."""

    inv_freq: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", ROTARY_BASE ** (-torch.arange(0, width, 2) / width))

    def forward(self, length: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """cos, sin [L, width / 2] in float32, of the positions from `start` on."""
        angle = torch.arange(start, start + length, device=self.inv_freq.device)[:, None] * self.inv_freq.float()
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [..., L, width] by its positions."""
    cos, sin = (part.to(x) for part in rotary)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of [B, heads, L, d]; attend: bool, broadcast to [B, heads, L, L].

    torch's fused kernels (flash on CUDA), but for training on a CPU, where their backward pass takes thrice as long as
    plain products at a few hundred tokens.
    """
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attend)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attend is not None:
        scores = scores.masked_fill(~attend, float("-inf"))
    return scores.softmax(-1) @ v


class ModulatedNorm(nn.Module):
    """LayerNorm without bias, then x (1 + scale) + shift, in fp32."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """shift, scale [B or 1, H]."""
        size = self.weight.shape
        with torch.autocast(x.device.type, enabled=False):
            x, shift, scale = x.float(), shift.float(), scale.float()
            if len(shift) == 1:  # one modulation for all: part of the norm
                return F.layer_norm(x, size, self.weight * (1 + scale[0]), shift[0], 1e-5)
            per_row = (len(shift), *[1] * (x.ndim - 2), size[0])
            return F.layer_norm(x, size, self.weight, None, 1e-5) * (1 + scale.view(per_row)) + shift.view(per_row)


class Block(nn.Module):
    """Pre-norm attention and MLP, both modulated and gated by the conditioning (adaLN-zero, 2212.09748)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        hidden, self.heads, self.dropout = config.hidden, config.heads, config.dropout
        self.norm1 = ModulatedNorm(hidden)
        self.attn_qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.attn_out = nn.Linear(hidden, hidden, bias=False)
        self.norm2 = ModulatedNorm(hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden)
        )
        self.adaLN_modulation = nn.Linear(config.cond, 6 * hidden)
        nn.init.zeros_(self.adaLN_modulation.weight)
        nn.init.zeros_(self.adaLN_modulation.bias)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: Tensor | None,
        join: Join | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, 1)
        out = self.attn_out(self.attention(self.norm1(x, shift1, scale1), rotary, attend, join))
        x = x + gate1[:, None] * F.dropout(out, self.dropout, self.training)
        out = self.mlp(self.norm2(x, shift2, scale2))
        return x + gate2[:, None] * F.dropout(out, self.dropout, self.training)

    def attention(
        self, y: Tensor, rotary: tuple[Tensor, Tensor], attend: Tensor | None, join: Join | None = None
    ) -> Tensor:
        """Bidirectional attention of all positions to those that `attend` allows, and to remembered ones, [B, L, H]."""
        b, length, hidden = y.shape
        q, k, v = self.attn_qkv(y).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if join is not None:
            k, v = join(k, v)
        out = attention(q, k, v, attend)
        return out.transpose(1, 2).reshape(b, length, hidden)


class Head(nn.Module):
    """Final modulated norm and the vocabulary head, at all or at chosen positions."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.norm_final = ModulatedNorm(config.hidden)
        self.linear = nn.Linear(config.hidden, config.vocabulary)
        self.adaLN_modulation = nn.Linear(config.cond, 2 * config.hidden)
        for layer in (self.linear, self.adaLN_modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, c: Tensor, at: Tensor | None) -> Tensor:
        """[B, L, V], or [N, V] at the True positions of `at`."""
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        if at is not None:
            if len(c) > 1:
                row = at.nonzero()[:, 0]
                shift, scale = shift[row], scale[row]
            h = h[at]
        return self.linear(self.norm_final(h, shift, scale))
