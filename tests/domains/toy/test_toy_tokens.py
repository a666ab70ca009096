"""Toy tokens: law, posterior and transitions by enumeration."""

import itertools

import numpy as np
import pytest
import torch

from xdistill import rng
from xdistill.domains.toy import ToyDomain
from xdistill.domains.toy.tokens import TablePosterior, TokenNet, random_table, sequences
from xdistill.models import NoCond
from xdistill.process import MaskProcess
from xdistill.state import Tokens
from xdistill.testing.oracles import mask_marginal, mask_posterior

F64 = torch.float64


class TestTokens:
    V, L = 3, 2
    table = random_table(3, 2)

    def states(self):
        return list(itertools.product(range(self.V + 1), repeat=self.L))

    def test_posterior_by_enumeration(self):
        model = TablePosterior(self.table, self.V, self.L)
        z = Tokens(torch.tensor(self.states()), torch.ones(16, self.L, dtype=torch.bool))
        out = model(z, torch.full((16,), 0.5), NoCond()).exp()
        for row, state in zip(out, self.states(), strict=True):
            torch.testing.assert_close(row, mask_posterior(self.table, self.V, state), rtol=1e-12, atol=1e-15)

    def test_corruption_has_the_enumerated_law(self):
        process, n, t = MaskProcess(self.V, eps=0.0), 60000, 0.4
        pick = torch.multinomial(self.table, n, replacement=True, generator=rng.generator(0))
        clean = Tokens(sequences(self.V, self.L)[pick], torch.ones(n, self.L, dtype=torch.bool))
        z = process.corrupt(clean, torch.full((n,), t), rng.generator(1)).ids
        counts = torch.bincount(z[:, 0] * (self.V + 1) + z[:, 1], minlength=16) / n
        exact = mask_marginal(self.table, self.V, self.L, 1 - t)
        assert float(exact.sum()) == pytest.approx(1, abs=1e-12)
        assert ((counts - exact).abs() < 4 * (exact * (1 - exact) / n).sqrt() + 1e-12).all()

    def test_transitions_compose(self):
        """Masking r -> t keeps a token with probability keep_t / keep_r: the marginal at r goes to the one at t."""
        keep_r, keep_t = 0.7, 0.3
        kernel = torch.zeros(16, 16, dtype=F64)
        for (i, z_r), (j, z_t) in itertools.product(enumerate(self.states()), repeat=2):
            ratio = keep_t / keep_r
            terms = [
                (a == b) if a == self.V else ratio * (a == b) + (1 - ratio) * (b == self.V)
                for a, b in zip(z_r, z_t, strict=True)
            ]
            kernel[i, j] = float(np.prod(terms))
        marginal = [mask_marginal(self.table, self.V, self.L, k) for k in (keep_r, keep_t)]
        torch.testing.assert_close(marginal[0] @ kernel, marginal[1], rtol=1e-12, atol=1e-15)

    def test_many_steps_sample_the_table_and_one_step_its_marginals(self):
        """Unmasking one token at a time is exact; both at once is the product of marginals."""
        domain = ToyDomain({"task": "tokens"})
        batch, sample = domain.plan(range(20000), 0), domain.teacher_samplers()["reference"]
        fine, coarse = (
            domain.metrics(domain.decode(sample(domain.teacher(), batch, rng.generator(0), steps=s))) for s in (64, 1)
        )
        p = self.table.view(self.V, self.V)
        product = float(0.5 * (p - p.sum(1, keepdim=True) * p.sum(0)).abs().sum())
        assert fine["total_variation"].value < 0.02
        assert coarse["total_variation"].value == pytest.approx(product, abs=0.015)

    def test_network(self):
        """Normalised, copies what it sees, and learns the posterior."""
        torch.manual_seed(0)
        net, exact = TokenNet(self.V, self.L), TablePosterior(self.table, self.V, self.L)
        z = Tokens(torch.tensor(self.states()), torch.ones(16, self.L, dtype=torch.bool))
        t, target = torch.full((16,), 0.5), exact(z, torch.full((16,), 0.5), NoCond()).exp()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        masked = z.ids == self.V
        for _ in range(300):
            optimizer.zero_grad()
            log_p = net(z, t, NoCond())
            (-(target[masked] * log_p[masked]).sum(1)).mean().backward()
            optimizer.step()
        out = net(z, t, NoCond()).exp()
        torch.testing.assert_close(out.sum(2), torch.ones(16, self.L))
        assert torch.equal(out[~masked], torch.eye(self.V)[z.ids[~masked]])
        assert float((out - target).detach().abs().max()) < 0.05
