"""Representation-space MMD: the estimator against the gradient of MMD^2 by enumeration, and what it must ignore."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from xdistill import rng
from xdistill.domain import clone
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.domains.toy import ToyDomain
from xdistill.errors import UsageError, XDistillError
from xdistill.models import Batch, NoCond
from xdistill.objectives.mmd import MMD, advantages, costs, discrepancy, kernels
from xdistill.process import MaskProcess
from xdistill.roles import RoleView, phase_grads
from xdistill.state import Tokens
from xdistill.testing.harness import train

F64 = torch.float64
N, G = 3, 2  # outcomes of one completion, completions of a start
TARGET = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
POINTS = torch.tensor([[0.0, 1.0], [1.0, 0.2], [-0.7, 0.5]], dtype=F64)
VARIANCE = 0.8


def exact(logits):
    """MMD^2 of the student's law and the target under the RBF kernel of the points."""
    gap = logits.softmax(0) - TARGET
    return gap @ (-torch.cdist(POINTS, POINTS).square() / (2 * VARIANCE)).exp() @ gap


def enumerated(logits):
    """Every (real, G generated) x 2 starts with its weight: the mean of the surrogate, and of the MMD^2 estimate."""
    outcomes = torch.tensor(list(itertools.product(range(N), repeat=2 * (1 + G)))).view(-1, 2, 1 + G)
    p = logits.softmax(0).detach()
    weight = TARGET[outcomes[:, :, 0]].prod(1) * p[outcomes[:, :, 1:]].prod(2).prod(1)
    at = torch.tensor([[True, False]]).expand(len(outcomes), -1)
    states = POINTS[outcomes][:, :, :, None].repeat(1, 1, 1, 2, 1)  # L = 2, the second position does not count
    states[:, :, :, 1] = 9.0
    k = kernels(states[:, 0], states[:, 1], at, at, VARIANCE)
    log_p = logits.log_softmax(0)[outcomes[:, :, 1:]]
    surrogate = sum(2 * (advantages(c) * log_p[:, i]).mean(1) for i, c in enumerate(costs(k))) / 2
    return (weight * surrogate).sum(), (weight * discrepancy(k)).sum()


def test_the_estimator_is_unbiased():
    logits = torch.tensor([0.3, -0.9, 0.4], dtype=F64, requires_grad=True)
    surrogate, mmd = enumerated(logits)
    truth = exact(logits)
    torch.testing.assert_close(mmd, truth.detach(), rtol=1e-12, atol=1e-14)
    mine, right = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (surrogate, truth))
    torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-14)
    assert right.abs().max() > 1e-2


def test_zero_where_the_laws_are_equal():
    logits = TARGET.log().requires_grad_()
    assert torch.autograd.grad(enumerated(logits)[0], logits)[0].abs().max() < 1e-15


def network(process):
    """A small text network with random weights everywhere."""
    torch.manual_seed(0)
    net = TextDiT(TextConfig(9, hidden=16, blocks=2, heads=2, cond=8, dropout=0.0))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return TextDenoiser(net, process)


