"""TDM and secant regression against the Gaussian flow map, which every hop of an exact student must reproduce."""

import pytest
import torch
from torch import nn

from xdistill import rng
from xdistill.domains.toy import MixtureTeacher
from xdistill.models import Batch, NoCond
from xdistill.objectives import Phase
from xdistill.objectives.dmd import DMD
from xdistill.objectives.secant import Secant, hop_target, rotated
from xdistill.objectives.tdm import SNR_MAX, TDM, importance, subinterval_target
from xdistill.process import EDM, VP, Kind, Linear, Trig
from xdistill.roles import RoleView, phase_grads
from xdistill.samplers.hops import hops, to_zero
from xdistill.sources import Trajectories, forward_noised
from xdistill.state import Dense, Field, Padded, Ragged
from xdistill.testing.oracles import (
    AffineGenerator,
    At,
    ExactDenoiser,
    Mixture,
    Nodes,
    gaussian_flow_map,
    gaussian_velocity,
    normal_nodes,
)

F64 = torch.float64
MEAN, STD, K = 0.7, 1.3, 4
CLEAN = [Linear(), Trig()]  # paths whose prior has no signal: there the chain starts in p_1 exactly


@pytest.fixture(params=[Linear(), VP(), Trig(), EDM()], ids=lambda p: type(p).__name__)
def process(request):
    return request.param


def time(t):
    return torch.tensor([t], dtype=F64)


def column(n=25):
    return torch.linspace(-2.5, 2.5, n, dtype=F64)[:, None]


class ExactHops(nn.Module):
    """The student whose hops between `times` and zero are the Gaussian flow map, but for an error of hop `wrong`."""

    kind = Kind.X0

    def __init__(self, process, times, wrong=None):
        super().__init__()
        self.process, self.wrong = process, wrong
        self.times = to_zero(times)
        self.scale = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x_t, t, cond):
        k = int((self.times == t[0]).nonzero())
        r = self.times[k + 1].expand_as(t)
        x_r = gaussian_flow_map(self.process, MEAN, STD, x_t.value, t[:1], r[:1])
        clean = hop_target(self.process, x_t, Field(x_r, x_t.layout), t, r).value
        if k == self.wrong:
            clean = 0.2 + 1.1 * clean
        return Field(self.scale * clean, x_t.layout)


