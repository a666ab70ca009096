"""The token discriminator: what it owns, what it borrows, and its spectral norm against torch's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xdistill.domains.text.checkpoint import load_text_model
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.discriminator import SpectralLinear, TokenDiscriminator, default_trainable
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.process import MaskProcess
from xdistill.state import Tokens

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"


@pytest.fixture
def teacher() -> TextDenoiser:
    return load_text_model(FIXTURES / "tiny_b").requires_grad_(False)


def tokens(rows: int = 3, seed: int = 0) -> Tokens:
    ids = torch.randint(0, 61, (rows, 11), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def call(net: Any, z: Tokens, t: float = 0.5, **options: Any) -> Tensor:
    return net(z, torch.full((z.batch,), t, dtype=torch.float64), NoCond(), **options)


def test_it_owns_the_last_blocks_and_the_head_alone(teacher: TextDenoiser) -> None:
    net = TokenDiscriminator(teacher)
    assert {k.rpartition(".")[0].split(".")[0] for k in net.state_dict()} == {"blocks", "output_layer"}
    assert list(net.blocks) == ["2"]
    mine = {p.data_ptr() for p in net.parameters()}
    assert not mine & {p.data_ptr() for p in teacher.parameters()}
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert net.trunk is teacher.net


def test_training_moves_its_own_parameters_only(teacher: TextDenoiser) -> None:
    net, before = TokenDiscriminator(teacher), copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    call(net, tokens()).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_copies_share_the_trunk_and_nothing_else(teacher: TextDenoiser) -> None:
    net = TokenDiscriminator(teacher)
    call(net, tokens())  # a forward in training mode leaves nothing behind that could not be copied
    twin = copy.deepcopy(net)
    assert twin.trunk is teacher.net
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in twin.parameters()}
    fresh = TokenDiscriminator(teacher)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(call(fresh.eval(), tokens()), call(net.eval(), tokens()))


def test_initial_weights_are_always_the_same(teacher: TextDenoiser) -> None:
    torch.manual_seed(1)
    a = TokenDiscriminator(teacher).state_dict()
    torch.manual_seed(2)
    b = TokenDiscriminator(teacher).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    own = {k: v for k, v in a.items() if k.startswith("blocks.2.")}
    assert own
    assert all(torch.equal(v, teacher.net.state_dict()[k]) for k, v in own.items())


def test_gradient_flows_to_soft_tokens_through_the_whole_trunk(teacher: TextDenoiser) -> None:
    net, z = TokenDiscriminator(teacher, trainable=1).eval().requires_grad_(False), tokens()
    gen = torch.Generator().manual_seed(3)
    soft = torch.randn(3, 11, 61, generator=gen, dtype=torch.float32).requires_grad_()
    direction = torch.randn(soft.shape, generator=gen)
    (gradient,) = torch.autograd.grad(call(net, z, soft=soft).sum(), soft)
    step = 1e-2
    with torch.no_grad():
        up, down = (call(net, z, soft=soft + s * direction).double().sum() for s in (step, -step))
    assert float((gradient * direction).sum()) == pytest.approx(float((up - down) / (2 * step)), rel=2e-3)


def test_one_hot_logits_are_the_tokens(teacher: TextDenoiser) -> None:
    net, z = TokenDiscriminator(teacher).eval(), tokens()
    one_hot = nn.functional.one_hot(z.ids, 61).float() * 1e9
    torch.testing.assert_close(call(net, z, soft=one_hot), call(net, z), rtol=0, atol=1e-6)


def test_time_reaches_it_unless_told_otherwise(teacher: TextDenoiser) -> None:
    untimed_teacher = TextDenoiser(teacher.net, teacher.process, timed=False)
    told, deaf = (TokenDiscriminator(untimed_teacher, timed=timed).eval() for timed in (True, False))
    assert not torch.allclose(call(told, tokens(), 0.2), call(told, tokens(), 0.9), atol=1e-4)
    assert torch.equal(call(deaf, tokens(), 0.2), call(deaf, tokens(), 0.9))


@pytest.mark.parametrize("timed", [True, False])
def test_neither_padding_nor_company_changes_logits(teacher: TextDenoiser, timed: bool) -> None:
    net, z = TokenDiscriminator(teacher, timed=timed).eval(), tokens()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    whole = net(z, t, NoCond())
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(Tokens(z.ids[order], z.mask[order]), t[order], NoCond()), whole[order])
    short = Tokens(z.ids[:, :7], z.mask[:, :7])
    junk = torch.arange(11).expand(3, -1) >= 7
    padded = Tokens(z.ids, ~junk)
    expected = net(short, t, NoCond())
    torch.testing.assert_close(net(padded, t, NoCond())[:, :7], expected, rtol=1e-5, atol=1e-6)
    alone = net(Tokens(z.ids[1:2], z.mask[1:2]), t[1:2], NoCond())
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-5, atol=1e-6)


def test_checkpointed_activations_change_nothing(teacher: TextDenoiser) -> None:
    gradients = []
    for checkpointing in (False, True):
        net = TokenDiscriminator(teacher, trainable=2)
        net.activation_checkpointing = checkpointing
        call(net, tokens()).sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_spectral_norm_is_torchs(teacher: TextDenoiser) -> None:
    ours, reference = SpectralLinear(6, 4), nn.Linear(6, 4)
    with torch.no_grad():
        reference.weight.copy_(ours.weight_orig)
        reference.bias.copy_(ours.bias)
    reference = nn.utils.spectral_norm(reference)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    for training in (True, True, False):
        ours.train(training), reference.train(training)
        for layer in (ours, reference):
            layer.zero_grad()
            layer(x).square().sum().backward()
        torch.testing.assert_close(ours(x), reference(x))  # another iteration each, if in training
        torch.testing.assert_close(ours.weight_orig.grad, reference.weight_orig.grad)
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value)


def test_largest_singular_value_becomes_one_in_training_only() -> None:
    layer = SpectralLinear(8, 8)
    before = layer.weight_u.clone()
    layer.eval()(torch.zeros(1, 8))
    assert torch.equal(layer.weight_u, before)
    layer.train()
    for _ in range(200):
        layer(torch.zeros(1, 8))
    weight = layer.eval()(torch.eye(8)).detach() - layer.bias.detach()
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=1e-4)


def test_two_forwards_before_one_backward() -> None:
    """The second power iteration must not change what the first graph remembers."""
    layer, x = SpectralLinear(3, 2), torch.ones(1, 3)
    (layer(x) + layer(x)).sum().backward()
    assert layer.weight_orig.grad is not None


def test_half_precision_autocast(teacher: TextDenoiser) -> None:
    net, z = TokenDiscriminator(teacher).eval(), tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = call(net, z)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, call(net, z), rtol=0, atol=0.05)


def test_official_sizes() -> None:
    official = json.loads((FIXTURES / "official_keys.json").read_text())["small"]
    with torch.device("meta"):
        net = TokenDiscriminator(TextDenoiser(TextDiT(TextConfig(50258)), MaskProcess(50257)))
    own = sum(p.numel() for p in net.parameters())
    assert own == official["n_trainable_discriminator_unfreeze4"]
    rest = [
        p for n, p in net.trunk.named_parameters() if not n.startswith("output_layer") and n not in net.state_dict()
    ]
    assert own + sum(p.numel() for p in rest) == official["n_params_discriminator"]


def test_number_of_own_blocks(teacher: TextDenoiser) -> None:
    assert [default_trainable(n) for n in (1, 2, 3, 6, 8, 12, 24)] == [1, 1, 1, 3, 4, 4, 4]
    assert list(TokenDiscriminator(teacher, trainable=3).blocks) == ["0", "1", "2"]
    assert not list(TokenDiscriminator(teacher, trainable=0).blocks)
    with pytest.raises(UsageError, match="trainable=4: expected 0 to 3"):
        TokenDiscriminator(teacher, trainable=4)
