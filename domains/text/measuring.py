"""What `evaluate`, `fit` and `bench` ask of the text domain: metrics, curves, references, passages to look at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from xdistill.curves import Axes
from xdistill.domain import Domain, ExtraMetrics, Metric, ModelMetrics, TeacherSampler
from xdistill.domains.text import judges, mauve
from xdistill.domains.text.judges import marked
from xdistill.domains.text.metrics import TextMetrics, real_sequences
from xdistill.domains.text.model_metrics import infilling, validation_nelbo
from xdistill.domains.text.packing import Packed
from xdistill.domains.text.passage import passage
from xdistill.domains.text.picture import draw_passage
from xdistill.domains.text.rivals import autoregressive, cache_gaps
from xdistill.domains.text.tokenizers import END, TextTokenizer
from xdistill.evaluation import Draw
from xdistill.models import Batch
from xdistill.process import MaskProcess

REAL = 256  # held-out sequences that models are measured on, at most


class TextMeasuring(Domain):
    """The measuring half of the text domain. judge_name: what measures perplexity."""

    tokenizer: TextTokenizer
    process: MaskProcess
    judge_name: str
    context: int

    unit = "tokens"
    bench_batches = (8, 1)
    curve_axes = Axes("temperature", "entropy", "log perplexity", "low", (0.7, 0.8, 0.9, 1.0))
    compared: Sequence[str] = ("score", "perplexity", "entropy", "repetition")

    @abstractmethod
    def packed(self, split: str) -> Packed:
        """The `train` or `validation` sequences."""

    @cached_property
    def measured(self) -> TextMetrics:
        """The metrics, with their judge."""
        return TextMetrics(self.tokenizer, self.judge_name, lambda: self.packed("validation"))

    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return self.measured(samples, seed)

    @cached_property
    def _reference(self) -> dict[str, Metric]:
        return self.measured.reference()

    def reference_metrics(self) -> dict[str, Metric]:
        return self._reference

    def reference_samples(self, num: int, seed: int) -> list[Any]:
        return [passage(ids.tolist(), (), self.tokenizer) for ids in real_sequences(self.packed("validation"), num)]

    def headline(self) -> Sequence[str]:
        return ("score", "perplexity", "entropy", "repetition")

    def curve_rows(self, samples: Sequence[Any]) -> NDArray[np.float64]:
        return self.measured.curve_rows(samples)

    def extra_metrics(self) -> Mapping[str, ExtraMetrics]:
        def measure(samples: Sequence[Any], seed: int) -> dict[str, Metric]:
            return mauve.measure(samples, self.measured, seed)

        return {"mauve": measure}

    def model_metrics(self) -> Mapping[str, ModelMetrics]:
        def nelbo(model: nn.Module | None, draw: Draw | None, num: int, seed: int) -> dict[str, Metric]:
            if model is None:
                return {}
            return {"nelbo": validation_nelbo(model, self.process, self.packed("validation"), REAL, seed)}

        def infill(model: nn.Module | None, draw: Draw | None, num: int, seed: int) -> dict[str, Metric]:
            found = self.packed("validation")
            return infilling(model, draw, found, self.tokenizer, self.measured.scorer, min(num, REAL), seed)

        return {"nelbo": nelbo, "infill": infill}

    def rivals(self) -> Mapping[str, tuple[nn.Module, TeacherSampler]]:
        """A transformer of the same size that writes a token a call; where it is the judge too, its name says so."""
        found = autoregressive(judges.SHIPPED, self.tokenizer, self.context)
        name = "autoregressive, the judge itself" if self.judge_name == "ar" else "autoregressive"
        return {} if found is None else {name: found}

    def approximations(self, model: nn.Module, steps: int, batch: Batch, seed: int) -> dict[str, Mapping[str, float]]:
        return cache_gaps(model, self.process, steps, batch, seed)

    def draw(self, ax: Any, sample: Any) -> None:
        draw_passage(ax, self.sample_text(sample))

    def sample_text(self, sample: Any) -> str:
        return marked(np.asarray(sample).tolist(), self.tokenizer).replace(END, " ¶ ").strip(" ¶")
