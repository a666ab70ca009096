"""The discriminator of DiDi-Instruct: the teacher's first blocks, borrowed, own last blocks, and a logit a position."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill import rng
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.network import TextDiT, run_blocks
from xdistill.errors import UsageError
from xdistill.models import Cond
from xdistill.state import Tokens

FIRST_ITERATIONS = 15  # of a fresh layer: random vectors would divide it by about nothing


@dataclass(frozen=True)
class Borrowed:
    """A network that belongs to another role: hidden from nn.Module, and copies of the borrower share it."""

    net: TextDiT

    def __deepcopy__(self, memo: dict[int, Any]) -> Borrowed:
        return self


class TokenDiscriminator(nn.Module):
    """log q_real - log q_student of every position of a partly masked sequence (DiDi-Instruct; text spec 2.2).

    Embedding, time MLP and the first blocks are the teacher's: held once in memory, frozen, moved and saved by the role
    that owns them. The last `trainable` blocks start as copies of the teacher's; the head reads their raw output.

    trainable: how many blocks are its own; default 4, or half of a small network's.
    timed: whether it is told sigma(t); the published one is, whatever its teacher was told.
    Raises UsageError when `trainable` is not between 0 and the number of blocks.
    """

    def __init__(self, teacher: TextDenoiser, *, trainable: int | None = None, timed: bool = True) -> None:
        super().__init__()
        net = teacher.net
        total = len(net.blocks)
        own = default_trainable(total) if trainable is None else trainable
        if not 0 <= own <= total:
            raise UsageError(f"trainable={own}: expected 0 to {total}, the blocks of the teacher")
        self._borrowed, self.process, self.timed, self.first = Borrowed(net), teacher.process, timed, total - own
        self.activation_checkpointing = False
        last = list(net.blocks)[self.first :]
        self.blocks = nn.ModuleDict({str(self.first + i): copy.deepcopy(block) for i, block in enumerate(last)})
        self.blocks.requires_grad_(True)
        self.output_layer = SpectralHead(net.config.hidden)
        self.output_layer.to(net.vocab_embed.embedding.device)

    @property
    def trunk(self) -> TextDiT:
        """The borrowed network; it must be on this module's device."""
        return self._borrowed.net

    def forward(self, z: Tokens, t: Tensor, cond: Cond, *, soft: Tensor | None = None) -> Tensor:
        """Logits [B, L] float32, positive where z looks like real data; padding gets numbers without a meaning.

        Args:
            z: a partly masked sequence.
            t: [B], 0 clean and 1 masked.
            soft: [B, L, V] logits of soft tokens that replace z.ids (gradients flow).
        """
        mask = None if bool(z.mask.all()) else z.mask
        net, x = self.trunk, z.ids if soft is None else soft
        t = t.to(z.ids.device)
        sigma = self.process.sigma(t).float() if self.timed else torch.zeros(1, device=t.device)
        with torch.no_grad():
            c = net.condition(sigma)
        with torch.no_grad() if soft is None else nullcontext():
            h = net.trunk(x, c, mask=mask, blocks=self.first)
        rotary = net.rotary_emb(h.shape[1])
        h = run_blocks(self.blocks.values(), h, c, rotary, mask, checkpointing=self.activation_checkpointing)
        return self.output_layer(h).squeeze(-1).float()


def default_trainable(blocks: int) -> int:
    """The blocks that a discriminator trains: 4, as published, or half of a small network's."""
    return min(4, max(1, blocks // 2))


class SpectralHead(nn.Module):
    """Linear(H, H) - SiLU - Linear(H, 1), both with spectral norm 1."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.main = nn.Sequential(SpectralLinear(hidden, hidden), nn.SiLU(), SpectralLinear(hidden, 1))

    def forward(self, h: Tensor) -> Tensor:
        """[..., H] -> [..., 1]."""
        return self.main(h)


class SpectralLinear(nn.Module):
    """A linear layer divided by its largest singular value (1802.05957), under torch's names of 1.x.

    One power iteration a forward in training mode, none in evaluation. Unlike `torch.nn.utils.spectral_norm` no weight
    with a graph is left behind in the module, so it can be copied at any time; initial weights are always the same.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(outputs))
        self.weight_orig = nn.Parameter(torch.empty(outputs, inputs))
        self.register_buffer("weight_u", torch.empty(outputs))
        self.register_buffer("weight_v", torch.empty(inputs))
        if self.bias.is_meta:
            return
        generator, bound = rng.generator("spectral", inputs, outputs), 1 / math.sqrt(inputs)
        for parameter in (self.weight_orig, self.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.weight_u.normal_(generator=generator)
        for _ in range(FIRST_ITERATIONS):
            self.iterate()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                self.iterate()
            # clones: the next iteration must not change what this graph remembers
            u, v = self.weight_u.clone(), self.weight_v.clone()
            weight = self.weight_orig / (u @ (self.weight_orig @ v))
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def iterate(self) -> None:
        """One power iteration towards the largest singular value."""
        self.weight_v.copy_(F.normalize(self.weight_orig.T @ self.weight_u, dim=0, eps=1e-12))
        self.weight_u.copy_(F.normalize(self.weight_orig @ self.weight_v, dim=0, eps=1e-12))
