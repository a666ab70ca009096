"""From named weights to the network they belong to: sizes are those of the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.network import SIZES, Rotary, TextConfig, TextDiT
from xdistill.domains.text.stored import Stored
from xdistill.errors import XDistillError
from xdistill.foreign import check_fit
from xdistill.process import MaskProcess

OTHER = "give a masked diffusion network, and the tokenizer it was trained with (domain.tokenizer)"
EMBEDDING, TIME = "vocab_embed.embedding", "sigma_map.mlp.2.weight"


def build(
    state: Mapping[str, Tensor],
    stored: Stored,
    *,
    mask_id: int | None = None,
    timed: bool | None = None,
    heads: int | None = None,
) -> TextDenoiser:
    """The network of these weights, sizes taken from their shapes; on meta tensors nothing is allocated."""
    config = sizes(state, stored, heads)
    said = stored.config.get("mask_index", config.vocabulary - 1 if mask_id is None else mask_id)
    mask = said if mask_id is None else mask_id
    if mask != said:
        raise XDistillError(f"mask_id={mask}: {stored.path} says that its mask is id {said}: {OTHER}")
    if not 0 <= mask < config.vocabulary:
        raise XDistillError(
            f"mask_id={mask}: {stored.path} has ids 0 to {config.vocabulary - 1}, no mask among them: {OTHER}"
        )
    told = bool(stored.config.get("time_conditioning", False)) if timed is None else timed
    with torch.device("meta"):
        net = TextDiT(config)
    state = {"rotary_emb.inv_freq": Rotary(config.hidden // config.heads).inv_freq, **state}
    check_fit(stored.path, net.state_dict(), state)
    net.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return TextDenoiser(net, MaskProcess(mask, stored.config.get("noise_eps", 1e-3)), timed=told).eval()


def sizes(state: Mapping[str, Tensor], stored: Stored, heads: int | None) -> TextConfig:
    """Sizes from shapes; heads from inv_freq, else from the configuration, else from the published sizes."""
    embedding, time = state.get(EMBEDDING), state.get(TIME)
    if embedding is None or time is None or embedding.dim() != 2 or time.dim() != 2:
        raise XDistillError(f"{stored.path} holds no text network: expected {EMBEDDING} and {TIME}")
    (vocabulary, hidden), cond = embedding.shape, len(time)
    blocks = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    said = stored.config
    for key, size in (
        ("vocab_size", vocabulary),
        ("hidden_size", hidden),
        ("hidden_dim", hidden),
        ("n_blocks", blocks),
    ):
        if said.get(key, size) != size:
            raise XDistillError(f"{stored.path}: the configuration says {key}={said[key]}, the weights {size}")
    inv_freq = state.get("rotary_emb.inv_freq")
    if heads is None and inv_freq is not None and inv_freq.numel():
        heads = hidden // (2 * inv_freq.numel())
    if heads is None:
        heads = said.get("n_heads") or next((s["heads"] for s in SIZES.values() if s["hidden"] == hidden), None)
    if not heads:
        raise XDistillError(f"{stored.path} does not say how many attention heads it has: give heads=N")
    return TextConfig(vocabulary, hidden, blocks, heads, cond, float(said.get("dropout", 0.1)))
