"""Flow maps in use: derivatives, layouts, the start of a student, training on the mixture, errors."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from flow_map_cases import (
    EXACT,
    F64,
    MEAN,
    PROCESS,
    STD,
    STEP,
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from xdistill import rng
from xdistill.compat import compatibility
from xdistill.config import compose
from xdistill.derivatives import safe_step, total_derivative
from xdistill.domains.toy import MixtureTeacher, PointNet, ToyDomain
from xdistill.errors import UsageError
from xdistill.models import Batch, NoCond, average_velocity, velocity
from xdistill.objectives import Phase
from xdistill.objectives.consistency import Consistency
from xdistill.objectives.differential import flow_derivative
from xdistill.objectives.flow_map import adaptive, whole
from xdistill.objectives.improved_meanflow import ImprovedMeanFlow
from xdistill.objectives.interval import Interval
from xdistill.objectives.intmeanflow import IntMeanFlow
from xdistill.objectives.mid_training import MidTraining
from xdistill.process import Kind
from xdistill.roles import RoleView, phase_grads
from xdistill.samplers.flow_map import flow_map
from xdistill.sections import build_domain, build_objective
from xdistill.state import Field, Padded
from xdistill.testing.harness import run_macro_step, train
from xdistill.testing.oracles import GaussianFlowMap
from xdistill.times import ConstantLam, LogitNormal, SigmoidLam


class Fast(nn.Module):
    """u = x + sin(scale t): a network whose sinusoids see scale times t."""

    def __init__(self, scale):
        super().__init__()
        self.time_scale = scale

    def forward(self, x, t):
        return x + torch.sin(self.time_scale * t)[:, None]


class TestDerivative:
    def test_backends_agree_where_the_time_scale_is_one(self):
        x, t, r, _ = draw()
        torch.manual_seed(0)
        net = PointNet(PROCESS, width=16, depth=2, flow_map=True).double()
        nn.init.normal_(net.jump.weight, std=0.3)
        with torch.no_grad():
            v = instant(net)(x, t)
            ways = [
                flow_derivative(average(net), v, x, t, r, backend=b, step=safe_step(1.0))
                for b in ("func", "finite_difference")
            ]
        assert gap(*ways) < 1e-3 * ways[0].value.abs().max()
        assert ways[0].value.abs().max() > 0.1

    @pytest.mark.parametrize("step", [5e-3, 1e-3, 1e-4])
    def test_why_not_where_it_is_a_thousand(self, step):
        """A central difference multiplies the derivative of sin(s t) by sin(s h) / (s h): nothing is right at 5e-3."""
        x, t, _, _ = draw()
        f, dx = Fast(1000.0), torch.ones_like(x.value)
        slopes = [
            total_derivative(f, (x.value, t), (dx, torch.ones_like(t)), backend=b, step=step)
            for b in ("func", "finite_difference")
        ]
        in_time = [s - dx for s in slopes]
        factor = math.sin(1000 * step) / (1000 * step)
        torch.testing.assert_close(in_time[1], factor * in_time[0], rtol=0, atol=1e-5 * 1000)
        assert (abs(1 - factor) < 2e-3) == (step <= safe_step(1000.0))

    def test_the_safe_step_is_used(self):
        """An objective takes the step that suits the network, unless it is told one."""

        class Seen(GaussianFlowMap):
            time_scale = 1000.0
            seen: ClassVar = []

            def forward(self, x_t, t, cond, *, r=None):
                self.seen.append(t)
                return super().forward(x_t, t, cond, r=r)

        for option, step in ((0.0, 1e-4), (2e-3, 2e-3)):
            Seen.seen.clear()
            run = meanflow(derivative="finite_difference", difference_step=option, instant=0.0)
            run.loss(STEP, Batch(data()), view(Seen(MEAN, STD)), rng.generator(0))
            ahead, behind = Seen.seen[:2]
            torch.testing.assert_close(ahead - behind, torch.full_like(ahead, 2 * step))


class TestSpace:
    """What a loss is over."""

    RUNS: ClassVar = {
        **EXACT,
        "intmeanflow": IntMeanFlow(PROCESS, solver_steps=2),
        "cmt": MidTraining(PROCESS, points=4, trajectories=0, pairs=2),
        "consistency": Consistency(PROCESS, points=8),
        "rollout": Consistency(PROCESS, points=4, states="rollout"),
    }

    def net(self):
        torch.manual_seed(3)
        net = PointNet(PROCESS, width=16, depth=2, flow_map=True).double()
        nn.init.normal_(net.jump.weight, std=0.3)
        return net

    def batch(self, width, junk=0.0, scored=None):
        layout = replace(Padded.from_lengths([3, 1, 4], width), scored=scored)
        value = torch.randn(3, 4, 2, generator=rng.generator("sets"), dtype=F64)
        value = torch.cat([value, torch.zeros(3, width - 4, 2, dtype=F64)], 1)
        return Batch(Field(torch.where(layout.mask[..., None], value, junk), layout))

    @pytest.mark.parametrize("name", RUNS)
    def test_neither_padding_nor_the_scored_mask_changes_it(self, name):
        """A sampler integrates every real frame, so every real frame counts; what is padded never does."""
        scored = torch.zeros(3, 7, dtype=torch.bool)
        scored[:, 0] = True
        losses = [
            self.RUNS[name].loss(STEP, batch, view(self.net()), rng.generator(1)).per_sample
            for batch in (self.batch(4), self.batch(7, junk=37.0), self.batch(7, scored=scored))
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(losses[0], losses[2], rtol=1e-12, atol=1e-14)
        assert losses[0].min() > 0

    @pytest.mark.parametrize("name", RUNS)
    def test_clean_estimates_say_nothing_at_time_zero(self, name):
        """A network of any kind serves: where its velocity is undefined (t = 0) nothing depends on it."""
        torch.manual_seed(0)
        net = PointNet(PROCESS, kind=Kind.X0, width=8, depth=1, flow_map=True).double()
        teacher = MixtureTeacher(PROCESS, torch.zeros(1, 2, dtype=F64), 1.0, kind=Kind.X0)
        run = self.RUNS[name]
        runs = [run, replace(run, heun=True)] if hasattr(run, "heun") and name != "rollout" else [run]
        for r in runs:
            for seed in range(4):
                rows = r.loss(STEP, Batch(data()), view(net, teacher), rng.generator(seed)).per_sample
                assert bool(rows.isfinite().all())

    def test_whole_keeps_the_rest(self):
        x = self.batch(5, scored=torch.ones(3, 5, dtype=torch.bool)).like
        assert whole(x).layout.scored is None
        assert torch.equal(whole(x).layout.mask, x.layout.mask)
        dense = data()
        assert whole(dense) is dense

    def test_no_gradient_in_targets(self):
        """The student's gradient comes through its one trained call alone."""
        for run in self.RUNS.values():
            net = self.net()
            calls = []
            net.register_forward_hook(lambda m, args, out, calls=calls: calls.append(out.value.requires_grad))
            run.loss(STEP, self.batch(4), view(net), rng.generator(1))
            assert sum(calls) == getattr(run, "pairs", 1)

    def test_adaptive(self):
        square = torch.tensor([0.5, 4.0], dtype=F64, requires_grad=True)
        torch.testing.assert_close(adaptive(square, 0.0, 1e-3), square)
        (grad,) = torch.autograd.grad(adaptive(square, 1.0, 1e-3).sum(), square)
        torch.testing.assert_close(grad, 1 / (square.detach() + 1e-3))


