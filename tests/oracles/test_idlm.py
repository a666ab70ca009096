"""IDLM on a table that can be enumerated: its own code runs on every start, draw and mask pattern, weighted."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xdistill import rng
from xdistill.domain import clone
from xdistill.domains.toy import ToyDomain
from xdistill.domains.toy.tokens import TablePosterior, random_table, sequences
from xdistill.errors import UsageError
from xdistill.models import Batch, NoCond
from xdistill.objectives.idlm import IDLM
from xdistill.objectives.jumps import Jump, Start, data_start, jump
from xdistill.process import MaskProcess
from xdistill.roles import RoleView, phase_grads
from xdistill.samplers.mask import grid
from xdistill.state import Tokens
from xdistill.testing.harness import train
from xdistill.testing.oracles import At, mask_marginal

F64, V, L = torch.float64, 3, 2
PROCESS = MaskProcess(V, eps=0.0)
STATES = list(itertools.product(range(V + 1), repeat=L))
CORRELATED = random_table(V, L)
PARTS = (torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.1, 0.6, 0.3], dtype=F64))
INDEPENDENT = torch.outer(*PARTS).flatten()


def tokens(states):
    ids = torch.tensor(states)
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def index(z):
    return (z.ids * (V + 1) ** torch.arange(L - 1, -1, -1)).sum(1)


class Free(nn.Module):
    """A TokenModel with one free distribution for every state: logits [(V+1)^L, L, V]."""

    def __init__(self, log_p):
        super().__init__()
        self.logits = nn.Parameter(log_p.clone())

    @classmethod
    def posterior(cls, table, noise=0.0):
        log_p = TablePosterior(table, V, L)(tokens(STATES), torch.ones(len(STATES)), NoCond())
        return cls(log_p.clamp(min=-30) + noise * torch.randn(log_p.shape, generator=rng.generator("free"), dtype=F64))

    def forward(self, z_t, t, cond, *, at=None):
        log_p = self.logits.log_softmax(2)[index(z_t)]
        return log_p if at is None else log_p[at]


def starts(table, s):
    """(z_s, weight) of data noised to s; at 1 nothing is left."""
    return [(z, w) for z, w in zip(STATES, mask_marginal(table, V, L, 1 - s), strict=True) if w > 0]


class Rows:
    """Every (start, tokens shown, mask pattern) of a call from s, at time t; weights keep the graph of the student."""

    def __init__(self, student, table, s, r, t, everything=False):
        z_s, z_t, self.weight = [], [], []
        log_g = student(tokens(STATES), None, None)
        for z, w in starts(table, s):
            own = [i for i in range(L) if z[i] == V]
            can = range(L) if everything else own
            p = t if everything else t / s
            for hidden in itertools.chain(*(itertools.combinations(can, n) for n in range(len(can) + 1))):
                law = w * p ** len(hidden) * (1 - p) ** (len(can) - len(hidden))
                shown = [i for i in own if i not in hidden]
                for x in itertools.product(range(V), repeat=len(shown)):
                    drawn = {**dict(zip(shown, x, strict=True)), **dict.fromkeys(hidden, V)}
                    z_s.append(z)
                    z_t.append([drawn.get(i, z[i]) for i in range(L)])
                    g = log_g[STATES.index(z)]
                    self.weight.append(law * torch.stack([g[i, drawn[i]] for i in shown] or [g.sum() * 0]).sum().exp())
        n, self.weight = len(z_s), torch.stack(self.weight)
        start = Start(tokens(z_s), torch.full((n,), s, dtype=F64), torch.full((n,), r, dtype=F64))
        self.log_g = student(start.z, start.s, NoCond())
        own = PROCESS.masked(start.z)
        self.jump = Jump(start, self.log_g[own], tokens(z_t), torch.full((n,), t, dtype=F64))
        self.batch = Batch(start.z, NoCond())
        data = F.one_hot(start.z.ids.clamp(max=V - 1), V).double()
        label = torch.where(own[..., None], self.log_g.exp(), data)  # law of a hidden token
        self.hidden, self.label = PROCESS.masked(self.jump.z_t), label
        mass = torch.zeros(len(STATES), L, V, dtype=F64).index_add(
            0, index(self.jump.z_t), self.weight[:, None, None] * label
        )
        #: the exact denoiser of the student's law, [(V+1)^L, L, V]
        self.f = mass / mass.sum(2, keepdim=True).clamp(min=1e-300)

    def inverse_loss(self, teacher):
        """Loss(teacher; G) - min_f Loss(f; G) at t, a token; the graph reaches everything that depends on G."""
        z = self.jump.z_t
        f = self.f[index(z)].clamp(min=1e-300).log()
        ratio = (self.label * (f - teacher(z, self.jump.t, NoCond()).clamp(min=-1e3))).sum(2)
        return (self.weight * (ratio * self.hidden).sum(1)).sum() / self.jump.t[0] / L

    def critic(self):
        """A module that knows f."""
        return Free(self.f.clamp(min=1e-300).log().detach())

    def gradient(self, objective, student, teacher):
        per_sample = objective.student_loss(self.jump, self.critic(), teacher, self.batch).per_sample
        return torch.autograd.grad((self.weight.detach() * per_sample).sum(), student.logits, retain_graph=True)[0]


def idlm(steps=1, **options):
    return IDLM(PROCESS, steps=steps, **options)


@cache
def teacher(correlated=True):
    return TablePosterior(CORRELATED if correlated else INDEPENDENT, V, L)


PLACES = [(1.0, 0.0, 0.6), (1.0, 0.5, 0.7), (0.5, 0.0, 0.2)]


@pytest.mark.parametrize(("s", "r", "t"), PLACES)
@pytest.mark.parametrize("match", ["hop", "all"])
def test_the_gradient_is_exact(s, r, t, match):
    """With score, that of the enumerated objective, whose f* moves with the student: the envelope theorem."""
    student = Free.posterior(CORRELATED, noise=0.7)
    rows = Rows(student, CORRELATED, s, r, t, everything=match == "all")
    n = len(rows.weight)
    mine = rows.gradient(idlm(match=match, score=(n - 1) / n), student, teacher())  # the baseline leaves one of n out
    exact = torch.autograd.grad(rows.inverse_loss(teacher()), student.logits)[0]
    torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-12)
    assert exact.abs().max() > 1e-3


@pytest.mark.parametrize(("s", "r", "t"), PLACES)
@pytest.mark.parametrize("options", [{}, {"score": 1.0}, {"forward": 0.5}])
def test_zero_where_the_laws_are_equal_and_only_there(s, r, t, options):
    """Independent tokens: a few calls can be exact. A correlated table needs one token at a time."""
    exact, off = Free.posterior(INDEPENDENT), Free.posterior(INDEPENDENT, noise=0.3)
    for student, zero in ((exact, True), (off, False)):
        rows = Rows(student, INDEPENDENT, s, r, t)
        size = rows.gradient(idlm(**options), student, teacher(False)).abs().max()
        assert (size < 1e-12) if zero else (size > 1e-3)
    student = Free.posterior(CORRELATED)
    rows = Rows(student, CORRELATED, s, r, t)
    assert rows.gradient(idlm(**options), student, teacher()).abs().max() > 1e-4


def inverse_loss(student, table, steps, nodes=8):
    """The whole objective of a `steps`-call student: the mean over anchors and places in the hop."""
    x, weight = (torch.as_tensor(a, dtype=F64) for a in np.polynomial.legendre.leggauss(nodes))
    model = TablePosterior(table, V, L)
    total = 0.0
    for s, r in itertools.pairwise(grid(steps).tolist()):
        for u, w in zip((x + 1) / 2, weight / 2, strict=True):
            total = total + w / steps * Rows(student, table, s, r, float(r + (s - r) * u)).inverse_loss(model)
    return total


def test_one_call_is_the_divergence_of_its_law():
    """The chain rule: the integral over t is KL(product of the student's marginals || table), a token."""
    student = Free.posterior(CORRELATED, noise=0.5)
    g = student(tokens([(V, V)]), None, None)[0].exp()
    law = torch.outer(g[0], g[1]).flatten()
    exact = (law * (law / CORRELATED).log()).sum() / L
    torch.testing.assert_close(inverse_loss(student, CORRELATED, 1), exact, rtol=1e-10, atol=0)


def test_many_calls_of_the_teacher_itself_are_right():
    """One token at a time is exact: what is left falls with the square of a hop, so in sum with their number."""
    student = Free.posterior(CORRELATED)
    with torch.no_grad():
        left = [float(inverse_loss(student, CORRELATED, n, nodes=3)) for n in (1, 4, 16)]
    assert left[0] > 3 * left[1] > 9 * left[2] > 0


@pytest.mark.parametrize(("s", "r", "t"), PLACES)
def test_the_critic_learns_the_posterior_of_the_students_samples(s, r, t):
    for match in ("hop", "all"):
        rows = Rows(Free.posterior(CORRELATED, noise=0.7), CORRELATED, s, r, t, everything=match == "all")

        def loss(critic, rows=rows, match=match):
            return (rows.weight.detach() * idlm(match=match).critic_loss(rows.jump, critic, rows.batch)).sum()

        best = rows.critic()
        assert torch.autograd.grad(loss(best), best.logits)[0].abs().max() < 1e-10
        noise = torch.randn(best.logits.shape, generator=rng.generator(0), dtype=F64)
        assert loss(Free(best.logits.detach() + 0.1 * noise)) > loss(best) + 1e-4


def test_steps_against_the_gradient_lower_the_objective():
    student = Free.posterior(CORRELATED)
    before = float(inverse_loss(student, CORRELATED, 2).detach())
    for _ in range(20):
        gradient = 0
        for s, r in itertools.pairwise(grid(2).tolist()):
            for u in (0.2, 0.5, 0.8):
                rows = Rows(student, CORRELATED, s, r, r + (s - r) * u)
                gradient = gradient + rows.gradient(idlm(2), student, teacher()) / 6
        with torch.no_grad():
            student.logits -= 2.0 * gradient
    assert float(inverse_loss(student, CORRELATED, 2).detach()) < 0.9 * before


@pytest.mark.parametrize("match", ["hop", "all"])
def test_draws_have_the_enumerated_law(match):
    """The random draws of `loss` average to the enumeration over starts, tokens and patterns."""
    student, place, n = Free.posterior(CORRELATED, noise=0.7), 0.4, 20000
    objective = idlm(2, student_time=At(place), match=match)
    ends = [(s, r, place if match == "all" else r + (s - r) * place) for s, r in ((1.0, 0.5), (0.5, 0.0))]
    critic = Rows(student, CORRELATED, *ends[0], everything=match == "all").critic()
    exact = 0.0
    for end in ends:
        rows = Rows(student, CORRELATED, *end, everything=match == "all")
        out = objective.student_loss(rows.jump, critic, teacher(), rows.batch).per_sample
        exact += float((rows.weight * out).sum().detach()) / 2
    pick = torch.multinomial(CORRELATED, n, replacement=True, generator=rng.generator(0))
    batch = Batch(tokens(sequences(V, L)[pick].tolist()), NoCond())
    modules = {"student": student, "critic": critic, "teacher": teacher()}
    with phase_grads(modules, "student"):
        net = RoleView(modules, modules, "student", rng.generator("shared"))
        got = objective.loss(objective.phases(9)[1], batch, net, rng.generator("loss")).per_sample.detach()
    assert abs(float(got.mean()) - exact) < 4 * float(got.std()) / n**0.5
    assert float(got.std()) < 10


@pytest.mark.parametrize(("steps", "exact"), [(L, True), (1, False)])
def test_one_token_a_call_is_exact(steps, exact):
    """In a planned order L calls draw one token each: the table's posterior is its own best critic, on every draw."""
    process = MaskProcess(V, eps=0.0, order="spread")
    posterior = Free.posterior(CORRELATED)
    modules = {"student": clone(posterior), "critic": clone(posterior), "teacher": teacher()}
    batch = Batch(tokens(sequences(V, L)[:8].tolist()), NoCond())
    objective = IDLM(process, steps=steps)
    phase = objective.phases(9)[0]
    with phase_grads(modules, "critic"):
        net = RoleView(modules, modules, "critic", rng.generator("shared"))
        loss = objective.loss(phase, batch, net, rng.generator("loss")).per_sample.mean()
        gradient = torch.autograd.grad(loss, modules["critic"].logits)[0].abs().max()
    assert (gradient < 1e-12) if exact else (gradient > 1e-3)


class TestJump:
    def made(self, mask, given=None, junk=0, **options):
        ids = torch.where(mask, torch.arange(mask.numel()).view_as(mask) % V, junk)
        x0 = Tokens(ids, mask, given)
        start = data_start(PROCESS, x0, grid(2), rng.generator("start"))
        own = PROCESS.masked(start.z)
        model = ToyDomain({"task": "tokens", "length": mask.shape[1]}).network().double()
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p, std=0.3)
        log_g = model(start.z, start.s, NoCond(), at=own)
        t = start.r + (start.s - start.r) * 0.5
        made = jump(PROCESS, start, log_g, t, rng.generator("jump"), all_tokens=False)
        critic, exact = clone(model), clone(model)
        for p in critic.parameters():
            p.data += 0.1
        out = idlm(2, kl=0.1, entropy=0.1, score=1.0, **options).student_loss(made, critic, exact, Batch(x0, NoCond()))
        return x0, made, out.per_sample.detach()

    def test_padding_changes_nothing(self):
        mask = torch.arange(4)[None] < torch.tensor([4, 2, 3, 1])[:, None]
        (_, a, x), (_, b, y) = self.made(mask), self.made(mask, junk=2)
        torch.testing.assert_close(x, y, rtol=1e-12, atol=0)
        assert x.abs().max() > 1e-3
        assert torch.equal(a.z_t.ids[mask], b.z_t.ids[mask])

    def test_what_is_given_stays(self):
        mask = torch.ones(6, 4, dtype=torch.bool)
        given = torch.rand(6, 4, generator=rng.generator(0)) < 0.4
        x0, made, _ = self.made(mask, given)
        for z in (made.start.z, made.z_t):
            assert torch.equal(z.ids[given], x0.ids[given])
        assert PROCESS.masked(made.start.z).any()

    def test_only_generated_tokens_are_hidden_again(self):
        _, made, _ = self.made(torch.ones(64, 4, dtype=torch.bool))
        own, hidden = PROCESS.masked(made.start.z), PROCESS.masked(made.z_t)
        assert (hidden <= own).all()
        assert hidden.any()
        assert (own & ~hidden).any()
        assert torch.equal(made.z_t.ids[~own], made.start.z.ids[~own])


