"""A small autoregressive transformer with an exact key-value cache: the default judge, and the baseline of `bench`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.domains.text.network import Rotary, attention, rotate
from xdistill.errors import XDistillError
from xdistill.models import Cond, NoCond
from xdistill.process.mask import uniforms
from xdistill.rng import Generator
from xdistill.samplers.mask import PLAIN, TokenDraw
from xdistill.state import Tokens


@dataclass(frozen=True)
class CausalConfig:
    """Sizes of a CausalLM. context: the most tokens of a sequence. mask_id: an id that is never predicted."""

    vocabulary: int
    mask_id: int
    context: int = 128
    hidden: int = 192
    blocks: int = 6
    heads: int = 3
    dropout: float = 0.1


@dataclass
class Cache:
    """Keys and values of every block, [blocks, B, heads, context, d], of the first `length` positions.

    The next call writes behind them in place: a cache that was extended once is used up.
    """

    keys: Tensor
    values: Tensor
    length: int = 0


class CausalLM(nn.Module):
    """Pre-norm decoder with rotary positions, GELU and tied embeddings; satisfies `ARModel`."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.rotary = Rotary(config.hidden // config.heads)
        self.blocks = nn.ModuleList(Decoder(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """log p of the token after each position, float32 [B, T, V]; ids [B, T] follow what the cache holds.

        Raises XDistillError for more tokens than the context.
        """
        logits = F.linear(self.features(ids, cache), self.embedding.weight).float()
        column = torch.zeros(self.config.vocabulary, device=ids.device)
        column[self.config.mask_id] = float("-inf")
        return (logits + column).log_softmax(-1)

    def features(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states [B, T, H] below the vocabulary."""
        start = cache.length if cache else 0
        end = start + ids.shape[1]
        if end > self.config.context:
            raise XDistillError(f"{end} tokens: the autoregressive model has a context of {self.config.context}")
        h = F.dropout(self.embedding(ids), self.config.dropout, self.training)
        cos, sin = self.rotary(end)
        place = torch.arange(end, device=ids.device)
        attend = None if len(place) - start == 1 else place <= place[start:, None]
        for i, block in enumerate(self.blocks):
            past = (cache.keys[i], cache.values[i]) if cache else None
            h = block(h, (cos[start:], sin[start:]), attend, past, start)
        if cache:
            cache.length = end
        return self.norm(h)

    def log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L - 1] log p(ids[:, i + 1] | ids[:, :i + 1]), 0 where mask [B, L] is False (padding behind the text)."""
        log_p = self(ids[:, :-1]).gather(2, ids[:, 1:, None]).squeeze(2)
        return log_p.masked_fill(~mask[:, 1:], 0.0)

    def start(self, cond: Cond, batch: int = 1) -> Cache:
        """An empty cache for `batch` sequences."""
        c, weight, device = self.config, self.embedding.weight, self.embedding.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        shape = (c.blocks, batch, c.heads, c.context, c.hidden // c.heads)
        zeros = torch.zeros((2, *shape), device=weight.device, dtype=dtype)
        return Cache(zeros[0], zeros[1])

    def next(self, cache: Cache, prev: Tensor) -> tuple[Tensor, Cache]:
        """log p [B, V] of the token after prev [B], and the cache with prev in it."""
        return self(prev[:, None], cache)[:, 0], cache


class Decoder(nn.Module):
    """Causal attention and MLP, each behind a LayerNorm."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        hidden, self.heads, self.dropout = config.hidden, config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden)
        )
        for layer in (self.out, self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02 / (2 * config.blocks) ** 0.5)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        start: int,
    ) -> Tensor:
        b, new, hidden = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, new, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if past:
            for held, part in zip(past, (k, v), strict=True):
                held[:, :, start : start + new] = part
            k, v = (held[:, :, : start + new] for held in past)
        y = attention(q, k, v, attend).transpose(1, 2).reshape(b, new, hidden)
        x = x + F.dropout(self.out(y), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


@torch.no_grad()
def continue_text(model: CausalLM, like: Tokens, generator: Generator, *, draw: TokenDraw = PLAIN) -> Tokens:
    """One token a call behind position 0, [B, L]; that one and what else is given are taken from `like`."""
    u, ids = uniforms(like, generator), like.ids.clone()
    cache = model.start(NoCond(), like.batch)
    for i in range(1, ids.shape[1]):
        log_p, cache = model.next(cache, ids[:, i - 1])
        ids[:, i] = torch.where(like.free[:, i], draw(log_p, u[:, i]), ids[:, i])
    return like.with_ids(ids)


def save_causal(model: CausalLM, path: Path, facts: dict[str, Any]) -> None:
    """float16 weights, with configuration and provenance in the metadata."""
    from safetensors.torch import save_file

    weights = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(weights, part, {"config": json.dumps(asdict(model.config)), "run": json.dumps(facts)})
    part.replace(path)


def load_causal(path: Path) -> CausalLM:
    """The network of a file of `save_causal`, in float32 and eval mode; raises XDistillError when it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            config = CausalConfig(**json.loads(file.metadata()["config"]))
            weights = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118, it is no dict
        model = CausalLM(config)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise XDistillError(
            f"{path} holds no autoregressive judge: expected a file of tools/train_text_judge.py"
        ) from error
    return model.eval()
