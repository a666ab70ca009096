"""DMD and SiD against exact divergences: their own code runs on quadrature nodes instead of random draws."""

import pytest
import torch

from xdistill.models import Batch
from xdistill.objectives import Phase
from xdistill.objectives.dmd import DMD, F_DIVERGENCES, f_weight
from xdistill.objectives.sid import SiD
from xdistill.process import EDM, VP, Linear, Trig
from xdistill.roles import RoleView, phase_grads
from xdistill.testing import oracles
from xdistill.testing.oracles import AffineGenerator, At, ExactDenoiser, ExactLogit, Mixture, Nodes, normal_nodes

F64 = torch.float64
BIMODAL = Mixture(*(torch.tensor(v, dtype=F64) for v in ((-1.2, 0.9), (0.5, 0.7), (0.4, 0.6))))
NORMAL = Mixture.normal(0.7, 1.3)
PROCESSES = [Linear(), VP(), Trig(), EDM()]
T = 0.4


class Setup:
    """A one-step Gaussian student, an exact critic of it, and a teacher, all at noise level T of a process."""

    def __init__(self, process, teacher, mean=0.3, std=0.8):
        self.process, self.target = process, teacher
        self.student = AffineGenerator(process, mean, std)
        self.modules = {
            "teacher": ExactDenoiser(process, teacher),
            "student": self.student,
            "critic": ExactDenoiser(process, self.student.law),
            "discriminator": ExactLogit(process, teacher, self.student.law),
        }
        (self.z, self.e), self.weights = normal_nodes(2, n=151)
        c = process.coeffs(torch.tensor([T], dtype=F64))
        self.alpha, self.sigma = c.alpha, c.sigma
        self.x_hat = (self.student.mean + self.student.std * self.z).detach()
        self.x_t = self.alpha * self.x_hat + self.sigma * self.e
        self.d_p, self.d_q = (
            law.denoiser(self.x_t, self.alpha, self.sigma).squeeze(1) for law in (teacher, self.student.law)
        )
        #: the normaliser <|x_hat - D_p|> of both losses, with its floor
        self.norm = (self.x_hat.squeeze(1) - self.d_p).abs().clamp(min=1e-5)

    def loss(self, objective):
        batch = Batch(Nodes.state([self.z, self.e]), real=False)
        net = RoleView(self.modules, self.modules, "student", torch.Generator())
        with phase_grads(self.modules, "student"):
            return objective.loss(Phase("student", "student"), batch, net, torch.Generator()).per_sample

    def gradient(self, objective, factor=1.0):
        """d/d(mean, std) of sum_b weights_b factor_b loss_b."""
        total = (self.weights * factor * self.loss(objective)).sum()
        return torch.stack(torch.autograd.grad(total, [self.student.mean, self.student.std]))

    def exact(self, divergence):
        """d/d(mean, std) of divergence(q_t, p_t) by automatic differentiation of a quadrature."""
        mean, std = (p.detach().clone().requires_grad_() for p in (self.student.mean, self.student.std))
        q, p = (law.noised(self.alpha, self.sigma) for law in (Mixture.normal(mean, std), self.target))
        return torch.stack(torch.autograd.grad(divergence(q, p), [mean, std]))

    def field(self, h):
        """E[h(x_t) (alpha^2 / sigma^2) (D_q - D_p) d x_hat / d(mean, std)]: objectives spec 4.0."""
        push = self.weights * h * (self.alpha / self.sigma) ** 2 * (self.d_q - self.d_p)
        return torch.stack([push.sum(), (push * self.z.squeeze(1)).sum()])


def dmd(process, **options):
    return DMD(process, steps=1, student_time=At(T), critic_time=At(T), **options)


def sid(process, **options):
    return SiD(process, steps=1, student_time=At(T), critic_time=At(T), **options)


def close(a, b, rel=1e-8):
    torch.testing.assert_close(a, b, rtol=rel, atol=1e-10)


@pytest.fixture(params=PROCESSES, ids=lambda p: type(p).__name__)
def process(request):
    return request.param


