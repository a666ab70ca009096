"""Regressions whose optimum is known: flow matching, the critic of a student, the discriminator."""

import pytest
import torch
from torch import nn

from xdistill.models import Batch
from xdistill.objectives import Phase
from xdistill.objectives.dmd import DMD
from xdistill.objectives.flow_matching import FLOOR, FlowMatching
from xdistill.objectives.sid import SiD
from xdistill.process import EDM, VP, Kind, Linear, Trig
from xdistill.roles import RoleView, phase_grads
from xdistill.state import Field
from xdistill.testing.oracles import AffineGenerator, At, ExactDenoiser, Mixture, Nodes, normal_nodes

F64 = torch.float64
T, MEAN, STD = 0.35, 0.7, 1.3


@pytest.fixture(params=[Linear(), VP(), Trig(), EDM()], ids=lambda p: type(p).__name__)
def process(request):
    return request.param


class Affine(nn.Module):
    """offset + slope x_t, of any kind."""

    def __init__(self, slope, offset, kind=Kind.X0):
        super().__init__()
        self.kind = kind
        self.slope, self.offset = (nn.Parameter(torch.tensor(float(v), dtype=F64)) for v in (slope, offset))

    def forward(self, x_t, t, cond):
        return Field(self.offset + self.slope * x_t.value, x_t.layout)


class Quadratic(nn.Module):
    """A logit a + b x + c x^2."""

    def __init__(self, *coefficients):
        super().__init__()
        self.coefficients = nn.Parameter(torch.stack(coefficients))

    def forward(self, x_t, t, cond):
        x = x_t.value.squeeze(1)
        return (self.coefficients[:, None] * torch.stack([torch.ones_like(x), x, x**2])).sum(0)


def gradient(objective, phase, modules, batch, weights):
    """Gradient of the expected loss in the parameters of the phase's owner, and its value."""
    net = RoleView(modules, modules, phase.owner, torch.Generator())
    with phase_grads(modules, phase.owner):
        value = (weights * objective.loss(phase, batch, net, torch.Generator()).per_sample).sum()
        grads = torch.autograd.grad(value, list(modules[phase.owner].parameters()))
    return torch.cat([g.flatten() for g in grads]), value.detach()


def tweedie(process, mean, std):
    """(slope, offset, posterior variance) of E[x0 | x_t] for N(mean, std^2) at T."""
    c = process.coeffs(torch.tensor([T], dtype=F64))
    total = (c.alpha * std) ** 2 + c.sigma**2
    slope = c.alpha * std**2 / total
    return float(slope), float(mean * (1 - slope * c.alpha)), (std * c.sigma) ** 2 / total


def test_flow_matching_optimum(process):
    """On Gaussian data the loss is stationary at the posterior mean, where it equals w times the posterior variance."""
    slope, offset, variance = tweedie(process, MEAN, STD)
    (z, e), weights = normal_nodes(2, n=101)
    c = process.coeffs(torch.tensor([T], dtype=F64))
    for shift in (0.0, 0.1):
        data = Field(MEAN + STD * z, Nodes(len(z), iter([e])))
        student = Affine(slope + shift, offset)
        objective = FlowMatching(process, At(T))
        grad, value = gradient(objective, Phase("flow", "student"), {"student": student}, Batch(data), weights)
        if shift:
            assert grad[0] > 1e-3
        else:
            assert grad.abs().max() < 1e-9
            expected = c.wronskian**2 / (c.sigma**2 + FLOOR) * variance
            torch.testing.assert_close(value[None], expected, rtol=1e-8, atol=0)


