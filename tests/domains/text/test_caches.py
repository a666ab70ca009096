"""Approximate caches of bidirectional models: what they change, what they must not, and the gap that says so."""

from __future__ import annotations

import pytest
import torch
from text_student import random_denoiser

from xdistill import rng
from xdistill.domains.text import TextDomain
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.toy.tokens import TablePosterior, random_table
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.process import MaskProcess
from xdistill.samplers.cached import CachedView, cache_gap, cached
from xdistill.samplers.mask import grid, sample_tokens
from xdistill.state import Tokens

LENGTH, BLOCK = 24, 8


@pytest.fixture(scope="module")
def domain() -> TextDomain:
    return TextDomain({})


@pytest.fixture(scope="module")
def model(domain: TextDomain) -> TextDenoiser:
    return random_denoiser(domain)


def draw(model: TextDenoiser, domain: TextDomain, rows: list[int], kind: str, steps: int = 12) -> Tokens:
    like = domain.plan(rows, 0, length=LENGTH, prompt="It is a truth").like
    options = {"kind": kind, "block": BLOCK}
    return cached(model, domain.process, grid(steps), like, NoCond(), rng.per_sample(0, rows), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["prefix", "dual", "none"])
def test_rows_do_not_depend_on_the_batch(domain: TextDomain, model: TextDenoiser, kind: str) -> None:
    with torch.no_grad():
        many, few = draw(model, domain, list(range(9)), kind), draw(model, domain, [8, 3, 2, 5], kind)
    assert torch.equal(many.ids[[8, 3, 2, 5]], few.ids)
    given = domain.plan([0], 0, length=LENGTH, prompt="It is a truth").like
    assert given.given is not None
    assert bool((many.ids == given.ids)[:, given.given[0]].all())
    assert not bool(domain.process.masked(many).any())


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_a_fresh_cache_is_exact_and_a_stale_one_is_not(domain: TextDomain, model: TextDenoiser, kind: str) -> None:
    """As long as no token changed, the cache says what the whole network says, padding and all."""
    z = domain.plan(range(4), 0, length=LENGTH).like
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 20, 18, LENGTH])[:, None]
    z, place = Tokens(torch.where(mask, z.ids, 5), mask), slice(8, 16)
    part, t = Tokens(z.ids[:, place], z.mask[:, place]), torch.ones(4)
    view = CachedView(model, domain.process, z, NoCond(), place, kind)
    with torch.no_grad():
        whole = model(z, t, NoCond())[:, place]
        first, second = view(part, t, NoCond()), view(part, t, NoCond())
        assert torch.allclose(first, whole, atol=1e-4)
        assert torch.allclose(second, whole, atol=1e-4)
        part = part.with_ids(part.ids.index_fill(1, torch.tensor([2, 3]), 7))
        stale = view(part, t, NoCond())
        z = z.with_ids(torch.cat([z.ids[:, :8], part.ids, z.ids[:, 16:]], 1))
        whole = model(z, t, NoCond())[:, place]
    assert not torch.allclose(stale, whole, atol=1e-3)


def test_the_gap_says_how_much(domain: TextDomain, model: TextDenoiser) -> None:
    like = domain.plan(range(6), 0, length=LENGTH).like
    args = (model, domain.process, grid(12), like, NoCond(), 0)
    none = cache_gap(*args, kind="none", block=BLOCK)
    assert (none.largest, none.mean, none.distance, none.argmax, none.drawn, none.tokens) == (0, 0, 0, 1, 1, 1)
    prefix, dual = (cache_gap(*args, kind=kind, block=BLOCK) for kind in ("prefix", "dual"))
    for gap in (prefix, dual):
        assert 0 < gap.mean < gap.largest < 1
        assert 0 < gap.distance < 0.5
        assert 0.4 < gap.drawn < 1 - gap.distance  # two draws agree no more often than their laws overlap
    assert prefix.distance < dual.distance  # what follows is computed anew
    assert prefix.drawn > dual.drawn
    assert cache_gap(*args, kind="dual", block=1).distance == 0  # a block of one token is drawn from a fresh one


def test_by_name_and_by_mistake(domain: TextDomain, model: TextDenoiser) -> None:
    like = domain.plan(range(4), 0, length=LENGTH).like
    gens = rng.per_sample(0, range(4))
    with torch.no_grad():
        z = sample_tokens(model, domain.process, 6, like, NoCond(), gens, method="dual_cache")
    assert not bool(domain.process.masked(z).any())
    table = TablePosterior(random_table(3, 4), 3, 4)
    masks = torch.full((4, 4), 3)
    with pytest.raises(UsageError, match="no keys and values"):
        cached(
            table, MaskProcess(3), grid(4), Tokens(masks, masks == 3), NoCond(), rng.per_sample(0, range(4)), block=2
        )
    with pytest.raises(UsageError, match="kind=both"):
        draw(model, domain, [0], "both")
