"""Average velocities against the Gaussian flow map, where every identity is exact, and what training makes of them."""

import itertools

import pytest
import torch
from flow_map_cases import (
    EXACT,
    F64,
    MEAN,
    PROCESS,
    STD,
    STEP,
    N,
    average,
    data,
    draw,
    exact,
    gap,
    instant,
    meanflow,
    split,
    view,
)
from torch import nn

from xdistill import rng
from xdistill.domains.toy import MixtureTeacher, PointNet
from xdistill.models import Batch, NoCond
from xdistill.objectives.consistency import Consistency
from xdistill.objectives.differential import meanflow_target
from xdistill.objectives.flow_map import Draws, displacement
from xdistill.objectives.improved_meanflow import ImprovedMeanFlow
from xdistill.objectives.interval import guided_pair, split_target
from xdistill.objectives.intmeanflow import IntMeanFlow
from xdistill.objectives.mid_training import MidTraining, secant
from xdistill.samplers.flow_map import jump
from xdistill.state import Dense, Field
from xdistill.testing.oracles import gaussian_flow_map, gaussian_velocity, normal_nodes


class TestExactMap:
    def test_is_the_flow_map_and_the_velocity(self):
        x, t, r, _ = draw()
        moved = jump(x, average(exact())(x, t, r), t, r)
        torch.testing.assert_close(
            moved.value, gaussian_flow_map(PROCESS, MEAN, STD, x.value, t[:, None], r[:, None]), rtol=0, atol=1e-13
        )
        v = gaussian_velocity(PROCESS, MEAN, STD, x.value, t[:, None])
        torch.testing.assert_close(instant(exact())(x, t).value, v, rtol=0, atol=1e-13)
        torch.testing.assert_close(average(exact())(x, t, t).value, v, rtol=0, atol=1e-13)
        torch.testing.assert_close(instant(view(exact()).frozen("teacher"))(x, t).value, v, rtol=0, atol=1e-12)

    def test_identities(self):
        """Additivity and the derivative's identity hold at the map, and at no other."""
        x, t, r, lam = draw()
        for shift, holds in ((0.0, True), (0.3, False)):
            u = average(exact(shift))
            now, leg = u(x, t, r), u(x, t, t - lam * (t - r))
            assert (gap(split_target(u, leg, x, t, r, lam), now) < 1e-12) == holds
            assert (gap(meanflow_target(u, u(x, t, t), x, t, r), now) < 1e-12) == holds

    @pytest.mark.parametrize("times", [None, [1, 0.0], [1, 0.9, 0.35, 0]])
    def test_sampler_is_exact_at_any_times(self, times):
        objective = split(steps=1) if times is None else split(steps=len(times) - 1, times=times)
        like = data().zeros()
        out = objective.sample(exact(), like, NoCond(), rng.generator("noise"), noise_scale=0.5)
        start = 0.5 * like.randn(rng.generator("noise")).value
        end = gaussian_flow_map(PROCESS, MEAN, STD, start, torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64))
        torch.testing.assert_close(out.value, end, rtol=0, atol=1e-13)

    def test_sampler_takes_as_many_calls_as_steps(self):
        calls, model = [], exact()
        model.register_forward_pre_hook(
            lambda m, args, kwargs: calls.append((args[1][0], kwargs["r"][0])), with_kwargs=True
        )
        objective = split(steps=2, times=[1, 0.3, 0])
        for options, ends in (
            ({}, [1, 0.3, 0]),
            ({"steps": 4}, [1, 0.75, 0.5, 0.25, 0]),
            ({"times": [1, 0.6, 0.1, 0]}, [1, 0.6, 0.1, 0]),
        ):
            calls.clear()
            objective.sample(model, data().zeros(), NoCond(), rng.generator(0), **options)
            assert [(float(t), float(r)) for t, r in calls] == list(itertools.pairwise(ends))


