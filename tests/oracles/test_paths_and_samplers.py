"""Gaussian paths, changes of prediction, exact flow maps, and the order of every sampler."""

import itertools
import math

import pytest
import torch

from xdistill import rng
from xdistill.domains.toy.teacher import MixtureTeacher
from xdistill.models import NoCond, denoise, velocity
from xdistill.process import EDM, VP, Kind, Linear, Trig
from xdistill.samplers import Plan, ode, renoise, sde
from xdistill.state import Dense, Field
from xdistill.testing.oracles import Mixture, Nodes, gaussian_flow_map, gaussian_velocity

F64 = torch.float64
PROCESSES = [Linear(), VP(), Trig(), EDM()]
MEAN, STD = 0.7, 1.3


def dense(*shape, seed=0):
    return Field(torch.randn(shape, generator=rng.generator("test", seed), dtype=F64), Dense(shape[0]))


@pytest.fixture(params=PROCESSES, ids=lambda p: type(p).__name__)
def process(request):
    return request.param


def teacher(process, kind=Kind.VELOCITY):
    return MixtureTeacher(process, torch.tensor([[MEAN]], dtype=F64), STD, kind=kind)


class TestPaths:
    times = torch.linspace(0.03, 0.97, 9, dtype=F64)

    def test_derivatives_of_the_schedule(self, process):
        t = self.times.clone().requires_grad_()
        c = process.coeffs(t)
        for value, slope in ((c.alpha, c.dalpha), (c.sigma, c.dsigma)):
            exact = torch.autograd.grad((value + 0 * t).sum(), t, retain_graph=True)[0]
            torch.testing.assert_close(slope, exact, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(
        ("process", "alpha", "sigma", "wronskian"),
        [
            (Linear(), 0.75, 0.25, 1.0),
            (Trig(), math.cos(math.pi / 8), math.sin(math.pi / 8), math.pi / 2),
            (VP(), math.exp(-0.5 * (0.025 + 0.5 * 0.0625 * 19.9)), None, None),
            (EDM(), 1.0, (0.75 * 0.002 ** (1 / 7) + 0.25 * 80 ** (1 / 7)) ** 7, None),
        ],
        ids=["Linear", "Trig", "VP", "EDM"],
    )
    def test_values(self, process, alpha, sigma, wronskian):
        c = process.coeffs(torch.tensor([0.25], dtype=F64))
        assert float(c.alpha) == pytest.approx(alpha, rel=1e-12)
        assert float(c.sigma) == pytest.approx(sigma or math.sqrt(1 - alpha**2), rel=1e-12)
        assert wronskian is None or float(c.wronskian) == pytest.approx(wronskian, rel=1e-12)
        assert float(c.wronskian) > 0

    def test_float32_times_are_widened(self, process):
        assert process.coeffs(torch.tensor([0.3])).alpha.dtype == F64

    @pytest.mark.parametrize(("source", "to"), list(itertools.permutations(Kind, 2)))
    def test_path_roundtrip(self, process, source, to):
        """Every kind from every kind, from the definitions u x0 + w e, and back."""
        x0, e = dense(9, 3, seed=1), dense(9, 3, seed=2)
        t, c = self.times, process.coeffs(self.times)
        x_t = process.corrupt(x0, t, None, noise=e)

        def exact(kind):
            u, w = c.basis(kind)
            return x0.scale(u) + e.scale(w)

        out = process.convert(exact(source), source, to, x_t, t)
        torch.testing.assert_close(out.value, exact(to).value, rtol=1e-8, atol=1e-8)
        back = process.convert(out, to, source, x_t, t)
        torch.testing.assert_close(back.value, exact(source).value, rtol=1e-8, atol=1e-8)

    def test_conversions_of_the_spec(self, process):
        """N = -s S; D = (x + s^2 S)/a; D = (s' x - s v)/W; N = (a v - a' x)/W; v = (a'/a) x - (s W/a) S."""
        x, p, t = dense(9, 1, seed=3), dense(9, 1, seed=4), self.times
        c = process.coeffs(t)
        a, s, da, ds, w = (k[:, None] for k in (c.alpha, c.sigma, c.dalpha, c.dsigma, c.wronskian))
        X, P = x.value, p.value
        expected = {
            (Kind.SCORE, Kind.EPS): -s * P,
            (Kind.SCORE, Kind.X0): (X + s**2 * P) / a,
            (Kind.VELOCITY, Kind.X0): (ds * X - s * P) / w,
            (Kind.VELOCITY, Kind.EPS): (a * P - da * X) / w,
            (Kind.SCORE, Kind.VELOCITY): da / a * X - s * w / a * P,
        }
        for (source, to), value in expected.items():
            torch.testing.assert_close(process.convert(p, source, to, x, t).value, value, rtol=1e-9, atol=1e-9)

    def test_proteina_time_map(self):
        """Proteina (t_P = 1 - t, v_P = -v): S = (t_P v_P - x) / (1 - t_P)."""
        x, v, t = dense(9, 2, seed=5), dense(9, 2, seed=6), self.times
        t_p = (1 - t)[:, None]
        score = Linear().convert(v, Kind.VELOCITY, Kind.SCORE, x, t)
        torch.testing.assert_close(score.value, (t_p * -v.value - x.value) / (1 - t_p), rtol=1e-10, atol=1e-10)

    def test_transition(self, process):
        """The kernel r -> t composes with the noise at r to the noise at t."""
        r, t = self.times[:-1], self.times[1:]
        alpha, sigma = process.transition(t, r)
        at_r, at_t = process.coeffs(r), process.coeffs(t)
        torch.testing.assert_close(alpha * at_r.alpha, at_t.alpha)
        torch.testing.assert_close((alpha * at_r.sigma) ** 2 + sigma**2, at_t.sigma**2)

    def test_move_keeps_the_line(self, process):
        """A deterministic hop with the true x0 keeps the noise: it lands on a_r x0 + s_r e."""
        x0, e, t = dense(9, 2, seed=7), dense(9, 2, seed=8), self.times
        r = t * 0.6
        x_t, x_r = (process.corrupt(x0, s, None, noise=e) for s in (t, r))
        torch.testing.assert_close(process.move(x0, x_t, t, r).value, x_r.value, rtol=1e-9, atol=1e-9)

    def test_prior_has_no_signal(self, process):
        x = process.prior(Field(torch.zeros(20000, 1, dtype=F64), Dense(20000)), rng.generator(0))
        sigma = float(process.coeffs(torch.ones(1, dtype=F64)).sigma)
        assert float(x.value.std()) == pytest.approx(sigma, rel=0.02)


class TestTeacher:
    t = torch.linspace(0.05, 0.95, 7, dtype=F64)

    @pytest.mark.parametrize("kind", Kind)
    def test_is_the_posterior_mean(self, process, kind):
        """Against an independent 1-D implementation (Tweedie on the noised density), two modes of unequal weight."""
        law = Mixture(*(torch.tensor(v, dtype=F64) for v in ((-1.2, 0.9), (0.5, 0.5), (0.3, 0.7))))
        model = MixtureTeacher(process, law.means[:, None], 0.5, weights=law.weights, kind=kind)
        x, c = dense(7, 1, seed=1), process.coeffs(self.t)
        exact = torch.stack([law.denoiser(x.value[i], c.alpha[i], c.sigma[i]) for i in range(7)])
        torch.testing.assert_close(denoise(model, process, x, self.t, NoCond()).value, exact, rtol=1e-8, atol=1e-8)

    def test_velocity_of_a_gaussian(self, process):
        x = dense(7, 1, seed=2)
        v = velocity(teacher(process), process, x, self.t, NoCond()).value[:, 0]
        exact = gaussian_velocity(process, MEAN, STD, x.value[:, 0], self.t)
        torch.testing.assert_close(v, exact, rtol=1e-9, atol=1e-9)

    def test_flow_map_follows_the_velocity(self, process):
        r = self.t.clone().requires_grad_()
        x = dense(7, 1, seed=3).value[:, 0]
        moved = gaussian_flow_map(process, MEAN, STD, x, self.t, r)
        torch.testing.assert_close(moved, x)
        slope = torch.autograd.grad(moved.sum(), r)[0]
        torch.testing.assert_close(slope, gaussian_velocity(process, MEAN, STD, x, self.t), rtol=1e-9, atol=1e-9)


def order(error, steps):
    """Slope of log error over log step between the two finest grids."""
    return math.log2(error(steps) / error(2 * steps))


class TestSamplers:
    @pytest.mark.parametrize(("heun", "expected"), [(False, 1), (True, 2)])
    def test_gaussian_flow_map(self, process, heun, expected):
        """Euler is of first order and Heun of second, against the exact flow map."""
        x, (start, end) = dense(5, 1, seed=4), (0.8, 0.2)
        ends = (torch.tensor([v], dtype=F64) for v in (start, end))
        exact = gaussian_flow_map(process, MEAN, STD, x.value, *ends)

        def error(steps):
            out = ode(teacher(process), process, Plan.uniform(steps, start, end), x, NoCond(), heun=heun)
            return float((out.value - exact).abs().max())

        assert order(error, 128) == pytest.approx(expected, abs=0.1)

    def test_calls(self):
        """n Euler steps are n calls; n Heun steps are 2n - 1."""
        calls = []

        class Counted(MixtureTeacher):
            def forward(self, x_t, t, cond):
                calls.append(float(t[0]))
                return super().forward(x_t, t, cond)

        model = Counted(Linear(), torch.zeros(1, 1, dtype=F64), 1.0)
        ode(model, Linear(), Plan.uniform(4), dense(2, 1), NoCond())
        assert calls == [1.0, 0.75, 0.5, 0.25]
        calls.clear()
        ode(model, Linear(), Plan.uniform(4), dense(2, 1), NoCond(), heun=True)
        assert len(calls) == 7
        assert min(calls) > 0

    @pytest.mark.parametrize("g", [0.0, 0.3, 2.0])
    def test_sde_keeps_the_marginals(self, process, g):
        """For every g the law at the end is p_r up to the first order in the step.

        On a Gaussian each step is affine in the state and its noise, so mean and variance follow from the response
        to the start and to each draw alone: row 0 has no noise, row 1 starts one deviation off, row i + 2 has a unit
        draw at step i.
        """
        start, end = 0.8, 0.3
        a, b = (process.coeffs(torch.tensor([v], dtype=F64)) for v in (start, end))
        spread = float(torch.hypot(b.alpha * STD, b.sigma))

        def error(n):
            draws = torch.cat([torch.zeros(2, n, dtype=F64), torch.eye(n, dtype=F64)])[:, :, None]
            x = torch.full((n + 2, 1), float(a.alpha * MEAN), dtype=F64)
            x[1] += float(torch.hypot(a.alpha * STD, a.sigma))
            plan = Plan(torch.linspace(start, end, n + 1, dtype=F64), torch.full((n,), g, dtype=F64))
            like = Field(x, Nodes(n + 2, iter(draws.unbind(1))))
            out = sde(teacher(process), process, plan, like, NoCond(), torch.Generator()).value[:, 0]
            std = float((out[1:] - out[0]).square().sum().sqrt())
            return abs(std - spread) + abs(float(out[0] - b.alpha * MEAN))

        assert error(256) < 0.04 * spread
        assert order(error, 256) == pytest.approx(1, abs=0.15)

    def test_sde_without_noise_is_the_ode(self):
        x, plan = dense(4, 1, seed=6), Plan.uniform(8, 0.9, 0.1)
        still = Plan(plan.times, torch.zeros(8, dtype=F64))
        out = sde(teacher(Linear()), Linear(), still, x, NoCond(), rng.generator(0))
        assert torch.equal(out.value, ode(teacher(Linear()), Linear(), plan, x, NoCond()).value)

    def test_low_temperature_shrinks_the_spread(self):
        x = dense(4000, 1, seed=7)
        plan = Plan(torch.linspace(1, 0.01, 101, dtype=F64), torch.full((100,), 1.0, dtype=F64))
        model = teacher(Linear())
        cold, warm = (
            sde(model, Linear(), plan, x, NoCond(), rng.generator(1), noise_scale=s).value.std() for s in (0.3, 1.0)
        )
        assert cold < 0.8 * warm

    def test_renoise_by_hand(self, process):
        """Predict, noise again to the next anchor: two calls written out, with the noise scaled."""
        model, like = teacher(process), Field(torch.zeros(4, 1, dtype=F64), Dense(4))
        times = torch.tensor([0.9, 0.4], dtype=F64)
        out = renoise(model, process, times, like, NoCond(), rng.generator(3), noise_scale=0.5)
        g = rng.generator(3)
        x0 = like
        for t in times:
            c, tb = process.coeffs(t[None]), t.expand(4)
            x_t = Field(c.alpha * x0.value + 0.5 * c.sigma * like.randn(g).value, like.layout)
            x0 = denoise(model, process, x_t, tb, NoCond())
        torch.testing.assert_close(out.value, x0.value)
