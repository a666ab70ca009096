"""The autoregressive model: an exact cache, causality, padding, sampling, and its file."""

from pathlib import Path

import pytest
import torch

from xdistill import rng
from xdistill.domains.text.causal import CausalConfig, CausalLM, continue_text, load_causal, save_causal
from xdistill.errors import XDistillError
from xdistill.models import NoCond
from xdistill.samplers.mask import TokenDraw
from xdistill.state import Tokens

V, MASK, CONTEXT = 23, 7, 12


@pytest.fixture(scope="module")
def model() -> CausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CausalLM(CausalConfig(V, MASK, CONTEXT, hidden=16, blocks=2, heads=2))
        for p in net.parameters():
            p.data += 0.2 * torch.randn_like(p)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(V, (3, CONTEXT), generator=rng.generator("ids"))


def test_the_cache_is_exact(model: CausalLM, ids: torch.Tensor) -> None:
    whole, cache, steps = model(ids), model.start(NoCond(), len(ids)), []
    for i in range(CONTEXT):
        log_p, cache = model.next(cache, ids[:, i])
        steps.append(log_p)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-5)
    cache = model.start(NoCond(), len(ids))
    parts = [model(part, cache) for part in (ids[:, :5], ids[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


def test_the_training_path_computes_the_same(model: CausalLM, ids: torch.Tensor) -> None:
    with torch.enable_grad():
        model.requires_grad_(True)
        trained = model(ids).detach()
        model.requires_grad_(False)
    torch.testing.assert_close(trained, model(ids), rtol=1e-5, atol=1e-5)


def test_what_follows_changes_nothing(model: CausalLM, ids: torch.Tensor) -> None:
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % V
    torch.testing.assert_close(model(ids)[:, :6], model(other)[:, :6], rtol=0, atol=0)
    assert not torch.allclose(model(ids)[:, 6:], model(other)[:, 6:])


def test_log_probs_ignore_padding_and_never_expect_the_mask(model: CausalLM, ids: torch.Tensor) -> None:
    mask = torch.arange(CONTEXT) < torch.tensor([4, 9, CONTEXT])[:, None]
    found = model.log_probs(ids, mask)
    torch.testing.assert_close(model.log_probs(torch.where(mask, ids, 0), mask), found)
    alone = model.log_probs(ids[:1, :4], mask[:1, :4])
    torch.testing.assert_close(found[:1, :3], alone, rtol=1e-5, atol=1e-5)
    assert (found[0, 3:] == 0).all()
    assert (model(ids)[..., MASK] == float("-inf")).all()
    torch.testing.assert_close(model(ids).exp().sum(2), torch.ones(3, CONTEXT))


def test_samples_follow_the_model(model: CausalLM) -> None:
    start = torch.zeros(4000, 2, dtype=torch.long)
    drawn = continue_text(model, Tokens(start, torch.ones_like(start, dtype=torch.bool)), rng.generator("draw"))
    shares = drawn.ids[:, 1].bincount(minlength=V) / 4000
    p = model(start[:1, :1])[0, 0].exp()
    assert (shares - p).abs().max() < 4 * (p * (1 - p) / 4000).sqrt().max()
    greedy = continue_text(model, drawn, rng.generator("other"), draw=TokenDraw(temperature=0))
    assert (greedy.ids[:, 1] == p.argmax()).all()


def test_a_sample_depends_on_its_own_generator(model: CausalLM) -> None:
    like = Tokens(torch.zeros(3, CONTEXT, dtype=torch.long), torch.ones(3, CONTEXT, dtype=torch.bool))
    together = continue_text(model, like, rng.per_sample(0, [0, 1, 2])).ids
    alone = continue_text(model, Tokens(like.ids[:1], like.mask[:1]), rng.per_sample(0, [2])).ids
    assert together[2:].equal(alone)


def test_file_round_trip(model: CausalLM, ids: torch.Tensor, tmp_path: Path) -> None:
    save_causal(model, tmp_path / "judge.safetensors", {"steps": 1})
    torch.testing.assert_close(load_causal(tmp_path / "judge.safetensors")(ids), model(ids), rtol=0, atol=0.02)
    (tmp_path / "other").write_bytes(b"no weights")
    with pytest.raises(XDistillError, match="holds no autoregressive judge"):
        load_causal(tmp_path / "other")


def test_a_text_longer_than_the_context_is_refused(model: CausalLM) -> None:
    with pytest.raises(XDistillError, match=f"13 tokens: .*context of {CONTEXT}"):
        model(torch.zeros(1, CONTEXT + 1, dtype=torch.long))