class TestTargets:
    @pytest.mark.parametrize("name", EXACT)
    def test_zero_at_the_map_and_not_away_from_it(self, name):
        batch = Batch(data())
        for shift in (0.0, 0.2):
            out = EXACT[name].loss(STEP, batch, view(exact(shift)), rng.generator(3))
            rows = out.per_sample.detach()
            assert (rows.max() < 1e-20) if shift == 0 else (rows.max() > 1e-3)

    def test_an_instantaneous_leg_is_off_by_its_length(self):
        """alpha-Flow's residual at the map is of first order in lam, not zero (objectives spec 3, RCGM)."""
        x, t, r, _ = draw()
        u, v = average(exact()), instant(exact())(x, t)
        errors = [gap(split_target(u, v, x, t, r, torch.full_like(t, lam)), u(x, t, r)) / lam for lam in (1e-3, 5e-4)]
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)

    def test_split_becomes_meanflow(self):
        """(target - u) / lam tends to MeanFlow's residual, at first order, for any network."""
        x, t, r, _ = draw()
        torch.manual_seed(0)
        net = PointNet(PROCESS, width=16, depth=2, flow_map=True).double()
        nn.init.normal_(net.jump.weight, std=0.3)
        u = average(net)
        with torch.no_grad():
            now = u(x, t, r)
            limit = meanflow_target(u, u(x, t, t), x, t, r)
            errors = []
            for lam in (1e-3, 5e-4):
                share = torch.full_like(t, lam)
                target = split_target(u, u(x, t, t - share * (t - r)), x, t, r, share)
                errors.append(gap((target - now) * (1 / lam) + now, limit))
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)
        assert gap(limit, now) > 0.1

    @pytest.mark.parametrize(
        "objective", [meanflow(velocity="data"), ImprovedMeanFlow(PROCESS, power=0.0)], ids=["meanflow", "imf"]
    )
    def test_data_targets_are_stationary_at_the_map(self, objective):
        """Given x_t the expectation of a data target is the exact average: E[e - x0 | x_t] is the velocity."""
        (z, e), weights = normal_nodes(2, n=101)
        x0, noise = (Field(v, Dense(len(v))) for v in (MEAN + STD * z, e))
        t, r = (torch.full((len(z),), s, dtype=F64) for s in (0.8, 0.3))
        draws = Draws(t, r, torch.zeros_like(t), noise)
        for shift in (0.0, 0.2):
            student = exact(shift)
            loss = (weights * objective.loss_at(draws, x0, NoCond(), view(student)).per_sample).sum()
            (grad,) = torch.autograd.grad(loss, [student.scale])
            assert (grad.abs() < 1e-9) if shift == 0 else (grad.abs() > 1e-2)

    def test_guided_pair(self):
        """omega / (1 - kappa) is the scale at a fixed point, and outside the interval nothing is guided."""
        x, t, _, _ = draw()
        v, null = x, x.scale(torch.full_like(t, 0.5))
        own = (v * 3.0) - (null * 2.0)  # guided three times
        out = guided_pair(v, own, null, t, 1.5, 0.5, (0.2, 0.8))
        inside = (t >= 0.2) & (t <= 0.8)
        torch.testing.assert_close(out.value[inside], own.value[inside])
        assert torch.equal(out.value[~inside], v.value[~inside])
        assert 0 < inside.sum() < len(t)

    @pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
    def test_integrated_displacement_approaches_the_map(self, heun, order):
        x, t, r, _ = draw()
        truth, v = average(exact())(x, t, r), instant(exact())
        errors = [gap(displacement(v, x, t, r, n, heun=heun), truth) for n in (32, 64)]
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
        still = t == r
        torch.testing.assert_close(displacement(v, x, t, r, 3, heun=heun).value[still], v(x, t).value[still])
        batch = Batch(data())
        losses = [
            IntMeanFlow(PROCESS, solver_steps=n, heun=heun).loss(STEP, batch, view(exact()), rng.generator(1))
            for n in (32, 64)
        ]
        assert (losses[0].per_sample.max() / losses[1].per_sample.max()).item() == pytest.approx(4**order, rel=0.2)

    @pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
    def test_mid_training_approaches_the_map(self, heun, order):
        like = Batch(data().zeros(), real=False)
        errors = []
        for steps in (8, 16):
            run = MidTraining(PROCESS, points=5, shift=2.0, solver_steps=steps, heun=heun, trajectories=0)
            errors.append(run.loss(STEP, like, view(exact()), rng.generator(2)).per_sample.max().item())
            far = run.loss(STEP, like, view(exact(0.2)), rng.generator(2)).per_sample
            assert far.mean() > 5 * errors[-1]
        assert errors[0] / errors[1] == pytest.approx(4**order, rel=0.3)

    def test_mid_training_pairs(self):
        """True times of a warped grid; as many from noise, and whole ways, as asked for; never upwards."""
        run = MidTraining(PROCESS, points=5, shift=3.0, from_noise=0.3, whole_jumps=0.2)
        u = torch.linspace(1, 0, 5, dtype=F64)
        torch.testing.assert_close(run.known, 3 * u / (1 + 2 * u))
        i, j = run.draw(20000, rng.generator(0))
        assert bool((i < j).all())
        assert (int(i.min()), int(j.max()), int(i.max()), int(j.min())) == (0, 4, 3, 1)
        whole_share = float(((i == 0) & (j == 4)).double().mean())
        assert whole_share == pytest.approx(0.2 + 0.3 / 4 + 0.5 / 10, abs=0.01)
        assert float((i == 0).double().mean()) == pytest.approx(0.5 + 0.5 * 4 / 10, abs=0.01)
        x, t, r, _ = draw()
        t, r = t[10:], r[10:]
        x = Field(x.value[10:], Dense(30))
        ends = jump(x, average(exact())(x, t, r), t, r)
        assert gap(secant(x, ends, t, r), average(exact())(x, t, r)) < 1e-10


