"""The joint laws of masks: each token masked with the same probability, far apart when the order is `spread`."""

import pytest
import torch

from xdistill import rng
from xdistill.errors import UsageError
from xdistill.process import MaskProcess
from xdistill.state import Tokens

L, MASK = 16, 9


def tokens(rows: int, padding: int = 0, given: int = 0) -> Tokens:
    ids = torch.zeros(rows, L + padding, dtype=torch.long)
    mask = torch.arange(L + padding).expand(rows, -1) < L
    return Tokens(ids, mask, torch.arange(L + padding).expand(rows, -1) < given)


@pytest.mark.parametrize("order", ["independent", "spread"])
def test_every_token_is_visible_with_probability_keep(order: str) -> None:
    process, n, t = MaskProcess(MASK, order=order), 4000, torch.tensor([0.3])
    z = process.corrupt(tokens(n), t.expand(n), rng.generator(0))
    share, keep = (z.ids == 0).double().mean(0), float(process.keep(t))
    assert (share - keep).abs().max() < 4 * (keep * (1 - keep) / n) ** 0.5


def test_spread_shows_an_exact_share_at_equal_distances() -> None:
    process = MaskProcess(MASK, eps=0.0, order="spread")
    for k in (1, 2, 4, 8):
        z = process.corrupt(tokens(50), torch.full((50,), 1 - k / L), rng.generator(k))
        for row in z.ids == 0:
            at = row.nonzero().squeeze(1)
            assert len(at) == k
            assert (torch.diff(torch.cat([at, at[:1] + L])) == L // k).all()


def test_later_times_show_a_subset() -> None:
    process, x0 = MaskProcess(MASK, order="spread"), tokens(20)
    places = process.places(x0, rng.generator(0))
    early, late = (process.show(x0, places, torch.full((20,), t)).ids == 0 for t in (0.2, 0.7))
    assert (late <= early).all()
    assert late.sum() < early.sum()


def test_padding_given_tokens_and_the_rest_of_the_batch_change_no_place() -> None:
    process = MaskProcess(MASK, order="spread")
    gens = lambda: rng.per_sample(0, range(3))  # noqa: E731
    plain = process.places(tokens(3), gens())
    assert torch.equal(process.places(tokens(3, padding=5), gens())[:, :L], plain)
    assert torch.equal(process.places(tokens(1), gens()[2:]), plain[2:])
    z = process.corrupt(tokens(3, given=4), torch.ones(3), gens())
    assert (z.ids[:, :4] == 0).all()
    half = process.corrupt(tokens(3, given=4), torch.full((3,), 0.5), gens())
    assert ((half.ids[:, 4:] == 0).sum(1) == 6).all()


def test_unknown_order() -> None:
    with pytest.raises(UsageError, match="independent or spread"):
        MaskProcess(MASK, order="random")