class TestStart:
    def test_student_is_the_teacher(self):
        """Bit-equal at any r before training; afterwards the second time has an effect."""
        d = ToyDomain({"teacher": "mlp"})
        teacher = d.teacher()
        student = d.flow_map(d.student(teacher))
        like = d.plan(range(16), 0).like
        x, t = like.randn(rng.generator(0)), torch.rand(16, generator=rng.generator(1), dtype=F64)
        with torch.no_grad():
            for r in (t, t / 2, torch.zeros_like(t)):
                u = average_velocity(student, d.process, x, t, r, NoCond())
                assert torch.equal(u.value, velocity(teacher, d.process, x, t, NoCond()).value)
        assert d.flow_map(student) is student
        again = d.from_description(d.describe(student))
        again.load_state_dict(student.state_dict())
        modules = {"student": student, "teacher": teacher}
        optimizers = {"student": torch.optim.SGD(student.parameters(), 0.1)}
        run_macro_step(split(instant=0.0), modules, optimizers, d.data(16, 0).batch(0, 0, 1), 0, 0)
        with torch.no_grad():
            moved = average_velocity(student, d.process, x, t, t / 2, NoCond())
            assert gap(moved, average_velocity(student, d.process, x, t, t, NoCond())) > 1e-4

    def test_curriculum(self):
        """alpha-Flow begins as flow matching along its leg and ends with the derivative; macro-steps count."""
        run = Interval(PROCESS, velocity="data", leg="velocity", lam=SigmoidLam(10, 20))
        shares = [float(run.draw_lam(1, Phase("s", "s", macro_step=m), rng.generator(0))) for m in (0, 10, 15, 20, 99)]
        assert shares[0] == shares[1] == 1
        assert shares[2] == pytest.approx(0.5)
        assert shares[3] == shares[4] == 0


