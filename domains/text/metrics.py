"""Quality of texts without a reference: judge perplexity, and what keeps it honest: entropy, repetition, likeness.

Perplexity alone is won by a text that repeats itself. `score` therefore charges EXCHANGE nats of log-perplexity for
every nat of entropy below real text of the same length, more than any sampler gains by lowering its temperature, and
as much for every unit of likeness between texts above real ones. Compare samplers by curves (`xdistill.curves`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdistill.domain import Metric
from xdistill.domains.text.judges import Judge, load_judge, marked
from xdistill.domains.text.packing import Packed
from xdistill.domains.text.passage import ALIKE, entropy, ngrams, repetition
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.intervals import UNDEFINED, bootstrap_pairs, bootstrap_sums, bootstrap_totals
from xdistill.rng import derive_seed

Array = NDArray[np.float64]
EXCHANGE = 8.0  # nats of log-perplexity that `score` takes for a nat of lost entropy, or a unit of likeness
PAIRED = 128  # texts that `self_similarity` compares at most
REAL = 256  # sequences of held-out text that references are measured of, at most
BETTER: Mapping[str, str] = MappingProxyType(
    {"score": "high", "perplexity": "low", "repetition": "low", "self_similarity": "low"}
)


def token_entropy(samples: Sequence[Any]) -> Array:
    """[n] nats: of the histogram of each sample's ids, specials included. It depends on the length: quote that."""
    return np.array([entropy(np.asarray(ids).tolist()) for ids in samples])


def repeated_ngrams(samples: Sequence[Any]) -> Array:
    """[n] share of each sample's 4-grams that occurred in it before."""
    return np.array([repetition(np.asarray(ids).tolist()) for ids in samples])


def distinct(samples: Sequence[Any], n: int) -> Array:
    """[n, 2] different n-grams of each sample, and all of them."""
    grams = [ngrams(np.asarray(ids).tolist(), n) for ids in samples]
    return np.array([[len(set(g)), len(g)] for g in grams], dtype=np.float64).reshape(-1, 2)


def likeness(samples: Sequence[Any]) -> Array:
    """[n, n] Jaccard index of the sets of 3-grams of each pair of samples."""
    sets = [set(ngrams(np.asarray(ids).tolist(), ALIKE)) for ids in samples]
    place = {gram: i for i, gram in enumerate(dict.fromkeys(gram for s in sets for gram in sorted(s)))}
    has = np.zeros((len(sets), len(place)), np.float32)
    for row, grams in zip(has, sets, strict=True):
        row[[place[gram] for gram in grams]] = 1
    both = (has @ has.T).astype(np.float64)
    either = has.sum(1)[:, None] + has.sum(1) - both
    return both / np.maximum(either, 1)


@dataclass
class TextMetrics:
    """Metrics of samples (ids [L] each, or passages) of one tokenizer.

    judge: name or folder of a judge. validation: held-out sequences, which say what real text of a length scores.
    """

    tokenizer: TextTokenizer
    judge: str
    validation: Callable[[], Packed]
    _real: dict[int, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def scorer(self) -> Judge:
        """The judge, loaded when first asked."""
        return load_judge(self.judge)

    def nll(self, samples: Sequence[Any]) -> Array:
        """[n, 2] nats and tokens of each sample, in the judge's own tokens."""
        return self.scorer([marked(np.asarray(ids).tolist(), self.tokenizer) for ids in samples])

    def curve_rows(self, samples: Sequence[Any]) -> Array:
        """[n, 4] entropy, 1, nats, tokens: what `xdistill.curves` asks of each sample."""
        return np.column_stack([token_entropy(samples), np.ones(len(samples)), self.nll(samples)])

    def __call__(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        """score, perplexity, entropy, distinct_1 and distinct_2 (shares of a sample's n-grams that differ),
        repetition (share of its 4-grams that were there before), self_similarity (mean Jaccard index of 3-grams over
        pairs); intervals resample samples.
        """
        if not len(samples):
            return dict.fromkeys(("score", "perplexity", "entropy"), UNDEFINED)
        rng = np.random.default_rng(derive_seed("text metrics", seed))
        rows = self.curve_rows(samples)
        some = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, PAIRED).astype(int))]
        alike = bootstrap_pairs(likeness(some), ~np.eye(len(some), dtype=bool), rng)
        found = {
            "score": self._score(rows, alike, int(np.median([len(s) for s in samples])), rng),
            "perplexity": exponential(bootstrap_sums(rows[:, 2:], rng)),
            "entropy": bootstrap_sums(rows[:, :2], rng),
            "distinct_1": bootstrap_sums(distinct(samples, 1), rng),
            "distinct_2": bootstrap_sums(distinct(samples, 2), rng),
            "repetition": bootstrap_sums(np.column_stack([repeated_ngrams(samples), rows[:, 1]]), rng),
            "self_similarity": alike,
        }
        return {name: replace(m, better=BETTER.get(name, "none")) for name, m in found.items()}

    def reference(self, seed: int = 0) -> dict[str, Metric]:
        """What held-out text scores."""
        return self(real_sequences(self.validation(), REAL), seed)

    def _score(self, rows: Array, alike: Metric, length: int, rng: np.random.Generator) -> Metric:
        real_entropy, real_likeness = self.real(length)
        excess = max(0.0, alike.value - real_likeness) if alike.n else 0.0
        blank = np.log(self.tokenizer.vocabulary)  # nats a token of texts without any

        def statistic(total: Array) -> Array:
            tokens = total[..., 3]
            nats = np.where(tokens > 0, total[..., 2] / np.maximum(tokens, 1), blank)
            lost = np.maximum(real_entropy - total[..., 0] / total[..., 1], 0)
            return -nats - EXCHANGE * (lost + excess)

        return bootstrap_totals(rows, statistic, rng)

    def real(self, length: int) -> tuple[float, float]:
        """Mean entropy and likeness of held-out sequences cut to `length` tokens."""
        if length not in self._real:
            cut = [ids[:length] for ids in real_sequences(self.validation(), PAIRED)]
            alike = likeness(cut)
            mean = (alike.sum() - np.trace(alike)) / max(len(cut) * (len(cut) - 1), 1)
            self._real[length] = float(token_entropy(cut).mean()), float(mean)
        return self._real[length]


def real_sequences(packed: Packed, n: int) -> list[NDArray[np.int64]]:
    """At most n sequences, evenly spaced over the stream."""
    chunks = np.unique(np.linspace(0, len(packed) - 1, min(n, len(packed))).astype(int))
    return [packed.sequence(int(chunk)).numpy() for chunk in chunks]


def exponential(m: Metric) -> Metric:
    """exp of a metric; its interval, of percentiles, goes along."""
    return replace(m, value=float(np.exp(m.value)), low=float(np.exp(m.low)), high=float(np.exp(m.high)))


def evaluate_texts(
    samples: Sequence[Any], tokenizer: TextTokenizer, judge: str, validation: Packed, seed: int = 0
) -> dict[str, Metric]:
    """`TextMetrics` of samples once."""
    return TextMetrics(tokenizer, judge, lambda: validation)(samples, seed)
