"""The guided sampler on a small network and its discriminator: what it may touch, what it costs, that it climbs."""

import pytest
import torch

from xdistill import rng
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.discriminator import TokenDiscriminator
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.process import MaskProcess
from xdistill.samplers.mask import grid
from xdistill.samplers.rgas import reward_gradient, rgas, rgas_calls, tilt_weights
from xdistill.state import Tokens

V, L, MASK = 21, 16, 7
PROCESS = MaskProcess(MASK)


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    net = TextDiT(TextConfig(V, hidden=32, blocks=2, heads=2, cond=16, dropout=0.0)).eval()
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    student = TextDenoiser(net, PROCESS).requires_grad_(False)
    return student, TokenDiscriminator(student, trainable=1).eval().requires_grad_(False)


def start(batch, lengths=None):
    """Masked but for a given prefix of two tokens."""
    mask = torch.arange(L)[None] < torch.as_tensor(lengths or [L] * batch)[:, None]
    given = (torch.arange(L) < 2).expand(batch, L) & mask
    ids = torch.full((batch, L), 3)
    return Tokens(ids.masked_fill(mask & ~given, MASK), mask, given)


def run(nets, z, indices, steps=4, **options):
    return rgas(*nets, PROCESS, grid(steps), z, NoCond(), rng.per_sample(1, indices), **options).ids


@pytest.mark.parametrize("options", [{}, {"mask_column": False}, {"ratio": 1.0}, {"ratio": 0.0, "h0": 500, "h1": 500}])
def test_rows_and_padding(nets, options):
    lengths = [16, 16, 9, 12, 16, 5, 16, 16]
    z = start(8, lengths)
    ids = run(nets, z, range(8), **options)
    assert torch.equal(ids[~z.free], z.ids[~z.free])
    assert (ids[z.free] != MASK).all()
    part = [5, 0, 3, 6]
    assert torch.equal(run(nets, start(4, [lengths[i] for i in part]), part, **options), ids[part])


@pytest.mark.parametrize(("steps", "ratio", "candidates"), [(8, 0.5, 4), (5, 0.5, 3), (3, 0.0, 2), (3, 1.0, 2)])
def test_calls(nets, steps, ratio, candidates):
    calls = {"student": 0, "discriminator": 0, "discriminator_backward": 0}

    def count(name):
        def hook(module, args, kwargs):
            calls[name] += 1
            calls["discriminator_backward"] += kwargs.get("soft") is not None

        return hook

    hooks = [n.register_forward_pre_hook(count(k), with_kwargs=True) for n, k in zip(nets, calls, strict=False)]
    run(nets, start(32), range(32), steps, ratio=ratio, candidates=candidates)
    for hook in hooks:
        hook.remove()
    assert calls == rgas_calls(steps, ratio, candidates)


def test_gradient_is_that_of_the_reward(nets):
    """Along the gradient the reward grows as it says; clipped entries apart, which this network has none of."""
    student, discriminator = nets
    z, t = start(4), torch.full((4,), 0.6, dtype=torch.float64)
    y = student(z, t, NoCond(), at=PROCESS.masked(z), raw=True)
    reward, gradient = reward_gradient(discriminator, PROCESS, z, t, NoCond(), y)
    up, down = (
        reward_gradient(discriminator, PROCESS, z, t, NoCond(), y + s * gradient)[0].sum() for s in (1e-1, -1e-1)
    )
    assert reward.shape == (4,)
    assert float((up - down) / 0.2) == pytest.approx(float(gradient.square().sum()), rel=2e-2)


def test_both_halves_raise_the_discriminators_logits(nets):
    """More tilt, or a sharper choice among candidates, gives sequences that the discriminator likes better."""
    _, discriminator = nets

    def liked(**options):
        z = start(48)
        ids = run(nets, z, range(48), 3, **options)
        return float(discriminator(z.with_ids(ids), torch.zeros(48), NoCond()).mean())

    none = liked(ratio=0.0, h0=0.0, h1=0.0)
    assert liked(ratio=0.0, h0=300.0, h1=300.0) > none + 0.005
    assert liked(ratio=1.0, candidates=6, choice=50.0) > none + 0.005


def test_mask_column(nets):
    """The published weights give the mask's own probability away: fewer tokens are revealed."""
    logits = torch.zeros(1, V)
    logits[0, MASK] = 3.0
    t, r = torch.tensor(0.8), torch.tensor(0.4)
    published = tilt_weights(PROCESS, logits, t, r)[0]
    ours = tilt_weights(PROCESS, logits.index_fill(1, torch.tensor([MASK]), -1e6), t, r)[0]
    assert float(ours[:MASK].sum() + ours[MASK + 1 :].sum()) == pytest.approx(float(PROCESS.keep(r) - PROCESS.keep(t)))
    assert float(published[0]) == pytest.approx(float(ours[0]) * 20 / (20 + torch.e**3), rel=1e-4)
    with pytest.raises(UsageError, match=r"ratio=1\.5"):
        run(nets, start(4), range(4), ratio=1.5)
