"""Phases, needs, rollouts and the reference loop: what an objective does besides its formula."""

import copy

import pytest
import torch

from xdistill import rng, sources
from xdistill.domains.toy import MixtureTeacher, PointNet, ToyDomain
from xdistill.errors import UsageError, XDistillError
from xdistill.models import Batch, NoCond, denoise, velocity
from xdistill.objectives import Phase
from xdistill.objectives.dmd import DMD
from xdistill.objectives.flow_matching import FlowMatching
from xdistill.objectives.sid import SiD
from xdistill.process import Kind, Linear
from xdistill.roles import RoleView, phase_grads
from xdistill.samplers import Plan
from xdistill.state import Dense, Field, Padded
from xdistill.testing.harness import run_macro_step

F64 = torch.float64
PROCESS = Linear()


def domain(**cfg):
    return ToyDomain({"width": 16, "depth": 1} | cfg)


def roles(objective, d=None):
    d = d or domain()
    torch.manual_seed(1)
    teacher = d.teacher()
    made = {"teacher": lambda: teacher, "student": d.network, "critic": d.network}
    made["discriminator"] = lambda: d.discriminator(teacher)
    return {spec.name: made[spec.name]() for spec in objective.roles}


def optimizers(modules, kind=torch.optim.SGD, lr=0.1):
    return {n: kind(m.parameters(), lr) for n, m in modules.items() if n != "teacher"}


def snapshot(modules):
    return {n: copy.deepcopy(m.state_dict()) for n, m in modules.items()}


def moved(modules, before):
    return {n for n, m in modules.items() if any(not torch.equal(v, before[n][k]) for k, v in m.state_dict().items())}


class TestPhases:
    def test_orders(self):
        names = lambda o, step: [(p.owner, p.repeat) for p in o.phases(step)]  # noqa: E731
        assert names(FlowMatching(PROCESS), 0) == [("student", 1)]
        assert names(SiD(PROCESS, critic_updates=2), 0) == [("critic", 2), ("student", 1)]
        assert names(DMD(PROCESS), 7) == [("critic", 5), ("student", 1)]
        gan = DMD(PROCESS, gan_weight=0.1, critic_updates=3)
        assert names(gan, 0) == [("critic", 3), ("discriminator", 3), ("student", 1)]

    @pytest.mark.parametrize("objective", [SiD, DMD])
    def test_warmup_is_for_the_critic(self, objective):
        o = objective(PROCESS, critic_warmup=3)
        assert [[p.owner for p in o.phases(i)] for i in (2, 3)] == [["critic"], ["critic", "student"]]

    def test_needs(self):
        assert FlowMatching(PROCESS).needs.data
        assert not SiD(PROCESS).needs.data
        plain, gan, js = DMD(PROCESS), DMD(PROCESS, gan_weight=0.1), DMD(PROCESS, divergence="js")
        assert (plain.needs.data, plain.needs.features) == (False, False)
        for o in (gan, js):
            assert (o.needs.data, o.needs.features) == (True, True)
            assert "discriminator" in [r.name for r in o.roles]
        assert [r.name for r in SiD(PROCESS).roles if not r.trainable] == ["teacher"]

    def test_unknown_options(self):
        with pytest.raises(UsageError, match="unknown SiD weight 'abs'"):
            SiD(PROCESS, weight="abs")
        with pytest.raises(UsageError, match="unknown divergence 'kl'"):
            DMD(PROCESS, divergence="kl")

    def test_data_free_batch_is_refused(self):
        batch = domain().null_data(4, 0).batch(0, 0, 1)
        modules = roles(FlowMatching(PROCESS))
        with pytest.raises(XDistillError, match="needs real data"):
            run_macro_step(FlowMatching(PROCESS), modules, optimizers(modules), batch, 0, 0)


class Recording(PointNet):
    """Keeps the time and the input of every call."""

    def __init__(self):
        super().__init__(PROCESS, width=8, depth=1)
        self.calls = []

    def forward(self, x_t, t, cond):
        self.calls.append((float(t[0]), torch.is_grad_enabled(), x_t.value.detach().clone()))
        return super().forward(x_t, t, cond)