def test_flow_matching_is_a_velocity_loss():
    """For a network that predicts velocity on the linear path the loss is |v - (e - x0)|^2 up to the floor."""
    (z, e), _ = normal_nodes(2, n=21)
    net, data = Affine(0.3, -0.2, Kind.VELOCITY), Field(MEAN + STD * z, Nodes(len(z), iter([e])))
    view = RoleView({"student": net}, {"student": net}, "student", torch.Generator())
    out = FlowMatching(Linear(), At(T)).loss(Phase("flow", "student"), Batch(data), view, torch.Generator())
    x_t = (1 - T) * data.value + T * e
    expected = ((0.3 * x_t - 0.2 - (e - data.value)) ** 2).squeeze(1) * T**2 / (T**2 + FLOOR)
    torch.testing.assert_close(out.per_sample, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("objective", [SiD, DMD])
def test_critic_optimum(process, objective):
    """Oracle C: the critic of a student N(mu, tau^2) is D_q = mu + a tau^2 / A^2 (x_t - a mu)."""
    mu, tau = 0.3, 0.8
    slope, offset, _ = tweedie(process, mu, tau)
    (z, e), weights = normal_nodes(2, n=101)
    grads = []
    for shift in (0.0, 0.05):
        modules = {
            "teacher": ExactDenoiser(process, Mixture.normal(MEAN, STD)),
            "student": AffineGenerator(process, mu, tau),
            "critic": Affine(slope, offset + shift),
        }
        batch = Batch(Nodes.state([z, e]), real=False)
        run = objective(process, steps=1, critic_time=At(T))
        grads.append(gradient(run, Phase("critic", "critic"), modules, batch, weights)[0])
    assert grads[0].abs().max() < 1e-9
    assert grads[1][1] > 1e-3


def test_optimal_logit(process):
    """Spec 5: for Gaussians the discriminator is stationary at log p_t - log q_t, a quadratic."""
    mu, tau = 0.3, 0.8
    c = process.coeffs(torch.tensor([T], dtype=F64))
    p, q = (Mixture.normal(m, s).noised(c.alpha, c.sigma) for m, s in ((MEAN, STD), (mu, tau)))

    def coefficients(law):
        m, v = law.means[0], law.stds[0] ** 2
        return torch.stack([-0.5 * m**2 / v - 0.5 * v.log(), m / v, -0.5 / v])

    (z, e), weights = normal_nodes(2, n=151)
    grads = []
    for shift in (0.0, 0.1):
        best = coefficients(p) - coefficients(q)
        modules = {"student": AffineGenerator(process, mu, tau), "discriminator": Quadratic(*(best + shift))}
        batch = Batch(Field(MEAN + STD * z, Nodes(len(z), iter([z, e, e]))))
        run = DMD(process, steps=1, student_time=At(T), gan_weight=1.0)
        grads.append(gradient(run, Phase("discriminator", "discriminator"), modules, batch, weights)[0])
    assert grads[0].abs().max() < 1e-9
    assert grads[1].abs().max() > 1e-3


def test_r1_penalty():
    """r1 |D(x) - D(x + sigma n)|^2 on real samples only."""
    (z, e), _ = normal_nodes(2, n=9)
    n = torch.linspace(-1, 1, len(z), dtype=F64)[:, None]
    logit = Quadratic(*torch.tensor([0.1, 0.4, -0.2], dtype=F64))
    modules = {"student": AffineGenerator(Linear(), 0.3, 0.8), "discriminator": logit}
    losses = []
    for r1, draws in ((0.0, [z, e, e]), (20.0, [z, e, e, n])):
        batch = Batch(Field(MEAN + STD * z, Nodes(len(z), iter(draws))))
        run = DMD(Linear(), steps=1, student_time=At(T), gan_weight=1.0, r1=r1, r1_sigma=0.1)
        net = RoleView(modules, modules, "discriminator", torch.Generator())
        losses.append(run.loss(Phase("discriminator", "discriminator"), batch, net, torch.Generator()).per_sample)
    x = (1 - T) * (MEAN + STD * z) + T * e
    difference = (0.4 * (-0.1 * n) - 0.2 * (x**2 - (x + 0.1 * n) ** 2)).squeeze(1)
    torch.testing.assert_close(losses[1] - losses[0], 20 * difference**2, rtol=1e-8, atol=1e-12)