class ExactCritic(nn.Module):
    """Tweedie's denoiser of the student's own law at r, noised to tau in [r, t): one Gaussian a hop."""

    kind = Kind.X0

    def __init__(self, process, student):
        super().__init__()
        self.process, self.times = process, student.times
        grid = Field(torch.tensor([[0.0], [1.0]], dtype=F64), Dense(2))
        self.laws, sigma = [], process.coeffs(time(1.0)).sigma
        for i in range(len(self.times) - 1):  # the chain is affine in its noise: two points give its mean and scale
            with torch.no_grad():
                end = hops(student, process, self.times[: i + 2], grid.scale(sigma.expand(2)), NoCond()).value
            self.laws.append((end[0], (end[1] - end[0]).abs()))

    def forward(self, x_t, t, cond):
        tau = t[:1]
        k = max(i for i in range(len(self.laws)) if self.times[i] > tau)
        alpha, sigma = self.process.transition(tau, self.times[k + 1 : k + 2])
        mean, std = self.laws[k]
        score = -(x_t.value - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
        c = self.process.coeffs(tau)
        return Field((x_t.value + c.sigma**2 * score) / c.alpha, x_t.layout)


def tdm_loss(process, student, hop, *, place=0.6, owner="student", **options):
    """Per-sample loss and metrics of TDM at hop `hop`, with an exact critic, on nodes of both its noises."""
    (z, e), _ = normal_nodes(2, n=11)
    modules = {
        "teacher": ExactDenoiser(process, Mixture.normal(MEAN, STD)),
        "student": student,
        "critic": ExactCritic(process, student),
    }
    objective = TDM(process, steps=K, student_time=At(place), critic_time=At(place), **options)
    seed = next(s for s in range(99) if rng.randint(0, K, rng.generator("k", s)) == hop)
    net = RoleView(modules, modules, owner, rng.generator("k", seed))
    with phase_grads(modules, owner):
        return objective.loss(Phase(owner, owner), Batch(Nodes.state([z, e]), real=False), net, torch.Generator())


class TestTDM:
    times = TDM(Linear(), steps=K).anchors(K)

    @pytest.mark.parametrize("process", CLEAN, ids=lambda p: type(p).__name__)
    @pytest.mark.parametrize("hop", range(K))
    def test_tdm_zero_at_exact(self, process, hop):
        """An exact K-step map and an exact critic leave no gap, at any state and any place of the interval."""
        for place in (0.02, 0.6, 0.98):
            out = tdm_loss(process, ExactHops(process, self.times), hop, place=place)
            assert out.per_sample.max() < 1e-18

    @pytest.mark.parametrize("process", CLEAN, ids=lambda p: type(p).__name__)
    @pytest.mark.parametrize("wrong", range(K))
    def test_tdm_upstream_isolation(self, process, wrong):
        """An error of hop j is invisible to the noisier hops, seen at j, and inherited by the cleaner ones."""
        gaps = [tdm_loss(process, ExactHops(process, self.times, wrong), hop).metrics["gap"].mean() for hop in range(K)]
        assert all(g < 1e-10 for g in gaps[:wrong])
        assert all(g > 1e-3 for g in gaps[wrong:])

    @pytest.mark.parametrize("process", [Linear(), VP(), Trig()], ids=lambda p: type(p).__name__)
    def test_one_step_is_dmd(self, process):
        """K = 1 ends at the clean sample: the loss is DMD's at the same noise level."""
        (z, e), _ = normal_nodes(2, n=11)
        student = AffineGenerator(process, 0.3, 0.8)
        modules = {
            "teacher": ExactDenoiser(process, Mixture.normal(MEAN, STD)),
            "student": student,
            "critic": ExactDenoiser(process, student.law),
        }
        losses = []
        for make in (DMD, TDM):
            objective = make(process, steps=1, student_time=At(0.4))
            net = RoleView(modules, modules, "student", torch.Generator())
            batch = Batch(Nodes.state([z, e]), real=False)
            with phase_grads(modules, "student"):
                losses.append(objective.loss(Phase("student", "student"), batch, net, torch.Generator()).per_sample)
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-8, atol=1e-12)

    def test_huber(self):
        wrong = ExactHops(Linear(), self.times, wrong=1)
        l2, huber = (tdm_loss(Linear(), wrong, 1, huber=h).per_sample for h in (0.0, 0.3))
        torch.testing.assert_close(huber, (2 * l2 + 0.09).sqrt() - 0.3)

    def test_intervals(self):
        """`hop` ends at the hop's start, `above` at the prior; both begin at its end."""
        seen = {}
        for interval in ("hop", "above"):
            student = ExactHops(Linear(), self.times)
            critic = ExactCritic(Linear(), student)
            taus = seen.setdefault(interval, [])
            critic.register_forward_pre_hook(lambda m, args, taus=taus: taus.append(float(args[1][0])))
            modules = {"teacher": ExactDenoiser(Linear(), Mixture.normal(MEAN, STD)), "student": student}
            objective = TDM(Linear(), steps=K, student_time=At(0.5), interval=interval)
            for s in range(12):
                net = RoleView(modules | {"critic": critic}, modules, "student", rng.generator("k", s))
                batch = Batch(Nodes.state([column(), column()]), real=False)
                objective.loss(Phase("student", "student"), batch, net, torch.Generator())
        assert sorted(set(seen["hop"])) == [0.125, 0.375, 0.625, 0.875]
        assert sorted(set(seen["above"])) == [0.5, 0.625, 0.75, 0.875]

    def test_sampler_is_the_flow_map(self, process):
        """Hops of the exact student end where the flow ends, and noise_scale shrinks the prior alone."""
        student, like = ExactHops(process, self.times), Nodes.state([column()])
        out = TDM(process, steps=K).sample(student, like, NoCond(), torch.Generator(), noise_scale=0.5)
        start = 0.5 * process.coeffs(time(1.0)).sigma * column()
        torch.testing.assert_close(out.value, gaussian_flow_map(process, MEAN, STD, start, time(1.0), time(0.0)))


