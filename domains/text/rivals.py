"""What `bench` sets beside a text student: an autoregressive model of the same size, and caches that approximate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from xdistill import rng
from xdistill.domain import TeacherSampler
from xdistill.domains.text.causal import CausalLM, continue_text, load_causal
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.models import Batch
from xdistill.process import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.cached import KINDS, cache_gap
from xdistill.samplers.draws import TokenDraw
from xdistill.samplers.mask import grid
from xdistill.state import Tokens


def autoregressive(path: Path, tokenizer: TextTokenizer, context: int) -> tuple[nn.Module, TeacherSampler] | None:
    """The CausalLM of a file with its sampler, a call a token by a key-value cache; None when it reads other tokens.

    Raises XDistillError for a damaged file.
    """
    if not path.is_file():
        return None
    model = load_causal(path)
    config = model.config
    if (config.vocabulary, config.mask_id) != (tokenizer.vocabulary, tokenizer.mask_id) or config.context < context:
        return None
    return model, one_by_one(model)


def one_by_one(network: CausalLM) -> TeacherSampler:
    """`continue_text` as a sampler: its calls are as many as tokens, whatever is asked for."""

    def sample(
        model: Any, batch: Batch, generator: Generator, *, steps: int | None = None, temperature: float = 1.0
    ) -> Tokens:
        return continue_text(network, batch.like, generator, draw=TokenDraw(temperature))

    return sample


def cache_gaps(model: Any, process: MaskProcess, steps: int, batch: Batch, seed: int) -> dict[str, Mapping[str, float]]:
    """Method -> what its cache changes in `steps` calls (see `samplers.cached.Gap`)."""
    z = process.prior(batch.like, rng.per_sample(seed, range(batch.like.batch)))
    return {
        f"{kind}_cache": asdict(cache_gap(model, process, grid(steps), z, batch.cond, seed, kind=kind))
        for kind in KINDS
        if kind != "none"
    }
