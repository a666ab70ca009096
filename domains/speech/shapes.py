"""Sizes of an F5 network, read from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from xdistill.domains.speech.network import F5Config
from xdistill.errors import UsageError, XDistillError


def deduce(state: Mapping[str, Tensor], switches: F5Config, path: Path) -> F5Config:
    """`switches` with all that shapes and names tell.

    Raises XDistillError when a tensor that tells a size is missing, or the sizes contradict each other.
    """
    block, ff = "transformer_blocks.0.", "transformer_blocks.0.ff.ff.0.0.weight"
    needed = (
        "proj_out.weight",
        "text_embed.text_embed.weight",
        "rotary_embed.inv_freq",
        block + "attn.to_q.weight",
        ff,
    )
    missing = [k for k in needed if k not in state]
    if missing:
        raise XDistillError(f"{path} is no complete F5 network: missing {missing[0]}")
    mel_dim, dim = state["proj_out.weight"].shape
    rows, text_dim = state["text_embed.text_embed.weight"].shape
    dim_head = 2 * len(state["rotary_embed.inv_freq"])
    sizes: dict[str, Any] = {
        **{"mel_dim": mel_dim, "dim": dim, "text_dim": text_dim, "dim_head": dim_head, "vocab_size": rows - 1},
        "depth": _count(state, "transformer_blocks"),
        "heads": len(state[block + "attn.to_q.weight"]) // dim_head,
        "ff_mult": len(state[ff]) / dim,
        "conv_layers": _count(state, "text_embed.text_blocks"),
        "qk_norm": "rms_norm" if block + "attn.q_norm.weight" in state else None,
        "long_skip": "long_skip_connection.weight" in state,
    }
    try:
        return replace(switches, **sizes)
    except UsageError as error:
        raise XDistillError(f"{path}: {error}") from error


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Members of a list of modules."""
    depth = prefix.count(".") + 1
    return 1 + max((int(k.split(".")[depth]) for k in state if k.startswith(prefix + ".")), default=-1)
