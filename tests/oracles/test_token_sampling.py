"""Laws of token samplers on tables small enough to enumerate: every N-step chain exactly, and where its limit lies."""

import itertools
import math

import pytest
import torch

from xdistill import rng
from xdistill.domains.toy.tokens import TablePosterior, random_table
from xdistill.models import NoCond
from xdistill.process import MaskProcess
from xdistill.samplers.draws import categorical, race
from xdistill.samplers.mask import METHODS, ancestral, grid
from xdistill.samplers.mask_score import analytic_weights, ancestral_weights
from xdistill.state import Tokens

V = 3
PROCESS = MaskProcess(V)
F64 = torch.float64


def states(length):
    return torch.tensor(list(itertools.product(range(V + 1), repeat=length)))


def posterior(length):
    """p(x_i = v | z) of every state with a mask column, [S, L, V + 1]."""
    z = states(length)
    p = TablePosterior(random_table(V, length), V, length)(
        Tokens(z, torch.ones_like(z, dtype=torch.bool)), None, NoCond()
    )
    return torch.cat([p.exp(), torch.zeros(*p.shape[:2], 1)], 2)


def chain(length, steps, step_law, taken=None):
    """Law [S] after `taken` of N steps from all masked; step_law(p, z, t, r): of each position [S, L, V + 1]."""
    z, p = states(length), posterior(length)
    law = torch.zeros(len(z), dtype=F64)
    law[-1] = 1
    for t, r in itertools.islice(itertools.pairwise(grid(steps)), taken):
        position = step_law(p, torch.nn.functional.one_hot(z, V + 1).double(), PROCESS.keep(t), PROCESS.keep(r))
        kernel = torch.ones(len(z), len(z), dtype=F64)
        for i in range(length):
            kernel *= position[:, i][:, z[:, i]]
        law = law @ kernel
    return law


RACE = {"precision": "paper_fp32"}
MASK = torch.eye(V + 1, dtype=F64)[V]


def posterior_step(p, seen, keep_t, keep_r):
    """q(z_r | z_t, x0 ~ p) of masked diffusion."""
    show = (keep_r - keep_t) / (1 - keep_t)
    return torch.where(seen[..., V:] == 1, show * p + (1 - show) * MASK, seen)


def forward_step(p, seen, keep_t, keep_r):
    """q(z_r | x0 ~ p)."""
    clean = torch.where(seen[..., V:] == 1, p, seen)
    return keep_r * clean + (1 - keep_r) * MASK


def psi_step(kappa):
    def step(*args):
        return kappa * posterior_step(*args) + (1 - kappa) * forward_step(*args)

    return step


def remdm_step(eta, cap):
    def step(p, seen, keep_t, keep_r):
        most = min(1.0, float((1 - keep_r) / keep_t))
        s = min(eta, most) if cap else eta * most
        token, mask = (keep_r - (1 - s) * keep_t) / (1 - keep_t), (1 - keep_r - s * keep_t) / (1 - keep_t)
        return torch.where(seen[..., V:] == 1, token * p + mask * MASK, (1 - s) * seen + s * MASK)

    return step


def clean(law, length):
    """The law of finished sequences [V^L], position by position."""
    return law.view(*[V + 1] * length)[(slice(0, V),) * length].reshape(-1)


def table(length):
    return random_table(V, length)


def run(length, times, method, n, **options):
    """[n, L] ids at the end of `times`."""
    ids = torch.full((n, length), V)
    z = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    model = TablePosterior(table(length), V, length)
    return METHODS[method](model, PROCESS, times, z, NoCond(), rng.generator(length, len(times)), **options).ids


def frequencies(ids, base):
    """Histogram [base^L] of sequences, last position fastest."""
    length = ids.shape[1]
    code = (ids * base ** torch.arange(length - 1, -1, -1)).sum(1)
    return torch.bincount(code, minlength=base**length) / len(ids)


def drawn(length, steps, method, n=20_000, **options):
    """Histogram [V^L] of finished samples."""
    return frequencies(run(length, grid(steps), method, n, **options), V)


def assert_law(histogram, law, n=20_000):
    """Every frequency within four standard deviations."""
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    assert ((histogram - law).abs() < 4 * (law * (1 - law) / n).sqrt() + 1e-12).all()


def distance(a, b):
    return float(0.5 * (a - b).abs().sum())