TRAINED = {
    "split": split(),
    "shortcut": split(lam=ConstantLam(0.5)),
    "meanflow": meanflow(velocity="data", instant=0.75, power=1.0, time_law=LogitNormal(-0.4, 1.0, 0.0, 1.0)),
    "alphaflow": Interval(PROCESS, velocity="data", leg="velocity", lam=SigmoidLam(0, 100), power=1.0),
    "improved_meanflow": ImprovedMeanFlow(PROCESS),
    "intmeanflow": IntMeanFlow(PROCESS, solver_steps=4),
    "cmt": MidTraining(PROCESS, points=6, heun=True, trajectories=0),
    "consistency": Consistency(PROCESS, points=8, heun=True),
    "rollout": Consistency(PROCESS, points=8, states="rollout", pairs=2),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_reaches_the_mixture_in_two_calls(name):
    """From an MMD^2 of 0.093, its start as a plain teacher, to below a third of it, all modes found."""
    d = ToyDomain({})
    teacher = d.teacher()
    student = d.flow_map(d.student(teacher))
    modules = {"teacher": teacher, "student": student, "student_ema": copy.deepcopy(student)}
    source = d.data(128, 0)
    train(TRAINED[name], modules, lambda i: source.batch(i, 0, 1), 100, lr=2e-3, ema=0.97)
    plan = d.plan(range(600), 5)
    with torch.no_grad():
        samples = TRAINED[name].sample(modules["student_ema"], plan.like, plan.cond, rng.generator(9))
    found = d.metrics(d.decode(samples))
    assert found["mmd2"].value < 0.03
    assert found["mode_coverage"].value == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: split(steps=0), "steps=0: expected a whole number, at least 1"),
            (lambda: split(steps=True), "steps=True"),
            (lambda: split(steps=2, times=[1, 0]), "expected 3 falling numbers from 1 to 0"),
            (lambda: split(steps=2, times=[1, float("nan"), 0]), "falling numbers"),
            (lambda: split(steps=2, times=[0, 0.5, 1]), "falling numbers"),
            (lambda: split(steps=2, times=[1, "a", 0]), "falling numbers"),
            (lambda: split(instant=1.5), "instant=1.5: expected a share"),
            (lambda: split(velocity="both"), "choose teacher or data"),
            (lambda: split(omega=2.0), "guide the target of velocity=data"),
            (lambda: meanflow(derivative="dual"), "func or finite_difference"),
            (lambda: meanflow(difference_step=-1.0), "difference_step=-1"),
            (lambda: ImprovedMeanFlow(PROCESS, velocity="self"), "choose teacher or data"),
            (lambda: IntMeanFlow(PROCESS, solver_steps=0), "solver_steps=0"),
            (lambda: MidTraining(PROCESS, points=1), "points=1: expected a whole number, at least 2"),
            (lambda: MidTraining(PROCESS, shift=0.0), "shift=0"),
            (lambda: MidTraining(PROCESS, from_noise=0.7, whole_jumps=0.7), "sum of at most 1"),
            (lambda: Consistency(PROCESS, states="store"), "choose data or rollout"),
            (lambda: Consistency(PROCESS, states="rollout", heun=True), "set heun=false"),
        ],
    )
    def test_options(self, make, message):
        with pytest.raises(UsageError, match=message):
            make()

    def test_sampler(self):
        for options in ({"steps": 0}, {"steps": 3, "times": [1, 0]}):
            with pytest.raises(UsageError, match="expected"):
                split().sample(exact(), data().zeros(), NoCond(), rng.generator(0), **options)

    def test_fused_attention(self):
        """Plain attention inside forward mode, and a message with both ways out where a network leaves no choice."""

        def attend(x, fused):
            q = x[:, None]
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if fused else nullcontext():
                return nn.functional.scaled_dot_product_attention(q, q, q)[:, 0]

        x, ways = torch.randn(3, 5, 4, generator=rng.generator(0), dtype=F64), ("func", "finite_difference")
        slopes = [total_derivative(lambda x: attend(x, False), (x,), (x,), backend=b) for b in ways]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
        with pytest.raises(UsageError, match="derivative=finite_difference, or choose an objective without"):
            total_derivative(lambda x: attend(x, True), (x,), (x,))
        total_derivative(lambda x: attend(x, True), (x,), (x,), backend="finite_difference")

    @pytest.mark.parametrize("objective", ["meanflow", "alphaflow", "improved_meanflow"])
    def test_forward_mode_under_zero3(self, objective):
        """Refused before anything starts, with both ways out; each of them goes, and so do objectives without it."""

        def check(*args):
            cfg = compose(["domain=toy", *args])
            domain = build_domain(cfg)
            compatibility(cfg, domain, build_objective(cfg, domain))

        with pytest.raises(UsageError, match="derivative=finite_difference, or strategy=deepspeed_z2"):
            check(f"objective={objective}", "strategy=deepspeed_z3")
        check(f"objective={objective}", "strategy=deepspeed_z3", "objective.derivative=finite_difference")
        check(f"objective={objective}", "strategy=deepspeed_z2")
        check("objective=splitmeanflow", "strategy=deepspeed_z3")

    def test_needs(self):
        assert meanflow().needs.derivative
        assert not split().needs.derivative
        assert ImprovedMeanFlow(PROCESS).needs.derivative
        assert [r.name for r in ImprovedMeanFlow(PROCESS).roles] == ["student"]
        assert not MidTraining(PROCESS).needs.data
        assert Consistency(PROCESS).needs.data
        assert all(run.needs.flow_map for run in TRAINED.values())


def test_phase_moves_the_student_alone():
    for run in TRAINED.values():
        d = ToyDomain({"teacher": "mlp"})
        teacher = d.teacher()
        modules = {"teacher": teacher, "student": d.flow_map(d.student(teacher))}
        net = RoleView(modules, modules, "student", rng.generator(0))
        with phase_grads(modules, "student"):
            run.loss(STEP, d.data(8, 0).batch(0, 0, 1), net, rng.generator(1)).per_sample.mean().backward()
        assert all(p.grad is None for p in teacher.parameters())
        assert modules["student"].jump.weight.grad is not None
        with torch.no_grad():
            out = flow_map(modules["student"], PROCESS, torch.tensor([1.0, 0.0]), d.plan(range(3), 0).like, NoCond())
        assert out.value.shape == (3, 2)
