"""No objective may notice padding, the gauge, or how a batch lies in memory; all phases, losses and gradients."""

import pytest
import torch

from xdistill import rng
from xdistill.discriminator import PooledDiscriminator
from xdistill.domains.toy import Label, MixtureTeacher, PointNet
from xdistill.domains.toy.teacher import circle
from xdistill.models import Batch
from xdistill.objectives.dmd import DMD
from xdistill.objectives.flow_matching import FlowMatching
from xdistill.objectives.sid import SiD
from xdistill.process import Linear
from xdistill.roles import RoleView, phase_grads
from xdistill.state import Dense, Field, Padded, Ragged

F64 = torch.float64
PROCESS = Linear()
LENGTHS = [3, 1, 4, 2]
OBJECTIVES = {
    "flow_matching": lambda: FlowMatching(PROCESS),
    "sid": lambda: SiD(PROCESS, steps=3),
    "sid_protein": lambda: SiD(PROCESS, steps=1, weight="protein", alpha=1.2),
    "sid_fisher": lambda: SiD(PROCESS, steps=2, weight="fisher"),
    "dmd": lambda: DMD(PROCESS, steps=3),
    "dmd_gan": lambda: DMD(PROCESS, steps=2, gan_weight=0.3, r1=1.0, divergence="js"),
}


def networks(zero_com=False):
    """Networks with random weights everywhere (fresh ones ignore the other elements)."""
    torch.manual_seed(0)
    nets = {role: PointNet(PROCESS, width=8, depth=2).double() for role in ("trunk", "student", "critic")}
    for net in nets.values():
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.5)
    trunk = nets.pop("trunk").requires_grad_(False)
    means = torch.zeros(1, 2, dtype=F64) if zero_com else circle(8, 1.5)
    discriminator = PooledDiscriminator(trunk, PROCESS, hidden=8).double()
    return nets | {"teacher": MixtureTeacher(PROCESS, means, 0.5), "discriminator": discriminator}


def run(objective, like, zero_com=False):
    """Losses and gradients of every phase on one batch."""
    nets, out = networks(zero_com), []
    batch = Batch(like, Label(torch.full((like.batch,), -1)))
    for phase in objective.phases(10**6):
        net = RoleView(nets, nets, phase.owner, rng.generator("shared", 0))
        with phase_grads(nets, phase.owner):
            loss = objective.loss(phase, batch, net, rng.generator("loss", phase.name)).per_sample
            grads = torch.autograd.grad(loss.mean(), list(nets[phase.owner].parameters()), allow_unused=True)
        out += [loss.detach(), *(g for g in grads if g is not None)]
    return out


def rows(lengths=LENGTHS, seed=0):
    return torch.randn(sum(lengths), 2, generator=rng.generator("rows", seed), dtype=F64)


def padded(width, junk, lengths=LENGTHS, offset=0.0, **kw):
    layout = Padded.from_lengths(lengths, width, **kw)
    value = torch.full((len(lengths), width, 2), junk, dtype=F64)
    value[layout.mask] = rows(lengths)
    return Field(value + offset, layout)


def ragged(lengths=LENGTHS):
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Field(rows(lengths), Ragged(index, len(lengths)))


def same(left, right, rtol=1e-8):
    assert len(left) == len(right)
    assert any(x.abs().max() > 1e-3 for x in left)
    for x, y in zip(left, right, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("zero_com", [False, True])
def test_mask_invariance(name, zero_com):
    """Four more padded entries, full of junk: the same losses and gradients."""
    objective = OBJECTIVES[name]()
    narrow = run(objective, padded(4, 0.0, zero_com=zero_com), zero_com)
    same(narrow, run(objective, padded(8, 37.0, zero_com=zero_com), zero_com))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ragged_is_padded(name):
    same(run(OBJECTIVES[name](), padded(6, 5.0)), run(OBJECTIVES[name](), ragged()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_dense_is_padded_is_ragged(name):
    """One element a sample: three ways to store the same batch."""
    ones, objective = [1] * 4, OBJECTIVES[name]()
    dense = run(objective, Field(rows(ones), Dense(4)))
    same(dense, run(objective, padded(3, 9.0, ones)))
    same(dense, run(objective, ragged(ones)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_com_invariance(name):
    """Moving each sample changes nothing when the gauge is fixed, and something when it is not."""
    offset = torch.randn(4, 1, 2, generator=rng.generator("offset"), dtype=F64)
    objective = OBJECTIVES[name]()
    fixed = [run(objective, padded(5, 0.0, zero_com=True, offset=o), zero_com=True) for o in (0.0, offset)]
    same(*fixed)
    if objective.needs.data:
        free = [run(objective, padded(5, 0.0, offset=o)) for o in (0.0, offset)]
        assert any(not torch.allclose(x, y) for x, y in zip(*free, strict=True))


@pytest.mark.parametrize("name", ["sid", "dmd"])
def test_samples_are_centred(name):
    objective, like = OBJECTIVES[name](), padded(5, 0.0, zero_com=True)
    out = objective.sample(networks(True)["student"], like, Label(torch.full((4,), -1)), rng.generator(0))
    assert out.value.sum(1).abs().max() < 1e-12
    assert not out.value[~like.layout.mask].any()
    assert out.value.abs().max() > 0.1


def test_longer_samples_weigh_the_same():
    """A sample that is its own copy end to end has the loss of the original: means, not sums."""
    x = torch.ones(1, 3, 2, dtype=F64)
    short, double = Field(x, Padded.from_lengths([3])), Field(x.repeat(1, 2, 1), Padded.from_lengths([6]))
    assert float(short.mean_square()) == float(double.mean_square())
    assert float(short.mean_abs()) == float(double.mean_abs())