class TestLaws:
    @pytest.mark.parametrize(
        ("method", "options"),
        [("ancestral", {}), ("ancestral", RACE), ("analytic", RACE), ("psi", {"kappa": 1.0})],
    )
    def test_ancestral_chains(self, method, options):
        for steps in (1, 2, 4):
            assert_law(drawn(3, steps, method, **options), clean(chain(3, steps, posterior_step), 3))

    def test_chains_can_be_told_apart(self):
        with pytest.raises(AssertionError):
            assert_law(drawn(3, 2, "ancestral"), clean(chain(3, 3, posterior_step), 3))

    @pytest.mark.parametrize(
        ("method", "options", "step"),
        [
            ("psi", {"kappa": 0.0}, forward_step),
            ("psi", {"kappa": 0.4}, psi_step(0.4)),
            ("remdm", {"schedule": "cap", "eta": 0.3}, remdm_step(0.3, True)),
            ("remdm", {"schedule": "rescale", "eta": 0.7}, remdm_step(0.7, False)),
        ],
    )
    def test_forgetting_chains(self, method, options, step):
        """Before the end, masks included, and at it; enough samples to see that it is not the ancestral chain."""
        n = 100_000
        assert_law(frequencies(run(2, grid(8)[:6], method, n, **options), V + 1), chain(2, 8, step, taken=5), n)
        histogram = drawn(2, 8, method, n, **options)
        assert_law(histogram, clean(chain(2, 8, step), 2), n)
        with pytest.raises(AssertionError):
            assert_law(histogram, clean(chain(2, 8, posterior_step), 2), n)

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("first_hitting", {}),
            ("spread", {}),
            ("spread", {"order": "random"}),
            ("spread", {"order": "left_to_right"}),
            ("margin", {}),
            ("entropy", {}),
            ("entropy", {"block": 2}),
            ("entropy_bounded", {"gamma": 0.0}),
        ],
    )
    def test_one_token_a_call_is_exact(self, method, options):
        assert_law(drawn(3, 3, method, **options), table(3))

    def test_choosing_among_drawn_tokens_is_not(self):
        assert distance(drawn(3, 3, "confidence"), table(3)) > 0.15

    def test_ancestral_tends_to_first_hitting(self):
        """The error of N steps falls like 1 / N; the limit is the table, which first hitting samples."""
        error = [distance(clean(chain(3, n, posterior_step), 3), table(3)) for n in (1, 2, 4, 8, 16, 32, 64)]
        assert all(b < a for a, b in itertools.pairwise(error))
        assert error[-1] / error[-2] == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("step", [posterior_step, psi_step(0.4), forward_step, remdm_step(0.3, True)])
    @pytest.mark.parametrize("steps", [1, 2, 5, 16])
    def test_marginals_of_positions_are_right_at_any_number_of_steps(self, step, steps):
        law, exact = (x.view(V, V) for x in (clean(chain(2, steps, step), 2), table(2)))
        torch.testing.assert_close(law.sum(0), exact.sum(0), rtol=1e-10, atol=0)
        torch.testing.assert_close(law.sum(1), exact.sum(1), rtol=1e-10, atol=0)

    @pytest.mark.parametrize("step", [psi_step(0.4), forward_step, remdm_step(0.3, True)])
    def test_forgetting_has_the_same_limit(self, step):
        """With an exact network forgetting mends nothing: it has the same limit, at a larger error for the same N."""
        error, plain = (
            [distance(clean(chain(2, n, s), 2), table(2)) for n in (4, 16, 64, 256)] for s in (step, posterior_step)
        )
        assert all(b < 0.5 * a for a, b in itertools.pairwise(error))
        assert all(a > b for a, b in zip(error, plain, strict=True))

    def test_visible_share_follows_the_process(self):
        """Marginals of z_r under psi and ReMDM are those of the forward process (but for keep(1), which is not 0)."""
        z = states(2)
        for step in (psi_step(0.4), remdm_step(0.3, True)):
            law = chain(2, 8, step, taken=5)
            visible = float((law[:, None] * (z != V)).sum() / 2)
            assert visible == pytest.approx(float(PROCESS.keep(grid(8)[5])), abs=2e-3)


class TestPrecision:
    def test_analytic_weights_are_the_ancestral_ones(self):
        p = torch.rand(2, 5, V + 1, generator=rng.generator(0), dtype=F64)
        p[..., V] = 0
        p = p / p.sum(2, keepdim=True)
        ids = torch.full((2, 5), V)
        for t, r in ((1.0, 0.6), (0.5, 0.1), (0.02, 0.0)):
            t, r = (torch.tensor(s, dtype=F64) for s in (t, r))
            a, b = (f(PROCESS, p, ids, t, r) for f in (ancestral_weights, analytic_weights))
            torch.testing.assert_close(b * (1 - PROCESS.keep(t)), a, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("q", [1e-6, 1e-7, 1e-8])
    def test_the_fp32_race_cuts_tails_and_inversion_does_not(self, q):
        """An outcome of weight q against a mask of weight 1 - q, over all fp32 uniforms that can win it the race.

        Only uniforms within about 20 q of 1 can; fp32 has one each 2^-24 = 6e-8, and none closer to 1 than that.
        """
        weights = torch.tensor([1 - q, q])
        near = 1 - torch.arange(1, 1 + max(4, math.ceil(40 * q * 2**24)), dtype=F64).mul(2.0**-24)
        other = (torch.arange(2000, dtype=F64) + 0.5) / 2000
        pairs = torch.cartesian_prod(other, near).float()
        won = race(weights, pairs).double().mean() * len(near) * 2.0**-24
        grid64 = 1 - (torch.arange(1000, dtype=F64) + 0.5) / 1000 * 4 * q  # an even grid of the top 4 q
        exact = categorical(weights.expand(1000, 2), grid64).double().mean() * 4 * q
        assert float(exact) == pytest.approx(q, rel=5e-3)
        if q < 5e-8:
            assert float(won) < 0.05 * q
        else:
            assert float(won) < (0.98 if q > 5e-7 else 0.8) * q

    def test_zipf_tokens_of_many_steps_have_the_right_surprisal(self):
        """The toy of text spec 1.8: V = 50,257, mean 7.57 nats, which fp32 draws underestimate by up to two nats."""
        size, steps, n = 50_257, 256, 3000
        p = 1 / torch.arange(1, size + 1, dtype=F64)
        log_p = (p / p.sum()).log()
        entropy = float(-(log_p.exp() * log_p).sum())
        error = float((log_p.exp() * (log_p + entropy) ** 2).sum().sqrt()) / n**0.5

        class Zipf(torch.nn.Module):
            def forward(self, z, t, cond, *, at=None):
                return log_p.float().expand(int(at.sum()), -1)

        z = Tokens(torch.full((1, n), size), torch.ones(1, n, dtype=torch.bool))
        ids = ancestral(Zipf(), MaskProcess(size), grid(steps), z, NoCond(), rng.generator(0)).ids
        assert float(-log_p[ids].mean()) == pytest.approx(entropy, abs=4 * error)
        assert entropy == pytest.approx(7.57, abs=0.3)