class TestConsistency:
    TABLES = (None, [1, 0.4, 0], [1, 0.8, 0.5, 0.1, 0])

    def make(self, times, **options):
        return Consistency(PROCESS, steps=len(times) - 1 if times else 1, times=times, **options)

    @pytest.mark.parametrize("times", TABLES, ids=str)
    def test_zero_at_the_map(self, times):
        """cd_zero_at_exact, phase_zero_at_exact: states one exact step apart, in any phase table."""
        run = self.make(times)
        x, t, _, lam = draw()
        r = torch.where(torch.arange(N) % 2 == 0, torch.maximum(t - lam * 0.2, run.phase_end(t)), run.phase_end(t))
        x_r = jump(x, average(exact())(x, t, r), t, r)
        for shift in (0.0, 0.2):
            rows = run.loss_at(x, x_r, t, r, Batch(x), view(exact(shift))).per_sample
            assert (rows.max() < 1e-24) if shift == 0 else (rows.max() > 1e-4)

    @pytest.mark.parametrize("times", TABLES, ids=str)
    def test_perturbation_formula(self, times):
        """An error d of the trained estimate alone costs (a_tau - (s_tau / s_t) a_t)^2 d^2: here (1 - tau/t)^2 d^2."""
        run, d = self.make(times), 0.3
        x, t, _, _ = draw()
        tau = run.phase_end(t)
        r = torch.maximum(t - 0.05, tau)
        x_r = jump(x, average(exact())(x, t, r), t, r)
        rows = run.loss_at(x, x_r, t, r, Batch(x), view(exact(), engine=exact(d))).per_sample
        a, b = PROCESS.coeffs(t), PROCESS.coeffs(tau)
        torch.testing.assert_close(rows.detach(), (b.alpha - b.sigma / a.sigma * a.alpha) ** 2 * d**2)

    def test_phase_ends(self):
        """The next edge below, also for a time on an edge, where a phase begins."""
        run = self.make([1, 0.8, 0.5, 0])
        t = torch.tensor([1.0, 0.9, 0.8, 0.6, 0.5, 1e-9], dtype=F64)
        assert run.phase_end(t).tolist() == [0.8, 0.8, 0.5, 0.5, 0.0, 0.0]

    @pytest.mark.parametrize(
        ("options", "order"), [({}, 2), ({"heun": True}, 2.5), ({"states": "rollout", "pairs": 8}, 2)]
    )
    def test_solver_steps_vanish_at_their_order(self, options, order):
        """What is left at the map is the local error of a step: half the cell, 4^-order of its square."""
        errors = []
        for points in (32, 64):
            out = self.make([1, 0.5, 0], points=points, **options).loss(
                STEP, Batch(data(400)), view(exact()), rng.generator(5)
            )
            errors.append(float(out.per_sample.mean()))
        assert errors[0] / errors[1] > 0.7 * 4**order  # Heun's steps to time 0 are Euler's

    def test_rollout_calls_the_teacher_once_a_cell(self):
        """x_r re-uses the rollout's velocities: `points` calls in all, whatever the number of pairs, and no data."""
        teacher, calls = MixtureTeacher(PROCESS, torch.full((1, 2), MEAN, dtype=F64), STD), []
        teacher.register_forward_hook(lambda m, args, out: calls.append(args[1]))
        run = Consistency(PROCESS, steps=2, points=6, shift=2.5, states="rollout", pairs=5)
        assert not run.needs.data
        run.loss(STEP, Batch(data().zeros(), real=False), view(exact(), teacher), rng.generator(0))
        assert len(calls) == 6
        assert bool((calls[0] == 1).all())
        for k in range(1, 6):  # one time in each cell of the shifted grid
            assert bool(((calls[k] <= run.cells[k]) & (calls[k] >= run.cells[k + 1])).all())
            assert calls[k].unique().numel() == N

    def test_sampler_jumps_between_phase_ends(self):
        run, seen, model = self.make([1, 0.8, 0.1, 0]), [], exact()
        model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(float(kwargs["r"][0])), with_kwargs=True)
        run.sample(model, data().zeros(), NoCond(), rng.generator(0))
        assert seen == [0.8, 0.1, 0.0]


@pytest.mark.parametrize(("objective", "share"), [(EXACT[name], name != "meanflow") for name in EXACT], ids=list(EXACT))
def test_calls_do_not_depend_on_the_draws(objective, share):
    """Ranks draw their own jumps; under ZeRO-3 all of them must call the student equally often."""
    x, t, r, lam = draw()
    counts = []
    for end in (r, t):
        model, calls = exact(), []
        model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        objective.target(Draws(t, end, share * lam, x), x, x, NoCond(), view(model))
        counts.append(len(calls))
    assert counts[0] == counts[1]
