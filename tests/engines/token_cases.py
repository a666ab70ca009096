"""Tiny roles and data of token objectives: a text transformer and a discriminator that borrows its first block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from xdistill import rng
from xdistill.domain import clone
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.discriminator import TokenDiscriminator
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.models import Batch
from xdistill.process import MaskProcess
from xdistill.state import Tokens

PROCESS = MaskProcess(mask_id=4)
SIZES = TextConfig(vocabulary=9, hidden=16, blocks=2, heads=2, cond=8, dropout=0.0)
BATCH, LENGTH = 2, 6


@dataclass(frozen=True)
class TokenSource:
    """Random sequences without the mask, of two lengths."""

    def batch(self, index: int, rank: int, world: int) -> Batch[Tokens]:
        g = rng.generator("tokens", index, rank)
        ids = torch.randint(0, SIZES.vocabulary - 1, (BATCH, LENGTH), generator=g)
        mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 2]])
        return Batch(Tokens(torch.where(ids == PROCESS.mask_id, SIZES.vocabulary - 1, ids), mask))


class Steady(TokenDiscriminator):
    """Never in training mode, where each call is a power iteration: one process makes two calls for two ranks."""

    def train(self, mode: bool = True) -> Steady:
        return super().train(False)


def token_networks(seed: int) -> dict[str, nn.Module]:
    """Roles of a token objective; no tensor is left at zero, or half of the network would not matter."""
    torch.manual_seed(seed)
    teacher = TextDenoiser(TextDiT(SIZES), PROCESS)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.3)
    return {"teacher": teacher, "student": clone(teacher), "discriminator": Steady(teacher, trainable=1).eval()}