class TestRollout:
    times = torch.tensor([1.0, 0.6, 0.3], dtype=F64)

    def roll(self, seed, noise_seed=0, grad=True):
        torch.manual_seed(0)
        student = Recording()
        net = RoleView({"student": student}, {"student": student}, "student", rng.generator("shared", seed))
        like = Field(torch.zeros(5, 2), Dense(5))
        batch, noise = Batch(like, real=False), rng.generator("noise", noise_seed)
        return student, sources.student_rollout(net, PROCESS, self.times, batch, noise, grad=grad)

    def test_rank_sync_of_k(self):
        """k comes from the shared generator alone: ranks with other noise make as many calls; every k occurs."""
        lengths = []
        for seed in range(30):
            ranks = [len(self.roll(seed, noise)[0].calls) for noise in (0, 1, 2)]
            assert len(set(ranks)) == 1
            lengths += ranks[:1]
        assert set(lengths) == {1, 2, 3}

    def test_one_step_carries_the_graph(self):
        for seed in range(6):
            student, out = self.roll(seed)
            assert [c[0] for c in student.calls] == self.times[: len(student.calls)].tolist()
            assert [c[1] for c in student.calls] == [False] * (len(student.calls) - 1) + [True]
            assert out.value.requires_grad
            assert not self.roll(seed, grad=False)[1].value.requires_grad

    def test_is_the_sampler_cut_short(self):
        """States of the rollout are those of the few-step sampler with the same noise."""
        seed = next(s for s in range(30) if len(self.roll(s)[0].calls) == 3)
        student, out = self.roll(seed)
        like = Field(torch.zeros(5, 2), Dense(5))
        x0, g = like, rng.generator("noise", 0)
        with torch.no_grad():
            for t, call in zip(self.times, list(student.calls), strict=True):
                x_t = PROCESS.corrupt(x0, t.expand(5), g, like.randn(g))
                torch.testing.assert_close(x_t.value, call[2])
                x0 = denoise(student, PROCESS, x_t, t.expand(5), NoCond())
        torch.testing.assert_close(out.value.detach(), x0.value)

    def test_teacher_trajectory(self):
        d = domain()
        like = d.plan(range(4), 0).like
        plan = Plan.uniform(6)
        states = sources.teacher_trajectory(d.teacher(), d.process, plan, like, NoCond(), rng.generator(0))
        assert len(states) == 7
        assert torch.equal(states[0].value, d.process.prior(like, rng.generator(0)).value)
        v = (states[1] - states[0]).value * 6
        exact = d.teacher()(states[0], torch.ones(4, dtype=F64), NoCond()).value
        torch.testing.assert_close(v, -exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("read", [denoise, velocity])
def test_predictions_are_projected(read):
    """What a network leaves in the padding or along the gauge goes no further."""

    class Careless(MixtureTeacher):
        def forward(self, x_t, t, cond):
            return Field(super().forward(x_t, t, cond).value + 7, x_t.layout)

    net = Careless(PROCESS, torch.zeros(1, 2, dtype=F64), 1.0)
    x_t = Field(torch.zeros(2, 4, 2, dtype=F64), Padded.from_lengths([2, 4], zero_com=True)).randn(rng.generator(0))
    out = read(net, PROCESS, x_t, torch.full((2,), 0.3, dtype=F64), NoCond())
    assert not out.value[0, 2:].any()
    assert out.value.sum(1).abs().max() < 1e-12
    assert out.value.abs().max() > 0.1


class TestFlowMatching:
    def test_label_dropout(self):
        """Dropped for a whole batch, at its rate, decided by the shared generator."""
        seen = []

        class Seen(MixtureTeacher):
            def forward(self, x_t, t, cond):
                seen.append(bool((cond.ids < 0).all()))
                return super().forward(x_t, t, cond)

        d = domain(labels=True)
        net, objective = Seen(PROCESS, d.toy.means, 0.15, kind=Kind.X0), FlowMatching(PROCESS, label_dropout=0.3)
        batch = d.data(8, 0).batch(0, 0, 1)
        for i in range(300):
            view = RoleView({"student": net}, {"student": net}, "student", rng.generator("shared", i))
            objective.loss(Phase("flow", "student"), batch, view, rng.generator(i))
        assert 0.2 < sum(seen) / 300 < 0.4

    def test_self_conditioning_shows_the_first_estimate(self):
        """The second call sees the clean estimate of the first at the same x_t."""
        calls = []

        class Estimated(NoCond):
            estimate = None

            def with_estimate(self, x0):
                out = Estimated()
                object.__setattr__(out, "estimate", x0)
                return out

        class Net(PointNet):
            def forward(self, x_t, t, cond):
                calls.append((x_t.value.detach(), cond.estimate))
                return super().forward(x_t, t, cond)

        net = Net(PROCESS, width=8, depth=1)
        batch = Batch(domain().data(8, 0).batch(0, 0, 1).like, Estimated())
        view = RoleView({"student": net}, {"student": net}, "student", rng.generator(0))
        FlowMatching(PROCESS, self_conditioning=1.0).loss(Phase("flow", "student"), batch, view, rng.generator(1))
        (first, nothing), (second, estimate) = calls
        assert torch.equal(first, second)
        assert nothing is None
        assert not estimate.value.requires_grad
        assert estimate.value.abs().max() > 0


class TestHarness:
    OBJECTIVES = (SiD(PROCESS, steps=2), DMD(PROCESS, steps=2, gan_weight=0.1, critic_updates=2))

    @pytest.mark.parametrize("objective", OBJECTIVES, ids=["sid", "dmd"])
    def test_each_phase_moves_its_owner_alone(self, objective):
        for phase in objective.phases(0):
            modules = roles(objective)
            before = snapshot(modules)
            net = RoleView(modules, modules, phase.owner, rng.generator(0))
            batch = domain().data(8, 0).batch(0, 0, 1)
            with phase_grads(modules, phase.owner):
                objective.loss(phase, batch, net, rng.generator(1)).per_sample.mean().backward()
            trained = {n for n, m in modules.items() if any(p.grad is not None for p in m.parameters())}
            assert trained == {phase.owner}
            assert not moved(modules, before)

    @pytest.mark.parametrize("objective", OBJECTIVES, ids=["sid", "dmd"])
    def test_macro_step_trains_every_role_and_no_teacher(self, objective):
        modules = roles(objective, domain(teacher="mlp", width=64, depth=3))
        before = snapshot(modules)
        log = run_macro_step(objective, modules, optimizers(modules), domain().data(8, 0).batch(0, 0, 1), 0, 0)
        assert moved(modules, before) == {r.name for r in objective.roles if r.trainable}
        assert all(k.split("/")[0] in {p.name for p in objective.phases(0)} for k in log)

    def test_is_a_function_of_seed_and_step(self):
        results = []
        for seed, step in ((0, 5), (0, 5), (1, 5), (0, 6)):
            o = SiD(PROCESS, steps=2)
            modules = roles(o)
            run_macro_step(o, modules, optimizers(modules), domain().null_data(8, 0).batch(0, 0, 1), seed, step)
            results.append(torch.cat([p.flatten() for p in modules["student"].parameters()]))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
        assert not torch.equal(results[0], results[3])

    def test_accumulation_is_the_mean_gradient(self):
        """SGD with two micro-batches moves by the mean of the two gradients, written out."""
        o, source = FlowMatching(PROCESS), domain().data(8, 0)
        modules = roles(o)
        start = [p.detach().clone() for p in modules["student"].parameters()]
        grads = []
        for i in range(2):
            net = RoleView(modules, modules, "student", rng.generator("shared", 3, 7, i))
            loss = o.loss(o.phases(7)[0], source.batch(i, 0, 1), net, rng.generator("loss", 3, 7, i, 0)).per_sample
            grads.append(torch.autograd.grad(loss.mean(), list(modules["student"].parameters())))
        run_macro_step(o, modules, optimizers(modules), lambda i: source.batch(i, 0, 1), 3, 7, accumulate=2)
        for p, p0, a, b in zip(modules["student"].parameters(), start, *grads, strict=True):
            torch.testing.assert_close(p, p0 - 0.1 * (a + b) / 2)

    def test_clip_bounds_the_update(self):
        o = FlowMatching(PROCESS)
        modules = roles(o)
        before = [p.detach().clone() for p in modules["student"].parameters()]
        run_macro_step(o, modules, optimizers(modules), domain().data(8, 0).batch(0, 0, 1), 0, 0, clip=1e-3)
        step = torch.cat(
            [(p.detach() - q).flatten() for p, q in zip(modules["student"].parameters(), before, strict=True)]
        )
        assert float(step.norm()) == pytest.approx(1e-4, rel=1e-3)
