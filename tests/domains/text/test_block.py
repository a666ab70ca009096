"""Block diffusion: who sees whom, the exact cache, its objective and its sampler; the approximate caches."""

from __future__ import annotations

import pytest
import torch
from text_student import random_denoiser
from torch import Tensor

from xdistill import rng
from xdistill.blocks import EarlierBlocks, Past, doubled_mask
from xdistill.domains.text import TextDomain
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.objectives.bd3 import BD3, bd3_loss, noise_variance
from xdistill.samplers.block import Stop, by_blocks, share, stopped
from xdistill.state import Tokens

LENGTH, BLOCK, BATCH = 20, 6, 5  # the last block is shorter


@pytest.fixture(scope="module")
def domain() -> TextDomain:
    return TextDomain({})


@pytest.fixture(scope="module")
def model(domain: TextDomain) -> TextDenoiser:
    return random_denoiser(domain)


@pytest.fixture(scope="module")
def ids(domain: TextDomain) -> Tensor:
    return torch.randint(1, 1000, (BATCH, LENGTH), generator=rng.generator("ids"))


def tokens(ids: Tensor) -> Tokens:
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def noisy(domain: TextDomain, ids: Tensor) -> Tokens:
    t = torch.full((len(ids),), 0.6, dtype=torch.float64)
    return domain.process.corrupt(tokens(ids), t, rng.generator("noise"))


T = torch.zeros(BATCH, dtype=torch.float64)


def test_the_mask_in_words() -> None:
    mask, size, length = doubled_mask(7, 3), 3, 7
    for i in range(2 * length):
        for j in range(2 * length):
            a, b = i % length // size, j % length // size
            clean_row, clean_column = i >= length, j >= length
            if clean_row:
                assert bool(mask[i, j]) == (clean_column and b <= a)
            else:
                assert bool(mask[i, j]) == (b < a if clean_column else a == b)


def test_a_block_sees_nothing_else(domain: TextDomain, model: TextDenoiser, ids: Tensor) -> None:
    """By hand, without the doubled mask: block b is the end of [clean blocks before, noisy block], when those before
    are computed without it."""
    z = noisy(domain, ids)
    with torch.no_grad():
        whole = model(z, T, EarlierBlocks(ids, BLOCK))
        junk = ids.clone()
        junk[:, 2 * BLOCK :] = 7  # clean tokens of block 2 and on are not seen up to block 2
        changed = model(z, T, EarlierBlocks(junk, BLOCK))
    assert torch.equal(whole[:, : 3 * BLOCK], changed[:, : 3 * BLOCK])
    junk = ids.clone()
    junk[:, BLOCK] = 7
    with torch.no_grad():
        changed = model(z, T, EarlierBlocks(junk, BLOCK))
    assert torch.equal(whole[:, : 2 * BLOCK], changed[:, : 2 * BLOCK])
    assert not torch.allclose(whole[:, 2 * BLOCK :], changed[:, 2 * BLOCK :])


def test_one_block_is_the_bidirectional_network(domain: TextDomain, model: TextDenoiser, ids: Tensor) -> None:
    z = noisy(domain, ids)
    with torch.no_grad():
        assert torch.allclose(model(z, T, EarlierBlocks(ids, LENGTH)), model(z, T, NoCond()), atol=1e-4)


def test_the_cache_is_exact(domain: TextDomain, model: TextDenoiser, ids: Tensor) -> None:
    z, past = noisy(domain, ids), Past()
    with torch.no_grad():
        whole = model(z, T, EarlierBlocks(ids, BLOCK))
        for start in range(0, LENGTH, BLOCK):
            part = slice(start, start + BLOCK)
            block = Tokens(z.ids[:, part], z.mask[:, part])
            masked = domain.process.masked(block)
            found = model(block, T, past.at(start), at=masked)
            assert torch.allclose(found, whole[:, part][masked], atol=1e-4)
            model(tokens(ids[:, part]), T, past.at(start, store=True))
    assert past.length == LENGTH


@pytest.mark.parametrize("method", ["ancestral", "confidence", "threshold"])
def test_sampling_with_and_without_cache(domain: TextDomain, model: TextDenoiser, method: str) -> None:
    like = domain.plan(range(BATCH), 0, length=LENGTH, prompt="It is a truth").like
    for size, steps in ((BLOCK, 8), (1, LENGTH), (LENGTH, 3)):
        drawn = [
            by_blocks(
                model, domain.process, steps, like, rng.per_sample(0, range(BATCH)), block=size, method=method, cache=c
            )
            for c in (True, False)
        ]
        assert torch.equal(drawn[0].ids, drawn[1].ids)
        assert not bool(domain.process.masked(drawn[0]).any())
        assert like.given is not None
        assert torch.equal(drawn[0].ids[like.given], like.ids[like.given])