class TestDMD:
    def kl_units(self, s):
        return s.norm * (s.alpha / s.sigma) ** 2

    def test_dmd_grad_gaussian(self, process):
        """Oracle G: dKL/dmu = a^2 (mu - m) / B^2, dKL/dtau = a^2 tau (1/B^2 - 1/A^2)."""
        s = Setup(process, NORMAL)
        a2, (mu, tau) = s.alpha**2, (s.student.mean.detach(), s.student.std.detach())
        A2, B2 = a2 * tau**2 + s.sigma**2, a2 * 1.3**2 + s.sigma**2
        exact = torch.cat([a2 * (mu - 0.7) / B2, a2 * tau * (1 / B2 - 1 / A2)])
        close(s.gradient(dmd(process), self.kl_units(s)), exact)
        close(s.exact(lambda q, p: oracles.f_divergence("reverse_kl", q, p)), exact)

    def test_dmd_grad_gmm(self, process):
        s = Setup(process, BIMODAL)
        exact = s.exact(lambda q, p: oracles.f_divergence("reverse_kl", q, p))
        assert exact.abs().min() > 1e-3
        close(s.gradient(dmd(process), self.kl_units(s)), exact)

    def test_zero_at_the_teacher(self, process):
        s = Setup(process, NORMAL, mean=0.7, std=1.3)
        assert s.gradient(dmd(process)).abs().max() < 1e-10

    @pytest.mark.parametrize("name", F_DIVERGENCES)
    def test_fdiv_grad(self, name):
        """Each h(r) turns the gap into the gradient of its divergence."""
        s = Setup(Linear(), BIMODAL, std=0.5)
        ratio = s.modules["discriminator"](oracles.Field(s.x_t, None), torch.full((1,), T, dtype=F64), None).exp()
        exact = s.exact(lambda q, p: oracles.f_divergence(name, q, p))
        close(s.gradient(dmd(Linear()), F_DIVERGENCES[name](ratio) * self.kl_units(s)), exact)

    def test_f_weight_is_clipped_and_normalised(self):
        logit = torch.tensor([-9.0, -0.5, 0.3, 9.0], dtype=F64)
        h = torch.tensor([0.1, torch.e**-0.5, torch.e**0.3, 20.0], dtype=F64)
        close(f_weight("jeffreys", logit), (1 + h) / (1 + h).mean())
        assert torch.equal(f_weight("reverse_kl", logit), torch.ones(4, dtype=F64))

    def test_f_weight_scales_the_gap_of_its_sample(self):
        s = Setup(Linear(), BIMODAL)
        logit = s.modules["discriminator"](oracles.Field(s.x_t, None), torch.full((1,), T, dtype=F64), None)
        h = f_weight("js", logit)
        close(s.gradient(dmd(Linear(), divergence="js"), self.kl_units(s)), s.field(h))

    def test_gan_is_f_field(self, process):
        """With the optimal logit log r the non-saturating loss has the field h = 1 / (1 + r)."""
        s = Setup(process, BIMODAL)
        logit = s.modules["discriminator"](oracles.Field(s.x_t, None), torch.full((1,), T, dtype=F64), None)
        both, gap = s.gradient(dmd(process, gan_weight=0.3)), s.gradient(dmd(process))
        close(both - gap, 0.3 * s.field(torch.sigmoid(-logit)))

    def test_value(self):
        """The loss is half the squared normalised gap."""
        s = Setup(Linear(), BIMODAL)
        close(s.loss(dmd(Linear())), 0.5 * ((s.d_q - s.d_p) / s.norm) ** 2)


class TestSiD:
    def test_sid_half_fisher(self, process):
        """alpha = 1/2 is half the gradient of the Fisher divergence, critic frozen, weights of the two nets too."""
        s = Setup(process, BIMODAL)
        exact = s.exact(oracles.fisher_divergence)
        assert exact.abs().min() > 1e-3
        close(s.gradient(sid(process, alpha=0.5, weight="fisher")), 0.5 * exact)

    def test_true_gradient_is_2_g2_minus_g1(self):
        """alpha = 0 gives g2 and g1 is g2 minus alpha = 1: their combination is the Fisher gradient for any teacher."""
        s = Setup(Linear(), BIMODAL)
        g2, g1 = (s.gradient(sid(Linear(), alpha=0.0, weight="fisher")), None)
        g1 = g2 - s.gradient(sid(Linear(), alpha=1.0, weight="fisher"))
        close(2 * g2 - g1, s.exact(oracles.fisher_divergence))

    def test_mean_abs_weight(self, process):
        """w = 1 / <|x_hat - D_p|> without a gradient of its own."""
        s = Setup(process, BIMODAL)
        factor = s.norm * (s.alpha / s.sigma**2) ** 2
        close(s.gradient(sid(process, alpha=0.5), factor), 0.5 * s.exact(oracles.fisher_divergence))

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
    def test_value(self, process, alpha):
        """The expected loss is (1 - alpha) E|D_p - D_q|^2, hence zero at alpha = 1."""
        s = Setup(process, BIMODAL)
        fisher = (s.alpha / s.sigma**2) ** 2
        square = (s.weights * (s.d_p - s.d_q) ** 2).sum()
        value = (s.weights * s.loss(sid(process, alpha=alpha, weight="fisher"))).sum() / fisher
        close(value, (1 - alpha) * square[None].squeeze() * torch.ones_like(value))

    def test_sid_projection_zero(self, process):
        """E[(D_p - D_q) . (D_q - x_hat)] = 0 with an exact critic, and not with another."""
        s = Setup(process, BIMODAL)
        d_q, x_hat = s.d_q, s.x_hat.squeeze(1)
        assert (s.weights * (s.d_p - d_q) * (d_q - x_hat)).sum().abs() < 1e-10
        wrong = Mixture.normal(0.1, 0.9).denoiser(s.x_t, s.alpha, s.sigma).squeeze(1)
        assert (s.weights * (s.d_p - wrong) * (wrong - x_hat)).sum().abs() > 1e-3

    @pytest.mark.parametrize("alpha", [0.3, 1.0, 1.2])
    def test_sid_equal_var(self, process, alpha):
        """Equal variances: the gradient in mu is -(s^2/B^2)^2 (m - mu) for every alpha, in clean units."""
        s = Setup(process, NORMAL, mean=0.3, std=1.3)
        c4 = (s.sigma**2 / ((s.alpha * 1.3) ** 2 + s.sigma**2)) ** 2
        factor = (s.sigma**2 / s.alpha) ** 2
        gradient = s.gradient(sid(process, alpha=alpha, weight="fisher"), factor)
        close(gradient[:1], -c4 * (0.7 - 0.3))

    def test_zero_at_the_teacher(self, process):
        s = Setup(process, NORMAL, mean=0.7, std=1.3)
        for alpha in (0.5, 1.0):
            assert s.gradient(sid(process, alpha=alpha, weight="fisher")).abs().max() < 1e-9

    def test_loss_scale(self):
        s = Setup(Linear(), BIMODAL)
        close(s.gradient(sid(Linear(), loss_scale=100.0)), 100 * s.gradient(sid(Linear())))
