"""Metrics of text: recorded entropies, collapse that cannot win, intervals, empty samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from xdistill import rng
from xdistill.domains.text.judges import NGramJudge
from xdistill.domains.text.metrics import (
    TextMetrics,
    distinct,
    likeness,
    repeated_ngrams,
    token_entropy,
)
from xdistill.domains.text.ngram import count_ngrams
from xdistill.domains.text.packing import Packed
from xdistill.domains.text.tokenizers import byte_tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
TEXT = "she he had was the a fine very good man house and of that it so walk not much sister"
WORDS = TEXT.split()
TOKENIZER = byte_tokenizer()
LENGTH = 66


def prose(words: int, *keys: int) -> str:
    picks = torch.randint(len(WORDS), (words,), generator=rng.generator("prose", *keys)).tolist()
    return " ".join(WORDS[i] for i in picks)


@pytest.fixture(scope="module")
def measure() -> TextMetrics:
    """Judged by an n-gram of the same words."""
    train = np.array([TOKENIZER.end_id, *prose(4000, 0).encode(), TOKENIZER.end_id])
    held = Packed(np.array([*prose(1000, 1).encode()]), LENGTH, TOKENIZER.end_id)
    found = TextMetrics(TOKENIZER, "ngram", lambda: held)
    model = count_ngrams(train, 4, TOKENIZER.vocabulary, TOKENIZER.mask_id)
    found.__dict__["scorer"] = NGramJudge("ngram", model, TOKENIZER)
    return found


def wrapped(text: str) -> np.ndarray:
    body = (text.encode() * LENGTH)[: LENGTH - 2]
    return np.array([TOKENIZER.end_id, *body, TOKENIZER.end_id])


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
def test_entropy_is_the_recorded_one(name: str) -> None:
    io = load_file(FIXTURES / name / "mdlm_io.safetensors")
    found = token_entropy(list(io["metric.entropy_tokens"]))
    np.testing.assert_allclose(found, io["metric.entropy_per_sample"], rtol=1e-4)
    assert json.loads((FIXTURES / name / "config.json").read_text())["length"] == io["metric.entropy_tokens"].shape[1]


def test_counts_by_hand() -> None:
    assert token_entropy([[1, 1, 2, 2], [3, 3, 3, 3]]) == pytest.approx([np.log(2), 0])
    assert distinct([[1, 2, 1, 2, 1], [1]], 2).tolist() == [[2, 4], [0, 0]]
    assert repeated_ngrams([[1, 2, 3, 4] * 2, [1, 2, 3]]) == pytest.approx([1 / 5, 0])
    same = likeness([[1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4, 5], [9, 9]])
    np.testing.assert_allclose(same[:, 0], [1, 1, 1 / 3, 0])
    np.testing.assert_allclose(same, same.T)


def test_real_text_scores_best_and_collapse_cannot_win(measure: TextMetrics) -> None:
    real = [wrapped(prose(40, 2, i)) for i in range(40)]
    letters = torch.randint(97, 123, (40, LENGTH), generator=rng.generator("letters")).tolist()
    noise = [wrapped(bytes(row).decode()) for row in letters]
    loops = [wrapped(f"{word} ") for word in WORDS if len(word) > 4]
    one = [real[0]] * 40
    found = {k: measure(v) for k, v in {"real": real, "noise": noise, "loops": loops, "one": one}.items()}
    assert found["loops"]["perplexity"].value < found["real"]["perplexity"].value < found["noise"]["perplexity"].value
    best = found["real"]["score"]
    for name in ("noise", "loops", "one"):
        assert found[name]["score"].high < best.low
    assert found["loops"]["repetition"].value > 0.5 > 0.2 > found["real"]["repetition"].value
    assert found["one"]["self_similarity"].value == 1
    reference = measure.reference()
    assert reference["score"].low < best.value < reference["score"].high


def test_score_is_minus_log_perplexity_where_nothing_is_lost(measure: TextMetrics) -> None:
    found = measure([measure.validation().sequence(i).numpy() for i in range(0, len(measure.validation()), 2)])
    entropy, alike = measure.real(LENGTH)
    lost = max(0, entropy - found["entropy"].value) + max(0, found["self_similarity"].value - alike)
    assert found["score"].value == pytest.approx(-np.log(found["perplexity"].value) - 8 * lost)


def test_intervals_hold_their_value_and_shrink(measure: TextMetrics) -> None:
    some = [wrapped(prose(40, 3, i)) for i in range(160)]
    few, many = measure(some[:10], seed=1), measure(some, seed=1)
    for name in ("score", "perplexity", "entropy", "distinct_2", "repetition"):
        assert few[name].low <= few[name].value <= few[name].high
        assert many[name].high - many[name].low < few[name].high - few[name].low
    assert many == measure(some, seed=1)
    assert many["perplexity"] != measure(some, seed=2)["perplexity"]


def test_the_interval_covers_the_truth_as_often_as_it_says(measure: TextMetrics) -> None:
    texts = [wrapped(prose(40, 4, i)) for i in range(600)]
    rows = measure.nll(texts)
    truth, hits = rows.sum(0)[0] / rows.sum(0)[1], 0
    from xdistill.intervals import bootstrap_sums

    for i in range(30):
        m = bootstrap_sums(rows[20 * i : 20 * i + 20], np.random.default_rng(i))
        hits += m.low <= truth <= m.high
    assert hits >= 24  # of 30; 95 % intervals of 20 texts hold a little less often


def test_no_samples_and_empty_samples(measure: TextMetrics) -> None:
    assert measure([])["score"].n == 0
    ends = [np.full(LENGTH, TOKENIZER.end_id)] * 4
    found = measure(ends)
    assert found["perplexity"].n == 0
    assert found["score"].value < measure([wrapped(prose(40, 5, i)) for i in range(4)])["score"].low


def test_padding_and_batches_change_nothing(measure: TextMetrics) -> None:
    samples = [wrapped(prose(40, 6, i))[: 20 + 5 * i] for i in range(8)]
    alone = np.concatenate([measure.nll([s]) for s in samples])
    np.testing.assert_allclose(measure.nll(samples), alone)