class TestLoss:
    process = MaskProcess(8)
    mask = torch.arange(6)[None] < torch.tensor([6, 4, 5, 2])[:, None]

    def run(self, junk=0, given=None, order=None, **options):
        ids = torch.where(self.mask, torch.arange(24).view(4, 6) % 7, junk)
        teacher = network(self.process)
        modules = {"teacher": teacher, "student": clone(teacher)}
        objective = MMD(self.process, steps=2, kl=0.1, entropy=0.1, **options)
        with phase_grads(modules, "student"):
            net = RoleView(modules, modules, "student", rng.generator("shared"))
            batch = Batch(Tokens(ids, self.mask, given), NoCond())
            out = objective.loss(objective.phases(0)[0], batch, net, rng.generator("loss"))
            grads = torch.autograd.grad(out.per_sample.mean(), list(modules["student"].parameters()), allow_unused=True)
        return [out.per_sample.detach(), *(g for g in grads if g is not None)]

    def test_padding_changes_nothing(self):
        a, b = self.run(), self.run(junk=5)
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
        assert a[0].abs().max() > 1e-3

    def test_the_order_of_the_batch_changes_no_cost(self):
        """With every other sequence as a neighbour."""
        objective = MMD(self.process, neighbours=3)
        states = torch.randn(4, 3, 6, 5, generator=rng.generator(0), dtype=F64)
        order = torch.tensor([2, 0, 3, 1])
        cost, mmd = objective.compare(states, self.mask)
        shuffled, mmd_shuffled = objective.compare(states[order], self.mask[order])
        torch.testing.assert_close(shuffled, cost[order], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mmd_shuffled.mean(), mmd.mean(), rtol=1e-12, atol=1e-14)

    def test_given_tokens_are_never_drawn(self):
        given = torch.zeros(4, 6, dtype=torch.bool)
        given[:, :3] = True
        x0 = Tokens(torch.arange(24).view(4, 6) % 7, self.mask, given)
        z = self.process.prior(x0, rng.generator(0))
        log_g = torch.zeros(int(self.process.masked(z).sum()), 9)
        drawn = MMD(self.process).complete(z, log_g, rng.generator(1))
        assert torch.equal(drawn.ids[given], x0.ids[given])
        assert torch.isfinite(self.run(given=given)[0]).all()

    def test_options_are_checked(self):
        for options, message in (
            ({"samples": 1}, "samples=1"),
            ({"depth": 0.0}, "depth=0"),
            ({"bandwidth": 0}, "band"),
        ):
            with pytest.raises(UsageError, match=message):
                MMD(self.process, **options)
        with pytest.raises(XDistillError, match=r"data\.batch=4 must exceed"):
            self.run(neighbours=4)


def test_hidden_states_are_those_of_the_middle():
    process = MaskProcess(8)
    model = network(process)
    x = Tokens(torch.arange(6)[None] % 8, torch.ones(1, 6, dtype=torch.bool))
    t = torch.zeros(1)
    h, last = (model(x, t, NoCond(), depth=d) for d in (0.5, 1.0))
    c = model.net.condition(model.sigma(t))
    torch.testing.assert_close(h, model.net.trunk(x.ids, c, blocks=1))
    torch.testing.assert_close(model.net.output_layer(last, c, None), model(x, t, NoCond(), raw=True))


def test_a_student_of_one_call_moves_to_the_marginals():
    """From far away; a product law is the best that one call can do."""
    domain = ToyDomain({"task": "tokens"})
    source = domain.data(128, 0)
    objective = MMD(domain.process, steps=1, neighbours=2)
    torch.manual_seed(0)
    modules = {"teacher": domain.teacher(), "student": domain.network()}
    modules["student_ema"] = clone(modules["student"])
    request = domain.null_data(1, 1).batch(0, 0, 1)

    def distance():
        with torch.no_grad():
            g = modules["student_ema"](request.like, torch.ones(1), request.cond)[0].double().exp()
        q = torch.outer(g[0], g[1]).flatten()
        return float((q - domain.table).square().sum())

    p = domain.table.view(3, 3)
    marginal = torch.outer(p.sum(1), p.sum(0)).flatten()
    before = distance()
    train(objective, modules, lambda i: source.batch(i, 0, 1), 150, lr=1e-2, betas=(0.0, 0.9), ema=0.95)
    best = float((marginal - domain.table).square().sum())
    assert before > 2 * best
    assert distance() < 1.15 * best


def test_toy_networks_show_their_hidden_states():
    domain = ToyDomain({"task": "tokens"})
    x = domain.data(5, 0).batch(0, 0, 1).like
    exact = domain.teacher()(x, torch.zeros(5), NoCond(), depth=0.5)
    code = x.ids[:, 0] * 3 + x.ids[:, 1]
    assert torch.equal(exact[:, 1], F.one_hot(code, 9).double())
    assert domain.network()(x, torch.zeros(5), NoCond(), depth=0.5).shape == (5, 2, 32)