def test_rows_do_not_depend_on_the_batch(domain: TextDomain, model: TextDenoiser) -> None:
    def draw(rows: list[int]) -> Tokens:
        like = domain.plan(rows, 0, length=LENGTH).like
        stop = Stop(end_id=3)
        return by_blocks(model, domain.process, 8, like, rng.per_sample(0, rows), block=BLOCK, stop=stop)

    many, few = draw([0, 1, 2, 3, 4, 5, 6, 7]), draw([6, 7, 2, 1])
    assert torch.equal(many.mask[[6, 7, 2, 1]], few.mask)
    assert torch.equal(many.ids[[6, 7, 2, 1]][few.mask], few.ids[few.mask])


def test_stops(domain: TextDomain) -> None:
    ids = torch.tensor([[0, 5, 6, 0, 7, 8], [0, 5, 5, 5, 5, 5], [0, 1, 2, 3, 4, 5]])
    z = tokens(ids)
    at_end = stopped(z, slice(2, 4), Stop(end_id=0)).mask
    assert at_end.sum(1).tolist() == [4, 6, 6]
    assert stopped(z, slice(0, 3), Stop(end_id=0)).mask.all()  # not yet looked at
    given = Tokens(ids, z.mask, torch.arange(6) < 4)
    assert stopped(Tokens(ids, z.mask, given.given.expand(3, 6)), slice(2, 4), Stop(end_id=0)).mask.all()  # type: ignore[union-attr]
    low = stopped(z, slice(2, 4), Stop(entropy=0.9)).mask
    assert low.sum(1).tolist() == [6, 4, 6]


def test_calls_are_counted(domain: TextDomain, model: TextDenoiser) -> None:
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    like = domain.plan(range(4), 0, length=LENGTH).like
    by_blocks(model, domain.process, 8, like, rng.per_sample(0, range(4)), block=BLOCK, method="confidence")
    hook.remove()
    assert len(calls) == 8 + 3  # and one a finished block
    assert [share(8, b, 4) for b in range(4)] == [2, 2, 2, 2]
    assert sum(share(10, b, 4) for b in range(4)) == 10
    with pytest.raises(UsageError, match="at least a call each: give 4"):
        by_blocks(model, domain.process, 3, like, rng.per_sample(0, range(4)), block=BLOCK)


def test_blocks_of_one_token_are_autoregressive(domain: TextDomain, model: TextDenoiser, ids: Tensor) -> None:
    """E over t of weight(t) [masked] is 1: the mean over all draws of the loss is the exact likelihood."""
    x0 = tokens(ids)
    hidden = x0.with_ids(torch.full_like(ids, domain.process.mask_id))
    with torch.no_grad():
        exact = -model(hidden, T, EarlierBlocks(ids, 1)).gather(2, ids[..., None]).squeeze(2).sum(1)
        t = torch.full((BATCH, LENGTH), 0.999999, dtype=torch.float64)
        found = bd3_loss(model, domain.process, x0, t, 1, rng.generator("loss"))
        gen = rng.generator("times")
        many = torch.stack([bd3_loss(model, domain.process, x0, _times(gen), 1, gen) for _ in range(60)]).mean(0)
    assert torch.allclose(found, exact, rtol=0.02)
    assert torch.allclose(many, exact, rtol=0.1)


def _times(gen: torch.Generator) -> Tensor:
    return 0.2 + 0.8 * rng.rand(BATCH * LENGTH, gen).view(BATCH, LENGTH)


def test_clipping_cuts_the_variance(domain: TextDomain, model: TextDenoiser, ids: Tensor) -> None:
    ranges = [(0.001, 1.0), (0.3, 0.8)]
    wide, clipped = noise_variance(model, domain.process, tokens(ids), BLOCK, ranges, rng.generator("v"), draws=16)
    assert clipped < wide / 2


def test_options_and_timed_networks(domain: TextDomain, model: TextDenoiser, ids: Tensor) -> None:
    with pytest.raises(UsageError, match="block=0"):
        BD3(domain.process, block=0)
    timed = TextDenoiser(model.net, domain.process, timed=True)
    with pytest.raises(UsageError, match="different times"):
        timed(tokens(ids), T, EarlierBlocks(ids, BLOCK))
    z = BD3(domain.process, block=8).sample(
        model, domain.plan(range(4), 0).like, NoCond(), rng.per_sample(0, range(4)), steps=16
    )
    assert z.ids.shape == (4, 128)