class TestSubinterval:
    """Regression from x_t ~ p(. | x_r) with x_r ~ N(mean, std^2), r > 0: objectives spec 4, Phased DMD."""

    r, t = 0.25, 0.6

    def sample(self, process, mean=MEAN, std=STD):
        (z, e), weights = normal_nodes(2, n=101)
        x_r = mean + std * z
        r, t = (torch.full((len(z),), v, dtype=F64) for v in (self.r, self.t))
        x_t, noise = forward_noised(process, Field(x_r, Nodes(len(z), iter([e]))), r, t, torch.Generator())
        return Field(x_r, Dense(len(z))), x_t, noise, r, t, weights

    def fit(self, x, y, weights):
        """(slope, intercept) of the least squares line."""
        x, y = x.squeeze(1), y.squeeze(1)
        mx, my = (weights * x).sum(), (weights * y).sum()
        slope = (weights * (x - mx) * (y - my)).sum() / (weights * (x - mx) ** 2).sum()
        return torch.stack([slope, my - slope * mx])

    def exact(self, process):
        """Tweedie's denoiser of N(mean, std^2) at r noised to t."""
        alpha, sigma = process.transition(time(self.t), time(self.r))
        c, variance = process.coeffs(time(self.t)), (alpha * STD) ** 2 + sigma**2
        slope = (1 - c.sigma**2 / variance) / c.alpha
        return torch.cat([slope, c.sigma**2 * alpha * MEAN / variance / c.alpha])

    def test_subinterval_unbiased(self, process):
        x_r, x_t, noise, r, t, weights = self.sample(process)
        target, _ = subinterval_target(process, x_r, noise, r, t)
        torch.testing.assert_close(
            self.fit(x_t.value, target.value, weights), self.exact(process), rtol=1e-8, atol=1e-9
        )

    def test_spec_numbers_and_subinterval_biased_fails(self):
        """The recorded control on the linear path: the true velocity is (-0.1206, -0.6662), e - x_r is not."""
        noised = Mixture.normal(MEAN, STD).noised(time(1 - self.r), time(self.r))
        x_r, x_t, noise, r, t, weights = self.sample(Linear(), noised.means, noised.stds)
        target, _ = subinterval_target(Linear(), x_r, noise, r, t)
        true = self.fit(x_t.value, (x_t.value - target.value) / self.t, weights)
        biased = self.fit(x_t.value, noise.value - x_r.value, weights)
        torch.testing.assert_close(true, torch.tensor([-0.1206, -0.6662], dtype=F64), rtol=0, atol=1e-4)
        torch.testing.assert_close(biased, torch.tensor([0.071, -0.545], dtype=F64), rtol=0, atol=1e-3)

    def test_r_zero_is_the_clean_sample(self):
        x, zero, t = Field(column(), Dense(25)), torch.zeros(25, dtype=F64), torch.full((25,), 0.6, dtype=F64)
        target, c = subinterval_target(Linear(), x, Field(-column(), Dense(25)), zero, t)
        assert torch.equal(target.value, x.value)
        assert not c.any()

    @pytest.mark.parametrize("target", ["subinterval", "importance"])
    def test_critic_loss_by_hand(self, target):
        """At hop 1 of 4 (0.75 to 0.5), tau = 0.65, on the linear path, for a critic that says 0.3 everywhere."""
        student = ExactHops(Linear(), TestTDM.times)
        (z, e), _ = normal_nodes(2, n=11)

        class Constant(nn.Module):
            kind = Kind.X0

            def forward(self, x_t, t, cond):
                return Field(torch.full_like(x_t.value, 0.3), x_t.layout)

        modules = {"student": student, "critic": Constant()}
        objective = TDM(Linear(), steps=K, critic_time=At(0.6), critic_target=target)
        seed = next(s for s in range(99) if rng.randint(0, K, rng.generator("k", s)) == 1)
        net = RoleView(modules, modules, "critic", rng.generator("k", seed))
        batch = Batch(Nodes.state([z, e]), real=False)
        out = objective.loss(Phase("critic", "critic"), batch, net, torch.Generator()).per_sample
        t, r, tau = 0.75, 0.5, 0.65
        x = gaussian_flow_map(Linear(), MEAN, STD, z, time(1.0), time(t))
        x_r = gaussian_flow_map(Linear(), MEAN, STD, x, time(t), time(r))
        a, s = (1 - tau) / (1 - r), (tau**2 - ((1 - tau) / (1 - r) * r) ** 2) ** 0.5
        x_hat, x_tau = (t * x_r - r * x) / (t * (1 - r) - r * (1 - t)), a * x_r + s * e
        snr = ((1 - tau) / tau) ** 2
        assert snr < SNR_MAX
        if target == "subinterval":
            c = (1 - tau) * r**2 / ((1 - r) ** 2 * s)
            expected = min(snr, c**-2) * (0.3 - (x_r / (1 - r) - c * e)) ** 2
        else:
            n_eff = (x_tau - (1 - tau) * x_hat) / tau
            expected = snr * torch.exp((e**2 - n_eff**2) / 2) * (0.3 - x_hat) ** 2
        torch.testing.assert_close(out, expected.squeeze(1), rtol=1e-8, atol=1e-10)

    def test_importance_is_one_where_nothing_was_left_out(self):
        """From r = 0 the noise about the clean sample is the noise that was drawn."""
        x, e, t = Field(column(), Dense(25)), Field(-column(), Dense(25)), torch.full((25,), 0.6, dtype=F64)
        x_t = Linear().corrupt(x, t, torch.Generator(), e)
        torch.testing.assert_close(importance(Linear(), x_t, x, e, t), torch.ones(25, dtype=F64))


