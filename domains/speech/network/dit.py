"""F5Net: the diffusion transformer of F5-TTS (2410.06885; speech spec 1.2, 1.3), under its official parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xdistill.domains.speech.network.blocks import (
    DiTBlock,
    InputEmbedding,
    Modulation,
    Padding,
    RotaryTable,
    TimeEmbedding,
    modulate,
)
from xdistill.domains.speech.network.config import F5Config
from xdistill.domains.speech.network.text import TextEmbedding
from xdistill.errors import UsageError


class F5Net(nn.Module):
    """Velocity of F5's native time s (0 noise, 1 data) of a mel [B, N, mel_dim].

    Official networks see their padding: text norms run over it, and it is attended to unless `attn_mask_enabled`.
    """

    def __init__(self, config: F5Config) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.time_embed = TimeEmbedding(d, config.time_scale)
        if config.second_time == "added":
            self.interval_embed = TimeEmbedding(d, 1.0, zero=True)
        elif config.second_time == "mixer":
            self.time_embed_mixer = nn.Linear(2 * d, d, bias=False)
            nn.init.eye_(self.time_embed_mixer.weight)
        if config.guidance_input:
            self.guidance_embed = TimeEmbedding(d, 1.0, zero=True)
        self.text_embed = TextEmbedding(config)
        self.input_embed = InputEmbedding(config)
        self.rotary_embed = RotaryTable(config.dim_head)
        self.transformer_blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        if config.long_skip:
            self.long_skip_connection = nn.Linear(2 * d, d, bias=False)
        self.norm_out = Modulation(d, 2)
        self.proj_out = nn.Linear(d, config.mel_dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.activation_checkpointing = False

    def forward(
        self,
        z: Tensor,
        s: Tensor,
        cond_mel: Tensor,
        text_embed: Tensor,
        mask: Tensor | None = None,
        *,
        interval: Tensor | None = None,
        guidance: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> Tensor:
        """V = dz/ds [B, N, mel_dim]; at an interval, the average velocity from s to s + interval.

        Args:
            z: state [B, N, mel_dim]. cond_mel: known mel, zero where unknown or dropped. text_embed: of `embed_text`.
            s: [B] or a scalar, native time.
            mask: [B, N] bool, True = real frame; None when there is no padding.
            interval: [B], t - r >= 0; None is 0. guidance: [B], scale; None is the usual one.
            rotary: of `rotary`, where it is kept between calls.

        Raises UsageError for an input that the configuration does not have.
        """
        c = F.silu(self.condition(s.expand(len(z)), interval, guidance))
        padding = None if mask is None else Padding.of(mask, self.proj_out.weight.dtype)
        x = self.input_embed(z, cond_mel, text_embed, padding)
        x = self.blocks(x, c, self.rotary(z.shape[1]) if rotary is None else rotary, padding)
        scale, shift = self.norm_out(c)
        return self.proj_out(modulate(x, scale, shift))

    def embed_text(
        self, ids: Tensor, length: int | Tensor, drop: bool | Tensor = False, frames: Tensor | None = None
    ) -> Tensor:
        """Text features [B, N, text_dim], the same at all times: see `TextEmbedding.forward`."""
        return self.text_embed(ids, length, drop, frames)

    def rotary(self, length: int) -> Tensor:
        """Rotary table of `length` frames, the same at all times."""
        return self.rotary_embed(length)

    def condition(self, s: Tensor, interval: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """Time embedding [B, d] of s [B], the interval and the guidance scale."""
        second = self.config.second_time
        if interval is not None and second == "none":
            raise UsageError("this F5 network has no second time: build it with second_time=added")
        usual = self.config.guidance_input
        if guidance is not None and not usual:
            raise UsageError("this F5 network is told no guidance scale: a student of fit guidance.range=[1,4] is")
        c = self.time_embed(s)
        interval = torch.zeros_like(s) if interval is None else interval.expand_as(s)
        if second == "added":
            c = c + self.interval_embed(interval)
        elif second == "mixer":
            with torch.autocast(c.device.type, enabled=False):
                c = self.time_embed_mixer(torch.cat([c, self.time_embed(s + interval)], -1))
        if usual:
            c = c + self.guidance_embed(torch.full_like(s, usual) if guidance is None else guidance.expand_as(s))
        return c

    def blocks(self, x: Tensor, c: Tensor, rotary: Tensor, padding: Padding | None) -> Tensor:
        """Hidden states [B, N, d] after the transformer blocks; c is the activated time embedding."""
        start = x
        for block in self.transformer_blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, c, rotary, padding, use_reentrant=False)
            else:
                x = block(x, c, rotary, padding)
        return self.long_skip_connection(torch.cat([x, start], -1)) if self.config.long_skip else x