def test_options_are_checked():
    with pytest.raises(UsageError, match="did you mean 'hop'"):
        idlm(match="hops")
    with pytest.raises(UsageError, match="rollout=2"):
        idlm(rollout=2)


@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_a_student_of_two_calls_beats_the_teachers_own_two(rollout):
    domain = ToyDomain({"task": "tokens"})
    source, exact = domain.data(128, 0), domain.teacher()
    objective = IDLM(domain.process, steps=2, critic_updates=2, rollout=rollout, score=1.0)
    torch.manual_seed(0)
    modules = {"teacher": exact, "student": domain.network(), "critic": domain.network()}
    modules["student_ema"] = clone(modules["student"])
    lr = {"student": 1e-2, "critic": 2e-2}
    train(objective, modules, lambda i: source.batch(i, 0, 1), 120, lr=lr, betas=(0.0, 0.999), ema=0.95)
    request = domain.null_data(20000, 1).batch(0, 0, 1)
    with torch.no_grad():
        drawn = {
            name: objective.sample(modules[name], request.like, request.cond, rng.generator("sample"))
            for name in ("teacher", "student_ema")
        }
    distance = {name: domain.metrics(domain.decode(x))["total_variation"].value for name, x in drawn.items()}
    assert distance["student_ema"] < 0.85 * distance["teacher"]
