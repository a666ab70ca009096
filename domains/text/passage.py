"""A decoded sample of text, and cheap numbers of it: entropy, repetition, likeness."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.state import Tokens

REPEATED = 4  # tokens of the n-grams that `repetition` counts
ALIKE = 3  # tokens of the n-grams that `similarity` compares

SHADE = "\u2591"

Span = tuple[int, int]


@dataclass(frozen=True)
class Passage:
    """One text: its token ids, specials included, and what of it was given.

    ids: [n]. text: of all ids. given: half-open spans of ids that the user fixed (a prompt, the text around gaps), in
    order. prompt: text of what was given before the first free token. filled: text of each stretch that was drawn.
    As an array it is its ids.
    """

    ids: tuple[int, ...]
    text: str
    given: tuple[Span, ...] = ()
    prompt: str = ""
    filled: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.int64]:
        return np.asarray(self.ids, np.int64 if dtype is None else dtype)

    @property
    def drawn(self) -> tuple[Span, ...]:
        """Half-open spans of the ids that were not given, in order."""
        edges = [0, *(edge for span in self.given for edge in span), len(self.ids)]
        return tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)


def passage(ids: Sequence[int], given: Sequence[Span], tokenizer: TextTokenizer) -> Passage:
    """The texts of ids [n], all of them, what was given first, and what was drawn between."""
    ids = tuple(ids)
    bare = Passage(ids, tokenizer.decode(ids), tuple(given))
    if not given:
        return bare
    prompt = tokenizer.decode(ids[: given[0][1]]) if given[0][0] == 0 else ""
    return Passage(ids, bare.text, bare.given, prompt, tuple(tokenizer.decode(ids[a:b]) for a, b in bare.drawn))


def decode(state: Tokens, tokenizer: TextTokenizer) -> list[Passage]:
    """One passage a sample. Of a template with gaps, what follows its last given token is left out: the network was
    shown a whole context, but nobody asked for the rest.
    """
    given = state.given if state.given is not None else state.mask & False
    return [passage(*_cut(i, m, g), tokenizer) for i, m, g in zip(state.ids, state.mask, given, strict=True)]


def partial(state: Tokens, tokenizer: TextTokenizer) -> str:
    """The first sample's text, a shade for every token that is still masked."""
    return tokenizer.decode_visible(state.ids[0][state.mask[0]].tolist(), lambda n: SHADE * n)


def _cut(ids: Tensor, mask: Tensor, given: Tensor) -> tuple[list[int], list[Span]]:
    real, fixed = ids[mask].tolist(), given[mask].tolist()
    spans = list(spans_of(fixed))
    between = len(spans) > 1 or (spans and spans[0][0] > 0)
    return real[: spans[-1][1] if between else None], spans


def spans_of(flags: Sequence[bool]) -> Iterator[Span]:
    """Half-open runs of True."""
    start = 0
    for value, run in groupby(flags):
        stop = start + sum(1 for _ in run)
        if value:
            yield start, stop
        start = stop


def entropy(ids: Sequence[int]) -> float:
    """Entropy in nats of the histogram of ids; the number depends on their count, so quote it (text spec 4)."""
    if not len(ids):
        return 0.0
    return -sum(n / len(ids) * math.log(n / len(ids)) for n in Counter(ids).values()) + 0.0


def repetition(ids: Sequence[int]) -> float:
    """Share of 4-grams that occurred before in the same text."""
    grams = ngrams(ids, REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def similarity(a: Passage, b: Passage) -> float:
    """Jaccard index of the sets of 3-grams; of texts that are too short, whether they are equal."""
    x, y = set(ngrams(a.ids, ALIKE)), set(ngrams(b.ids, ALIKE))
    if not x or not y:
        return float(a.ids == b.ids)
    return len(x & y) / len(x | y)


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All n-grams in order."""
    return list(zip(*(ids[k:] for k in range(n)), strict=False))


#: Numbers of a passage in the manifest.
DESIGN_COLUMNS = ("tokens", "entropy", "repetition")
RANKING = {"entropy": "high", "repetition": "low"}


def design_metrics(sample: Passage) -> dict[str, float | int | bool]:
    """tokens: drawn, not given. entropy, repetition: of all ids, specials included."""
    drawn = sum(b - a for a, b in sample.drawn)
    return {"tokens": drawn, "entropy": entropy(sample.ids), "repetition": repetition(sample.ids)}
