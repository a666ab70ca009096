"""What evaluate asks of text: the bound of a known network, gaps of known fillings, curves of a model, passages."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from text_student import random_denoiser

from xdistill import rng
from xdistill.cli.evaluate import choose_metrics, choose_samplers, curve_settings
from xdistill.curves import table
from xdistill.domains.text import TextDomain
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.judges import NGramJudge, marked
from xdistill.domains.text.model_metrics import gaps, infilling, validation_nelbo, visible
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.domains.text.ngram import count_ngrams
from xdistill.errors import UsageError
from xdistill.evaluation import Row, measure_reference
from xdistill.measured import Measuring, Source, targets
from xdistill.models import Batch
from xdistill.objectives.mdlm import MDLM
from xdistill.passages import as_html, side_by_side
from xdistill.state import Tokens

WORDS = [
    "she",
    "he",
    "had",
    "was",
    "the",
    "a",
    "fine",
    "very",
    "good",
    "man",
    "house",
    "and",
    "of",
    "that",
    "it",
    "so",
    "walk",
    "not",
    "much",
    "sister",
]
CONTEXT = 34


def prose(words: int, *keys: int) -> str:
    picks = torch.randint(len(WORDS), (words,), generator=rng.generator("prose", *keys)).tolist()
    return " ".join(WORDS[i] for i in picks)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> TextDomain:
    """Bytes of made-up prose, judged by an n-gram of the same words."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(4):
        (folder / f"{i}.txt").write_text(prose(400, 7, i))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = TextDomain({"tokenizer": "bytes", "context": CONTEXT, "holdout": 0.4, "judge": "ngram"})
        found.data_path = str(folder)
        found.packed("validation")
        t = found.tokenizer
        model = count_ngrams(np.array([t.end_id, *prose(4000, 8).encode()]), 4, t.vocabulary, t.mask_id)
        found.measured.__dict__["scorer"] = NGramJudge("ngram", model, t)
        yield found


def test_nelbo_of_a_uniform_network(domain: TextDomain) -> None:
    """A fresh head is uniform over all ids but the mask, so every masked token costs log(V - 1)."""
    config = TextConfig(domain.tokenizer.vocabulary, hidden=16, blocks=1, heads=2, cond=8)
    model = TextDenoiser(TextDiT(config), domain.process)
    found = validation_nelbo(model, domain.process, domain.packed("validation"), n=64, times=8)
    expected = (1 - domain.process.eps) * math.log(domain.tokenizer.vocabulary - 1)
    assert found.low < expected < found.high
    assert found.value == pytest.approx(expected, rel=0.05)
    assert found.n == 64
    assert found == validation_nelbo(model, domain.process, domain.packed("validation"), n=64, times=8)


def test_nelbo_does_not_depend_on_how_students_are_masked(domain: TextDomain) -> None:
    """Masks far apart keep known tokens near each masked one: their sum is lower, and no bound."""
    model, packed = random_denoiser(domain), domain.packed("validation")
    apart = replace(domain.process, order="spread")
    assert validation_nelbo(model, apart, packed, n=8) == validation_nelbo(model, domain.process, packed, n=8)


def test_as_many_tokens_are_visible_as_was_said() -> None:
    for percent in (25, 50, 75):
        shown = visible(130, percent, rng.generator("gaps"))
        assert shown[[0, -1]].all()
        assert shown[1:-1].sum() == 128 * percent // 100
        assert (shown[1:-1].reshape(-1, 8).all(1) == shown[1:-1].reshape(-1, 8).any(1)).all()


def test_spans_of_gaps_are_what_was_hidden(domain: TextDomain) -> None:
    ids = domain.packed("validation").sequence(0).numpy()
    shown = visible(CONTEXT, 50, rng.generator("gaps"))
    text, spans = gaps(ids, shown, domain.tokenizer)
    assert text == marked(ids.tolist(), domain.tokenizer)
    assert "".join(text[a:b] for a, b in spans).encode() == bytes(ids[~shown].tolist())


def filler(what: Any) -> Any:
    def draw(model: Any, batch: Batch, generator: Any) -> Tokens:
        z = batch.like
        return z.with_ids(torch.where(z.free, what(z.ids), z.ids))

    return draw


def test_infilling_counts_what_was_filled_alone(domain: TextDomain) -> None:
    model = random_denoiser(domain)
    common = (domain.packed("validation"), domain.tokenizer, domain.measured.scorer, 16)
    real = infilling(None, None, *common)
    assert set(real) == {"infill_25", "infill_50", "infill_75"}
    same = infilling(model, filler(lambda ids: ids), *common)
    noise = infilling(model, filler(lambda ids: (ids * 7 + 3) % 256), *common)
    for name in real:
        assert same[name] == real[name]
        assert noise[name].low > 2 * real[name].high


def source(domain: TextDomain) -> Source:
    objective = MDLM(domain.process)

    def sampler(**options: Any) -> Any:
        return lambda model, batch, gen: objective.sample(model, batch.like, batch.cond, gen, steps=3, **options)

    return Source("teacher", domain, None, random_denoiser(domain), sampler, {"temperature": 1.0})


def test_row_and_curve_of_a_model(domain: TextDomain) -> None:
    measuring = Measuring(6, 0, 4, ("nelbo", "infill"), {}, torch.device("cpu"))
    ours = source(domain)
    row = measuring.row(ours)
    assert row.calls == 3
    assert {"score", "perplexity", "entropy", "repetition", "nelbo", "infill_50"} <= set(row.metrics)
    real = measure_reference(domain, 6, 0, ("nelbo", "infill"))
    assert real["perplexity"].high < row.metrics["perplexity"].low
    assert "nelbo" not in real
    axes = domain.curve_axes
    assert axes is not None
    curve = measuring.curve(ours, axes, (0.2, 1.0), row)
    cold, warm = curve.points
    assert cold.x < warm.x
    assert warm.seconds == row.seconds, "the row's own samples are the point at its setting"
    np.testing.assert_array_equal(warm.rows, domain.curve_rows(row.samples))
    folder = Source("found", domain, row.samples)
    found = [curve, measuring.curve(folder, axes, (0.2, 1.0), measuring.row(folder))]
    assert len(found[1].points) == 1
    at = targets(found, [ours, folder], axes, real)
    assert at == {"the entropy of teacher": warm.x, "the entropy of real data": real["entropy"].value}
    assert found[1].at(warm.x).value == pytest.approx(math.log(row.metrics["perplexity"].value))
    console = Console(width=160, record=True, quiet=True)
    console.print(table(found, axes, at))


def test_samples_are_shown_side_by_side(domain: TextDomain) -> None:
    rows = [
        Row(name, {}, [np.array([256, *text.encode(), 256])] * 2, 8.0) for name, text in (("a", "Oh <b>"), ("b", ""))
    ]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(side_by_side(rows, domain))
    assert "Oh <b>" in console.export_text()
    assert "Oh &lt;b&gt;" in as_html(domain, rows[0].samples)
    from matplotlib.figure import Figure

    figure = Figure()
    domain.draw(figure.subplots(), rows[0].samples[0])
    figure.canvas.draw()


def test_keys_of_evaluate(domain: TextDomain) -> None:
    assert curve_settings(domain, "1,0.7,0.7") == [0.7, 1.0]
    assert curve_settings(domain, "") == []
    assert choose_metrics(domain, "nelbo,infill", Console()) == ["nelbo", "infill"]
    found = choose_samplers(domain, "reference@7,reference")
    assert [(name, calls) for name, (_, calls) in found.items()] == [("reference@7", 7), ("reference", 0)]
    for text in ("0", "a", "0.7;1", "inf"):
        with pytest.raises(UsageError, match="expected values of temperature above 0"):
            curve_settings(domain, text)
    with pytest.raises(UsageError, match="expected as in reference@8"):
        choose_samplers(domain, "reference@x")


def test_curve_of_a_domain_without_one() -> None:
    from xdistill.domains.toy import ToyDomain

    with pytest.raises(UsageError, match="domain 'toy' has no curve"):
        curve_settings(ToyDomain({}), "1")
