"""Text: masked diffusion language models, distilled into students of a few network calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from xdistill.domain import DataSource, Metric, TeacherSampler
from xdistill.domains.text import teacher
from xdistill.domains.text.corpus import ASSETS, split
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.packing import Packed, PackedSource
from xdistill.domains.text.serving import TextServing
from xdistill.domains.text.tokenizers import TextTokenizer, read_tokenizer
from xdistill.errors import UsageError
from xdistill.models import Batch
from xdistill.process import MaskProcess
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.samplers.mask import ancestral, grid
from xdistill.state import Tokens


@dataclass(frozen=True)
class TextDomainConfig:
    """The text domain's section of a configuration.

    tokenizer: `shipped` (a BPE of 1,024 ids trained on the corpus). context: tokens of a sequence. reference_steps:
    network calls of the teacher's own sampler.
    """

    tokenizer: str = "shipped"
    context: int = 128
    reference_steps: int = 128


class TextDomain(TextServing):
    """Token sequences of one context length; see `TextDomainConfig` for its keys and text spec for the conventions."""

    name = "text"

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        known = [f.name for f in fields(TextDomainConfig)]
        for key in cfg:
            if key not in known:
                raise UsageError(f"unknown key 'domain.{key}' of the text domain{nearest(key, known)}")
        self.text = TextDomainConfig(**cfg)
        self.context = self.text.context
        self.process = MaskProcess(self.tokenizer.mask_id)

    @cached_property
    def tokenizer(self) -> TextTokenizer:  # type: ignore[override]
        """The configured tokenizer."""
        return read_tokenizer(ASSETS / "austen_bpe1024.json")

    def teacher(self) -> nn.Module:
        raise UsageError("the text domain ships no teacher yet")

    def network(self) -> nn.Module:
        return teacher.mini(self.tokenizer.vocabulary, self.process)

    def describe(self, module: nn.Module) -> dict[str, Any]:
        return teacher.describe(module) if isinstance(module, TextDenoiser) else {}

    def from_description(self, description: Mapping[str, Any]) -> nn.Module:
        return teacher.from_description(dict(description))

    def packed(self, name: str) -> Packed:
        """The `train` or `validation` stream of ids."""
        t = self.tokenizer
        ids = [i for text in split(name) for i in [*t.encode(text), t.end_id]]
        return Packed(np.asarray(ids, dtype=np.uint16), self.text.context, t.end_id)

    def data(self, batch_size: int, seed: int) -> DataSource:
        return PackedSource(self.packed("train"), seed, batch_size)

    def null_data(self, batch_size: int, seed: int) -> DataSource:
        return self.data(batch_size, seed)

    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        def sample(model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Tokens:
            z = self.process.prior(batch.like, generator)
            return ancestral(model, self.process, grid(steps or self.text.reference_steps), z, batch.cond, generator)

        return {"reference": sample}

    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return {"score": Metric(0.0, 0.0, 0.0, len(samples))}
