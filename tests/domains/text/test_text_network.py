"""What the text network must not depend on, and what it must be equal to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xdistill.domains.text import network
from xdistill.domains.text.checkpoint import load_text_model
from xdistill.domains.text.denoiser import TextDenoiser, subs
from xdistill.domains.text.network import SIZES, TextConfig, TextDiT
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.state import Tokens

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
MASK, VOCABULARY, LENGTH = 5, 61, 11
TIMES = torch.tensor([0.15, 0.5, 0.95], dtype=torch.float64)


@pytest.fixture(params=[True, False], ids=["timed", "untimed"])
def model(request: pytest.FixtureRequest) -> TextDenoiser:
    return load_text_model(FIXTURES / "tiny_b", timed=request.param).requires_grad_(False)


def tokens(masked: float = 0.5) -> Tokens:
    gen = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (3, LENGTH), generator=gen)
    ids[torch.rand(ids.shape, generator=gen) < masked] = MASK
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def close(a: Tensor, b: Tensor) -> None:
    """Equal to fp32 rounding, where the log-probabilities of what cannot be may differ freely."""
    torch.testing.assert_close(a.clamp(min=-1e3), b.clamp(min=-1e3), rtol=1e-5, atol=1e-5)


def rows(z: Tokens, at: Any) -> Tokens:
    return Tokens(z.ids[at], z.mask[at])


@pytest.mark.parametrize("junk", [0, MASK, 60])
def test_padding_changes_nothing(model: TextDenoiser, junk: int) -> None:
    z, lengths = tokens(), [4, 11, 7]
    mask = torch.arange(LENGTH + 3)[None] < torch.tensor(lengths)[:, None]
    ids = torch.full(mask.shape, junk)
    ids[:, :LENGTH] = torch.where(mask[:, :LENGTH], z.ids, junk)
    padded = model(Tokens(ids, mask), TIMES, NoCond())
    for i, n in enumerate(lengths):
        alone = model(Tokens(z.ids[i : i + 1, :n], z.mask[i : i + 1, :n]), TIMES[i : i + 1], NoCond())
        close(padded[i, :n], alone[0])


def test_company_and_order_of_rows_change_nothing(model: TextDenoiser) -> None:
    z = tokens()
    whole = model(z, TIMES, NoCond())
    order = torch.tensor([2, 0, 1])
    close(model(rows(z, order), TIMES[order], NoCond()), whole[order])
    for i in range(3):
        close(model(rows(z, slice(i, i + 1)), TIMES[i : i + 1], NoCond()), whole[i : i + 1])


def test_chosen_positions_are_rows_of_the_whole(model: TextDenoiser) -> None:
    z = tokens()
    at = torch.rand(z.ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    for options in ({}, {"raw": True}):
        close(model(z, TIMES, NoCond(), at=at, **options), model(z, TIMES, NoCond(), **options)[at])
    none = torch.zeros_like(at)
    assert model(z, TIMES, NoCond(), at=none).shape == (0, VOCABULARY)


def test_time_matters_only_if_told(model: TextDenoiser) -> None:
    z = tokens()
    same = torch.equal(model(z, TIMES, NoCond()), model(z, TIMES.flip(0), NoCond()))
    assert same == (not model.timed)


def test_soft_one_hot_tokens_are_the_tokens(model: TextDenoiser) -> None:
    z = tokens()
    soft = torch.nn.functional.one_hot(z.ids, VOCABULARY).float() * 1e9
    close(model(z, TIMES, NoCond(), soft=soft), model(z, TIMES, NoCond()))


def test_log_probabilities_of_subs(model: TextDenoiser) -> None:
    z = tokens()
    p = model(z, TIMES, NoCond()).double().exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(3, LENGTH, dtype=torch.float64))
    hidden = z.ids == MASK
    assert bool((p[hidden][:, MASK] == 0).all())
    assert bool((p[~hidden].gather(1, z.ids[~hidden][:, None]) == 1).all())
    assert bool((p[hidden].amax(1) < 1).all())


def test_subs_of_half_precision_is_full_precision() -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = logits.clone()
    found = subs(logits, torch.full((4,), MASK), MASK)
    assert found.dtype == torch.float32
    assert torch.equal(logits, kept)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(4))  # of bf16 numbers it would be off by 1e-3


def test_training_computes_what_sampling_does(model: TextDenoiser) -> None:
    """On a CPU the training forward takes another path through attention."""
    z = tokens()
    z = Tokens(z.ids, torch.arange(LENGTH)[None] < torch.tensor([5, 11, 8])[:, None])
    plain = model(z, TIMES, NoCond())[z.mask]
    trained = model.requires_grad_(True)(z, TIMES, NoCond())[z.mask]
    assert trained.requires_grad
    close(trained.detach(), plain)


def test_checkpointed_activations_change_nothing(model: TextDenoiser) -> None:
    gradients = []
    for checkpointing in (False, True):
        model.requires_grad_(True).zero_grad()
        model.net.activation_checkpointing = checkpointing
        model(tokens(), TIMES, NoCond(), raw=True).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert gradients[0]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_positions_matter() -> None:
    """Rotary embedding: without it a bidirectional network could not tell orders apart."""
    model = load_text_model(FIXTURES / "tiny_b").requires_grad_(False)
    z = Tokens(torch.tensor([[1, 2, 3, MASK]]), torch.ones(1, 4, dtype=torch.bool))
    other = z.with_ids(torch.tensor([[2, 1, 3, MASK]]))
    t = TIMES[:1]
    assert not torch.allclose(model(z, t, NoCond())[0, 3], model(other, t, NoCond())[0, 3], atol=1e-3)


@pytest.mark.parametrize(("size", "count"), [("tiny", 80_061_266), ("small", 169_627_218), ("medium", 424_477_010)])
def test_official_parameter_counts(size: str, count: int) -> None:
    with torch.device("meta"):
        net = TextDiT(TextConfig(50258, **SIZES[size]))  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == count


def test_a_fresh_network_predicts_the_uniform_distribution() -> None:
    net = TextDiT(TextConfig(17, hidden=16, blocks=2, heads=2, cond=8))
    assert bool((net(torch.arange(6)[None], torch.zeros(1)) == 0).all())


def test_configuration_round_trip_and_errors() -> None:
    config = TextConfig(7, hidden=8, blocks=1, heads=2, cond=4)
    assert TextConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UsageError, match="hiden"):
        TextConfig.from_dict({"vocabulary": 7, "hiden": 8})
    for hidden, heads in ((10, 3), (9, 3)):
        with pytest.raises(UsageError, match=f"heads={heads}"):
            TextConfig(7, hidden=hidden, heads=heads)


def test_rotation_keeps_lengths_and_relative_angles() -> None:
    rotary = network.Rotary(6)(9)
    gen = torch.Generator().manual_seed(0)
    q, k = torch.randn(6, generator=gen), torch.randn(6, generator=gen)
    rq, rk = (network.rotate(v.expand(9, 6), rotary) for v in (q, k))
    torch.testing.assert_close(rq.norm(dim=1), q.norm().expand(9))
    scores = rq @ rk.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], rtol=1e-4, atol=1e-5)