class TestSecant:
    def loss(self, process, objective, student, states, seed=0):
        modules = {"student": student}
        net = RoleView(modules, modules, "student", rng.generator("shared", seed))
        batch = Trajectories(states[0].zeros(), NoCond(), False, tuple(states))
        return objective.loss(Phase("student", "student"), batch, net, rng.generator("k", seed)).per_sample

    def states(self, process, objective, n=25):
        prior = process.coeffs(time(1.0)).sigma * column(n)
        flow = [gaussian_flow_map(process, MEAN, STD, prior, time(1.0), s[None]) for s in objective.grid]
        return [Field(x, Dense(n)) for x in flow]

    @pytest.mark.parametrize("target", ["next", "clean"])
    def test_secant_zero_at_exact(self, process, target):
        """The optimum of the regression is the closed-form map: the loss is zero there, whatever anchors are drawn."""
        objective = Secant(process, steps=K, target=target)
        states = self.states(process, objective)
        student = PerSample(ExactHops(process, objective.anchors(K)), target)
        for seed in range(4):
            assert self.loss(process, objective, student, states, seed).max() < 1e-16
        student.net.wrong = 2
        assert max(self.loss(process, objective, student, states, s).max() for s in range(4)) > 1e-3

    def test_is_the_secant_on_the_linear_path(self):
        """|u - (x_r - x_t) / (r - t)|^2 for a velocity network: AccVideo's loss."""

        class Speed(nn.Module):
            kind = Kind.VELOCITY

            def forward(self, x_t, t, cond):
                seen.append((x_t.value, t))
                return Field(0.3 * x_t.value + t[:, None], x_t.layout)

        seen = []
        objective = Secant(Linear(), steps=K)
        out = self.loss(Linear(), objective, Speed(), self.states(Linear(), objective))
        x, t = seen[0]
        assert len(t.unique()) == K  # every sample has an anchor of its own
        r = t - 1 / K
        x_r = torch.cat(
            [gaussian_flow_map(Linear(), MEAN, STD, *v) for v in zip(x, t[:, None], r[:, None], strict=True)]
        )
        secant = (x_r[:, None] - x) / (r - t)[:, None]
        expected = (0.3 * x + t[:, None] - secant).square().squeeze(1)
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-9)  # the weight has a floor of 1e-5 / t^2

    def test_first_input_has_no_signal(self):
        """Where the anchors start below t = 1 the first input is sigma(t) e, as in the sampler."""
        seen = []

        class Probe(nn.Module):
            kind = Kind.X0

            def forward(self, x_t, t, cond):
                seen.append((x_t.value, t))
                return x_t

        objective = Secant(Linear(), steps=2, anchors=lambda k: torch.tensor([0.6, 0.2], dtype=F64)[:k])
        assert objective.grid.tolist() == [1.0, 0.6, 0.2, 0.0]
        states = self.states(Linear(), objective)
        self.loss(Linear(), objective, Probe(), states)
        x, t = seen[0]
        first = t == 0.6
        assert 0 < first.sum() < len(t)
        torch.testing.assert_close(x[first], 0.6 * column()[first])
        torch.testing.assert_close(x[~first], states[2].value[~first])

    @pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
    def test_gaussian_flow_map_order(self, heun, order):
        """The teacher's trajectory meets the exact flow map at its solver's order, at every stored time."""
        teacher = MixtureTeacher(Linear(), torch.tensor([[MEAN]], dtype=F64), STD)
        errors = []
        for n in (16, 32):
            objective = Secant(Linear(), steps=K, solver_steps=n, heun=heun)
            made = objective.trajectory(teacher, Batch(Nodes.state([column()]), real=False), torch.Generator())
            exact = self.states(Linear(), objective)
            assert len(made) == len(exact) == K + 1
            errors.append([float((a - b).value.abs().max()) for a, b in zip(made, exact, strict=True)][1:])
        for coarse, fine in zip(*errors, strict=True):
            assert coarse / fine > 0.85 * 2**order
            assert fine > 1e-9  # the errors compared are the solver's

    def test_velocity_is_the_derivative_of_the_map(self, process):
        """The closed forms agree: what the teacher integrates is what the student must reproduce."""
        v = torch.autograd.functional.jvp(
            lambda r: gaussian_flow_map(process, MEAN, STD, column(), time(0.5), r), time(0.5), torch.ones(1, dtype=F64)
        )[1]
        torch.testing.assert_close(v, gaussian_velocity(process, MEAN, STD, column(), time(0.5)))

    @pytest.mark.parametrize("kind", ["dense", "padded", "ragged"])
    def test_rotation_is_shared(self, kind):
        """One proper rotation a sample turns all its states: inner products within a sample stay, the rest does not."""
        g = rng.generator(kind)
        shape = {"dense": (4, 3), "padded": (4, 5, 3), "ragged": (9, 3)}[kind]
        layout = {
            "dense": Dense(4),
            "padded": Padded.from_lengths([5, 2, 3, 5], zero_com=True),
            "ragged": Ragged(torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3]), 4),
        }[kind]
        states = [Field(torch.randn(shape, generator=g, dtype=F64), layout).project() for _ in range(2)]
        turned = rotated(states, rng.generator("turn"))
        torch.testing.assert_close(turned[0].dot(turned[1]), states[0].dot(states[1]))
        torch.testing.assert_close(turned[0].project().value, turned[0].value)
        assert (turned[0] - states[0]).mean_square().min() > 1e-3
        basis = [Field(torch.eye(3, dtype=F64)[i].expand(500, 3), Dense(500)) for i in range(3)]
        matrices = torch.stack([x.value for x in rotated(basis, rng.generator("many"))], 1)
        torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(500, dtype=F64))
        assert matrices.mean(0).abs().max() < 0.12  # uniform: no direction is preferred


class PerSample(nn.Module):
    """The exact student for anchors that differ by sample, aiming at the next anchor or at time zero."""

    kind = Kind.X0

    def __init__(self, net, target):
        super().__init__()
        self.net, self.target = net, target

    def forward(self, x_t, t, cond):
        rows = []
        for i in range(len(t)):
            one = Field(x_t.value[i : i + 1], Dense(1))
            if self.target == "next":
                rows.append(self.net(one, t[i : i + 1], cond).value)
            else:
                x_0 = gaussian_flow_map(self.net.process, MEAN, STD, one.value, t[i : i + 1], torch.zeros(1, dtype=F64))
                shift = 0.5 if self.net.wrong is not None else 0.0
                rows.append(
                    hop_target(self.net.process, one, Field(x_0 + shift, Dense(1)), t[i : i + 1], time(0.0)).value
                )
        return Field(torch.cat(rows), x_t.layout)
