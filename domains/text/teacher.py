"""The networks of the text domain: the shipped teacher and student, and what describes a network in a checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from xdistill.domains.text.corpus import ASSETS
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.network import SIZES, Block, TextConfig, TextDiT
from xdistill.errors import UsageError
from xdistill.process import MaskProcess
from xdistill.registry import nearest

SHIPPED_TEACHER = ASSETS / "mini_teacher.safetensors"
SHIPPED_STUDENT = ASSETS / "mini_student"

#: The shipped network: 192 features fit a laptop's cache, and the passage of time is left to the masks.
MINI = {"hidden": 192, "blocks": 6, "heads": 3, "cond": 32, "dropout": 0.0}


def fresh(size: str, vocabulary: int, process: MaskProcess) -> TextDenoiser:
    """A network to train: `mini`, the shipped teacher's size, or a published size; raises UsageError for another."""
    sizes: dict[str, dict[str, Any]] = {"mini": MINI, **SIZES}
    if size not in sizes:
        raise UsageError(f"domain.size={size}: expected {', '.join(sizes)}{nearest(size, sizes)}")
    net = TextDiT(TextConfig(vocabulary, **sizes[size]))
    look_around(net)
    return TextDenoiser(net, process)


@torch.no_grad()
def look_around(net: TextDiT, sharpness: float = 3.0) -> None:
    """Start with open gates, and the first two heads of every block at the next and the previous token.

    With adaLN-zero nothing in a block's input is common to all tokens, so that attention by position has to be found by
    chance: small runs sit at the unigram loss for hundreds of updates. A random shift c makes something common, and
    queries rotated against keys by one position make R_i q(c) . R_j k(c) largest at j = i + 1 or i - 1.
    """
    hidden, inv_freq = net.config.hidden, net.rotary_emb.inv_freq
    width = 2 * len(inv_freq)
    key = torch.cat([torch.ones_like(inv_freq), torch.zeros_like(inv_freq)])
    for block in net.blocks:
        assert isinstance(block, Block)
        shift1, _, gate1, _, _, gate2 = block.adaLN_modulation.bias.chunk(6)
        shift1.normal_()
        gate1.fill_(1)
        gate2.fill_(1)
        common = sharpness * shift1 / (shift1 @ shift1)
        for head, offset in enumerate((1, -1)):
            query = torch.cat([(offset * inv_freq).cos(), (offset * inv_freq).sin()])
            rows = slice(head * width, (head + 1) * width)
            block.attn_qkv.weight[:hidden][rows] += torch.outer(query, common)
            block.attn_qkv.weight[hidden : 2 * hidden][rows] += torch.outer(key, common)


def describe(model: TextDenoiser) -> dict[str, Any]:
    """What `from_description` needs, as plain JSON values."""
    process = model.process
    return {
        "config": model.net.config.to_dict(),
        "timed": model.timed,
        "mask_id": process.mask_id,
        "eps": process.eps,
    }


def from_description(d: dict[str, Any]) -> TextDenoiser:
    """An uninitialised network."""
    process = MaskProcess(d["mask_id"], d["eps"])
    return TextDenoiser(TextDiT(TextConfig.from_dict(d["config"])), process, timed=d["timed"])
