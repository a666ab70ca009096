"""Interpolated Kneser-Ney n-grams over token ids: a judge that needs no training and seconds to count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdistill.errors import UsageError

Ids = NDArray[np.int64]
Array = NDArray[np.float64]
NONE = -1  # no n-gram's key


@dataclass(frozen=True)
class Counts:
    """One order: n-grams as sorted keys with their counts, and for each context its total count and distinct followers.

    discount: what every seen n-gram gives away to the order below.
    """

    grams: Ids
    count: Ids
    contexts: Ids
    total: Ids
    distinct: Ids
    discount: float


@dataclass(frozen=True)
class NGram:
    """p(token | the order - 1 tokens before it), Kneser & Ney 1995 with the interpolation of Chen & Goodman 1999.

    vocabulary: number of ids; `never`, the mask, has probability 0.
    """

    orders: tuple[Counts, ...]
    vocabulary: int
    never: int

    def log_probs(self, ids: Ids) -> Array:
        """[L - 1] log p(ids[i + 1] | ids[:i + 1])."""
        ids = ids.astype(np.int64)
        keys, key = [], np.zeros(len(ids) - 1, np.int64)
        for k in range(len(self.orders)):
            if k:  # one token more on the left; where there is none, no such context
                key = key[-(len(ids) - k) :]
                key = key + ids[: len(key)] * self.vocabulary ** (k - 1)
            keys.append(np.concatenate([np.full(k and len(ids) - 1 - len(key), NONE), key]))
        return np.log(self._probabilities(keys, ids[1:]))

    def distribution(self, context: Ids) -> Array:
        """[V] p(. | context [n])."""
        kept = [context[len(context) - k :] for k in range(min(len(context) + 1, len(self.orders)))]
        keys = [np.full(self.vocabulary, _key(c, self.vocabulary)) for c in kept]
        return self._probabilities(keys, np.arange(self.vocabulary))

    def _probabilities(self, keys: Sequence[Ids], tokens: Ids) -> Array:
        p = np.where(tokens == self.never, 0.0, 1 / (self.vocabulary - 1))
        for counts, contexts in zip(self.orders, keys, strict=False):
            p = self._mix(counts, contexts, tokens, p)
        return p

    def _mix(self, counts: Counts, contexts: Ids, tokens: Ids, lower: Array) -> Array:
        place, seen = _find(counts.contexts, contexts)
        total = np.where(seen, counts.total[place], 1)
        gram, known = _find(counts.grams, contexts * self.vocabulary + tokens)
        kept = np.where(known, counts.count[gram] - counts.discount, 0.0) / total
        given_away = counts.discount * counts.distinct[place] / total
        return np.where(seen, kept + given_away * lower, lower)


def count_ngrams(ids: Ids, order: int, vocabulary: int, never: int) -> NGram:
    """Count a stream of ids [T]; raises UsageError when the keys of this order do not fit 63 bits."""
    if vocabulary**order >= 2**63:
        raise UsageError(f"order={order} with {vocabulary} ids: expected at most {int(63 / np.log2(vocabulary))}")
    ids, found = ids.astype(np.int64), []
    key = np.zeros(len(ids) - order + 1, np.int64)
    for k in range(order):
        key = key * vocabulary + ids[k : len(ids) - order + 1 + k]
    grams, count = np.unique(key, return_counts=True)
    for k in range(order, 0, -1):
        found.append(_counts(grams, count, vocabulary))
        if k > 1:  # below the highest order: how many tokens an n-gram is seen behind
            grams, count = np.unique(grams % vocabulary ** (k - 1), return_counts=True)
    return NGram(tuple(found[::-1]), vocabulary, never)


def _key(ids: Ids, vocabulary: int) -> int:
    value = 0
    for i in ids:
        value = value * vocabulary + int(i)
    return value


def _counts(grams: Ids, count: Ids, vocabulary: int) -> Counts:
    contexts, start = np.unique(grams // vocabulary, return_index=True)
    total = np.add.reduceat(count, start)
    distinct = np.diff([*start, len(grams)])
    once, twice = int((count == 1).sum()), int((count == 2).sum())
    discount = once / (once + 2 * twice) if once and twice else 0.5
    return Counts(grams, count.astype(np.int64), contexts, total, distinct, discount)


def _find(keys: Ids, wanted: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted
