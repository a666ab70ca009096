"""`xdistill bench domain=text` on random weights: its rows and calls, equal entropy, the rival, the cache's gap."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from text_student import random_denoiser, write_checkpoint

from xdistill import rng
from xdistill.cli import main
from xdistill.domains.text import TextDomain, judges
from xdistill.domains.text.causal import CausalConfig, CausalLM, continue_text, save_causal
from xdistill.domains.text.checkpoint import save_text_model
from xdistill.domains.text.rivals import autoregressive, cache_gaps
from xdistill.models import NoCond

CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer_domain() -> TextDomain:
    return TextDomain({"context": CONTEXT})


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, tokenizer_domain: TextDomain) -> Iterator[Path]:
    """A tiny autoregressive network in the place of the shipped one."""
    t = tokenizer_domain.tokenizer
    torch.manual_seed(0)
    config = CausalConfig(t.vocabulary, t.mask_id, CONTEXT, hidden=16, blocks=1, heads=2, dropout=0.0)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_causal(CausalLM(config), path, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "SHIPPED", path)
        judges.ar.cache_clear()
        yield path
        judges.ar.cache_clear()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_domain: TextDomain) -> Path:
    """A student and its teacher of random weights, and a few lines as data."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "texts").mkdir()
    for i in range(4):
        (folder / "texts" / f"{i}.txt").write_text("She had a fine house, and he walked to it with his sister. " * 10)
    weights = save_text_model(random_denoiser(tokenizer_domain), folder / "teacher")
    return write_checkpoint(
        folder / "student", "experiment=none", f"teacher.weights={weights}", f"data.path={folder / 'texts'}",
        f"domain.context={CONTEXT}", "domain.holdout=0.5", "domain.reference_steps=8",
    )  # fmt: skip


def bench(checkpoint: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ("bench", "domain=text", f"ckpt={checkpoint}", "steps=4", "repeats=1", *more, f"json={out}")
    assert main(list(arguments)) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_rows(checkpoint: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench(checkpoint, tmp_path / "bench.json", "num=8", "batch=4,1")
    rows = report["rows"]
    rival = "autoregressive, the judge itself"
    assert {name: row["kind"] for name, row in rows.items()} == {
        "teacher": "teacher", "student, 4 calls": "student", "teacher, 4 calls": "few", rival: "rival",
    }  # fmt: skip
    assert [row["calls"] for row in rows.values()] == [8, 4, 4, CONTEXT - 1]
    for row in rows.values():
        assert set(row["batches"]) == {"4", "1"}
        for cost in row["batches"].values():
            assert cost["elements_per_second"] == pytest.approx(CONTEXT / cost["seconds"])
            assert cost["overhead"] > 0
        assert set(row["quality"]) == {"score", "perplexity", "entropy", "repetition"}
    assert report["unit"] == "tokens"
    assert report["speed_up"] == rows["student, 4 calls"]["speedup"]
    found = report["matched"]
    assert [curve["name"] for curve in found["curves"]] == ["teacher", *list(rows)[1:]]
    (target,) = found["targets"].values()
    assert target == pytest.approx(rows["teacher"]["quality"]["entropy"]["value"])
    assert set(found["students"]["student, 4 calls"]["better_than"]) == {"teacher, 4 calls", rival}
    shown = capsys.readouterr().out
    assert "student, 4 calls, at the entropy of the teacher" in shown
    assert "tokens a second" in shown
    assert "student, 4 calls, batch 1: " in shown
    assert "method=dual_cache against no cache at 4 calls" in shown


def test_options_of_the_student(checkpoint: Path, judge: Path, tmp_path: Path) -> None:
    options = ("num=2", "batch=2", "temperature=0.5", "method=confidence", "method.block=8")
    report = bench(checkpoint, tmp_path / "bench.json", *options)
    curve = next(c for c in report["matched"]["curves"] if c["name"] == "student, 4 calls")
    assert 0.5 in [p["setting"] for p in curve["points"]], "the sweep starts where the student is drawn"


def test_cost_alone(checkpoint: Path, judge: Path, tmp_path: Path) -> None:
    report = bench(checkpoint, tmp_path / "bench.json", "num=0", "batch=2")
    assert report["matched"] == {}
    assert all(row["quality"] == {} for row in report["rows"].values())


def test_the_rival_goes_on_from_a_prompt(judge: Path, tokenizer_domain: TextDomain) -> None:
    domain = tokenizer_domain
    found = autoregressive(judge, domain.tokenizer, CONTEXT)
    assert found is not None
    network, sampler = found
    batch = domain.plan(range(3), 0, prompt="It is a truth")
    out = sampler(network, batch, rng.per_sample(0, range(3)), temperature=0.7)
    given = batch.like.given
    assert torch.equal(out.ids[given], batch.like.ids[given])
    assert (out.ids != domain.tokenizer.mask_id).all()
    assert isinstance(network, CausalLM)
    cold = continue_text(network, batch.like, rng.per_sample(0, range(3)))
    assert not torch.equal(cold.ids, out.ids), "temperature counts"


def test_no_rival_of_other_tokens(judge: Path, tmp_path: Path, tokenizer_domain: TextDomain) -> None:
    assert autoregressive(judge, TextDomain({"tokenizer": "bytes"}).tokenizer, CONTEXT) is None
    assert autoregressive(judge, tokenizer_domain.tokenizer, CONTEXT + 1) is None
    assert autoregressive(tmp_path / "none", tokenizer_domain.tokenizer, CONTEXT) is None


def test_gaps_are_those_of_the_caches(tokenizer_domain: TextDomain) -> None:
    """Blocks of 32 tokens: two of them, of 4 calls each."""
    batch = TextDomain({"context": 64}).plan(range(2), 0)
    assert batch.cond == NoCond()
    gaps = cache_gaps(random_denoiser(tokenizer_domain), tokenizer_domain.process, 8, batch, seed=0)
    assert set(gaps) == {"prefix_cache", "dual_cache"}
    for gap in gaps.values():
        assert gap["n"] > 0
        assert 0 < gap["distance"] < 1
