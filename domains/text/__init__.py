"""Text: masked diffusion language models, distilled into students of a few network calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from xdistill.domain import DataSource, TeacherSampler
from xdistill.domains.text import teacher
from xdistill.domains.text.checkpoint import check_tokenizer, load_text_model
from xdistill.domains.text.data import corpus, documents_of
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.discriminator import TokenDiscriminator
from xdistill.domains.text.documents import Documents
from xdistill.domains.text.measuring import TextMeasuring
from xdistill.domains.text.packing import MaskedSource, Packed, PackedSource
from xdistill.domains.text.serving import TextServing
from xdistill.domains.text.tokenizer_files import NAMES, load_tokenizer
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.errors import UsageError
from xdistill.models import Batch
from xdistill.process import MaskProcess
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.samplers.mask import TokenDraw, sample_tokens
from xdistill.state import Tokens


@dataclass(frozen=True)
class TextDomainConfig:
    """The text domain's section of a configuration.

    tokenizer: `shipped` (a BPE of 1,024 ids trained on the corpus), `bytes`, `gpt2`, `bpe-N` (trained on the data), or
    a folder of the transformers library. context: tokens of a sequence. size: of a network to train from nothing,
    `mini` or a published one. masking: which tokens are masked together, see `MaskProcess.order`. timed: whether the
    teacher is told the time: `auto` as its file says, else true or false.
    text_key: field of .jsonl and .parquet files that holds the text. holdout: share of your documents kept for
    validation. judge: what measures perplexity, `ar` and `ngram` are ours. reference_steps: network calls of the
    teacher's own sampler.
    """

    tokenizer: str = "shipped"
    context: int = 128
    size: str = "mini"
    masking: str = "independent"
    timed: str | bool = "auto"
    text_key: str = "text"
    holdout: float = 0.02
    judge: str = "ar"
    reference_steps: int = 128


class TextDomain(TextServing, TextMeasuring):
    """Token sequences of one context length; see `TextDomainConfig` for its keys and text spec for the conventions."""

    name = "text"

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        known = [f.name for f in fields(TextDomainConfig)]
        for key in cfg:
            if key not in known:
                raise UsageError(f"unknown key 'domain.{key}' of the text domain{nearest(key, known)}")
        self.text = TextDomainConfig(**cfg)
        if self.text.timed not in ("auto", True, False):
            raise UsageError(f"domain.timed={self.text.timed}: expected auto, true or false")
        self.context, self.judge_name = self.text.context, self.text.judge

    @cached_property
    def process(self) -> MaskProcess:  # type: ignore[override]
        """The masking of this tokenizer."""
        return MaskProcess(self.tokenizer.mask_id, order=self.text.masking)

    @cached_property
    def tokenizer(self) -> TextTokenizer:  # type: ignore[override]
        """The configured tokenizer."""
        return load_tokenizer(self.text.tokenizer, self.documents)

    @cached_property
    def documents(self) -> Documents:
        """The user's documents, or the embedded corpus."""
        return documents_of(self.data_path, self.text.text_key, self.text.holdout)

    @cached_property
    def _teacher(self) -> TextDenoiser:
        path = teacher.SHIPPED_TEACHER if self.teacher_weights == "shipped" else Path(self.teacher_weights)
        timed = None if self.text.timed == "auto" else bool(self.text.timed)
        model = load_text_model(path, mask_id=self.tokenizer.mask_id, timed=timed)
        check_tokenizer(model.net.config.vocabulary, self.tokenizer, model.process.mask_id)
        return model

    def teacher(self) -> nn.Module:
        return self._teacher

    def network(self) -> nn.Module:
        return teacher.fresh(self.text.size, self.tokenizer.vocabulary, self.process)

    def discriminator(self, teacher: nn.Module) -> nn.Module:
        assert isinstance(teacher, TextDenoiser)
        return TokenDiscriminator(teacher)

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """A tokenizer that was trained or read from a folder goes along: where samples are drawn, neither may exist."""
        if not isinstance(module, TextDenoiser):
            return {}
        own = {} if self.text.tokenizer in NAMES else {"tokenizer": self.tokenizer.to_dict()}
        return teacher.describe(module) | own

    def from_description(self, description: Mapping[str, Any]) -> nn.Module:
        if "tokenizer" in description:
            self.tokenizer = TextTokenizer.from_dict(description["tokenizer"])
        return teacher.from_description(dict(description))

    def shipped_student(self) -> Path:
        return teacher.SHIPPED_STUDENT

    def packed(self, split: str) -> Packed:
        """The `train` or `validation` sequences."""
        packed, report = corpus(self.documents, self.tokenizer, split, self.context)
        if self.data_path is not None:
            self.data_report = report
        return packed

    def data(self, batch_size: int, seed: int) -> DataSource:
        return PackedSource(self.packed("train"), seed, batch_size)

    def null_data(self, batch_size: int, seed: int) -> DataSource:
        return MaskedSource(self.context, self.process.mask_id, batch_size)

    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        """`reference` is MDLM's at as many calls as tokens; the rest are its best chances at few."""
        methods = {"reference": "ancestral", **{name: name for name in ("ancestral", "spread", "entropy")}}
        return {name: self._sampler(method) for name, method in methods.items()}

    def _sampler(self, method: str) -> TeacherSampler:
        def sample(
            model: Any,
            batch: Batch,
            generator: Generator,
            *,
            steps: int | None = None,
            temperature: float = 1.0,
            top_p: float = 1.0,
        ) -> Tokens:
            calls, draw = steps or self.text.reference_steps, TokenDraw(temperature, top_p)
            return sample_tokens(
                model, self.process, calls, batch.like, batch.cond, generator, method=method, draw=draw
            )

        return sample

    @staticmethod
    def replay(directory: Path) -> list[Any]:
        """Replay recorded fixtures (see xdistill.testing.parity)."""
        from xdistill.domains.text import parity

        return parity.replay(directory)
