"""Text embedding of F5-TTS: characters cut or filled to the mel's length, or phones already at frame rate."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.domains.speech.network.config import F5Config
from xdistill.domains.speech.network.tables import Table, position_table
from xdistill.errors import XDistillError

POSITIONS = 8192  # longest text of the absolute position table
FRAME_FEATURES = 3  # relative position in the phone, log of its frames, whether it begins a word
_KERNEL = 7


class TextEmbedding(nn.Module):
    """Ids to features [B, N, text_dim] at frame rate (speech spec 1.2, 1.7)."""

    def __init__(self, config: F5Config) -> None:
        super().__init__()
        d = config.text_dim
        self.mask_padding, self.aligned = config.text_mask_padding, config.aligned
        self.text_embed = nn.Embedding(config.vocab_size + 1, d)
        if config.aligned:
            self.frame_proj = nn.Linear(FRAME_FEATURES, d)
        self.positions = Table(partial(position_table, d, POSITIONS))
        self.text_blocks = nn.ModuleList(ConvNeXtV2(d) for _ in range(config.conv_layers))

    def forward(
        self, ids: Tensor, length: int | Tensor, drop: bool | Tensor = False, frames: Tensor | None = None
    ) -> Tensor:
        """[B, N, text_dim].

        Args:
            ids: [B, T] character ids, -1 is padding; aligned networks: [B, N] phone ids from 1, 0 is filler.
            length: the number of frames N, or the mask [B, N] of valid ones.
            drop: samples without text, one flag or [B] bool.
            frames: [B, N, 3] position-in-phone features of aligned networks.
        """
        mask = length if isinstance(length, Tensor) else None
        n = length.shape[1] if isinstance(length, Tensor) else length
        keep = None if drop is False else ~torch.as_tensor(drop, device=ids.device).expand(len(ids))[:, None]
        if self.aligned:
            return self._aligned(ids, mask, keep, frames)
        ids = F.pad((ids + 1)[:, :n], (0, max(n - ids.shape[1], 0)))
        if mask is not None:
            ids = ids * mask
        filler = (ids == 0)[..., None] if self.mask_padding else None
        x = self.text_embed(ids if keep is None else ids * keep)
        x = x if mask is None else x * mask[..., None]
        if not self.text_blocks:
            return x
        table = self.positions.on(x.device)[:n].to(x)
        x = x + (table if mask is None else table * mask[..., None])
        x = x if filler is None else x.masked_fill(filler, 0)
        for block in self.text_blocks:
            x = block(x)
            x = x if filler is None else x.masked_fill(filler, 0)
        return x

    def _aligned(self, ids: Tensor, mask: Tensor | None, keep: Tensor | None, frames: Tensor | None) -> Tensor:
        if frames is None:
            raise XDistillError("an aligned network needs position-in-phone features [B, N, 3] beside its phone ids")
        x = self.text_embed(ids if keep is None else ids * keep)
        x = x + self.frame_proj((frames if keep is None else frames * keep[..., None]).to(self.frame_proj.weight))
        mask = None if mask is None else mask[..., None].to(x.dtype)
        x = x if mask is None else x * mask
        for block in self.text_blocks:
            x = block(x, mask)
        return x


class ConvNeXtV2(nn.Module):
    """Depthwise convolution and a two-layer MLP with GRN, residual (arXiv:2301.00808)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, _KERNEL, padding=_KERNEL // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 2 * dim)
        self.grn = GRN(2 * dim)
        self.pwconv2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, C]; with a mask [B, N, 1], padding (zero in x) stays zero and changes nothing."""
        y = self.norm(self.dwconv(x.transpose(1, 2)).transpose(1, 2))
        y = F.gelu(self.pwconv1(y))
        y = self.pwconv2(self.grn(y if mask is None else y * mask.to(y.dtype)))
        return x + (y if mask is None else y * mask.to(y.dtype))


class GRN(nn.Module):
    """Global response normalisation: channels compete by their norm over the sequence, padding included."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, y: Tensor) -> Tensor:
        norm = y.norm(dim=1, keepdim=True)
        share = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        return torch.addcmul(y + self.beta, y, self.gamma * share)
