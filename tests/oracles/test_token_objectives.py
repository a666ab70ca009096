"""MDLM, SDTT and DCD on sequences that can be enumerated: expectations are exact sums through the objectives' code."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from xdistill import rng
from xdistill.domains.toy.tokens import TablePosterior, TokenNet, TokenSource, random_table, sequences
from xdistill.errors import UsageError
from xdistill.models import Batch, NoCond
from xdistill.objectives.dcd import DCD
from xdistill.objectives.mdlm import MDLM, mdlm_loss
from xdistill.objectives.rounds import DIVERGENCES
from xdistill.objectives.sdtt import SDTT, revealing_targets
from xdistill.process import MaskProcess
from xdistill.process.mask import uniforms
from xdistill.rng import Recorded
from xdistill.roles import RoleView
from xdistill.state import Tokens
from xdistill.testing import harness

F64 = torch.float64
V, L, M = 3, 2, 3
TABLE = random_table(V, L)
JOINT = TABLE.view(V, V)
MARGINALS = torch.stack([JOINT.sum(1), JOINT.sum(0)])
EXACT = TablePosterior(TABLE, V, L)
PROCESS = MaskProcess(M, eps=0.0)
STATES = torch.tensor(list(itertools.product(range(V + 1), repeat=L)))


class Lookup(nn.Module):
    """A TokenModel with a free law for each of the 16 states."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.seen = nn.Parameter(logits.clone()), []

    def forward(self, z_t, t, cond, *, at=None):
        self.seen.append((z_t, at))
        log_p = self.logits.log_softmax(-1)[z_t.ids[:, 0] * (V + 1) + z_t.ids[:, 1]]
        return log_p if at is None else log_p[at]


def crooked():
    """A teacher that is nobody's posterior, so that several steps of it are not one."""
    return Lookup(torch.randn(16, L, V, generator=torch.Generator().manual_seed(0), dtype=F64))


def law(model, *state):
    """The law of both positions in one state, [L, V]."""
    return model(tokens([state]), torch.ones(1), NoCond())[0].exp().detach()


def tokens(ids, **kw):
    ids = torch.as_tensor(ids)
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), **kw)


def expected(objective, student, teacher, x0, weights, draws):
    """(loss, its gradient by state) summed over nodes with the given weights."""
    modules = {"teacher": teacher, "student": student}
    net = RoleView(modules, modules, "student", rng.generator(0))
    out = objective.loss(objective.phases(0)[0], Batch(tokens(x0)), net, Recorded(draws))
    loss = (weights * out.per_sample).sum()
    return float(loss.detach()), torch.autograd.grad(loss, student.logits)[0]


def two_step_nodes(teacher):
    """All that one of two teacher steps from (m, m) at t = 1 can reveal: places, uniforms and their probabilities."""
    p = law(teacher, M, M)
    middle = p.cumsum(1) - p / 2
    nodes = list(itertools.product((0.25, 0.75), (0.25, 0.75), range(V), range(V)))
    reveal = torch.tensor([n[:2] for n in nodes], dtype=F64)
    draw = torch.stack([torch.stack([middle[0, a], middle[1, b]]) for *_, a, b in nodes])
    weights = torch.stack([p[0, a] * p[1, b] / 4 for *_, a, b in nodes])
    return weights, [reveal, draw]


def after_two_steps(teacher, mean):
    """[L, V]: what the teacher says of each token when two steps reveal it, averaged by `mean` over its laws."""
    p, out = law(teacher, M, M), []
    for i in range(L):
        states = [[w, M] if i else [M, w] for w in range(V)]
        later = torch.stack([law(teacher, *state)[i] for state in states])
        laws, weights = torch.cat([p[i][None], later]), torch.cat([torch.tensor([0.75], dtype=F64), p[1 - i] / 4])
        out.append(mean(laws, weights[:, None]))
    return torch.stack(out)


def arithmetic(laws, weights):
    return (weights * laws).sum(0) / weights.sum()


def geometric(laws, weights):
    return ((weights * laws.log()).sum(0) / weights.sum()).softmax(0)


MEANS = {"forward": arithmetic, "reverse": geometric}


class TestSDTT:
    x0 = torch.zeros(36, L, dtype=torch.long)

    def at(self, laws, teacher, **options):
        student = Lookup(torch.zeros(16, L, V, dtype=F64))
        student.logits.data[-1] = laws.log()
        weights, draws = two_step_nodes(teacher)
        return expected(SDTT(PROCESS, steps=1, **options), student, teacher, self.x0, weights, draws)

    @pytest.mark.parametrize("divergence", MEANS)
    def test_optimum_is_the_mean_of_what_two_steps_say(self, divergence):
        teacher = crooked()
        best = after_two_steps(teacher, MEANS[divergence])
        loss, gradient = self.at(best, teacher, divergence=divergence)
        assert gradient.abs().max() < 1e-12
        for other in (law(teacher, M, M), *(after_two_steps(teacher, m) for d, m in MEANS.items() if d != divergence)):
            worse, slope = self.at(other, teacher, divergence=divergence)
            assert worse > loss + 1e-4
            assert slope.abs().max() > 1e-3

    def test_an_exact_posterior_is_its_own_optimum_and_is_sharpened_by_the_backward_kl(self):
        marginals = law(EXACT, M, M)
        assert self.at(marginals, EXACT, divergence="forward")[1].abs().max() < 1e-12
        assert self.at(marginals, EXACT, divergence="reverse")[1].abs().max() > 1e-3
        entropy = lambda p: float(-(p * p.log()).sum())  # noqa: E731
        assert entropy(after_two_steps(EXACT, geometric)) < entropy(marginals)

    def test_one_call_is_off_by_the_total_correlation(self):
        """The best factorised law is the product of marginals; KL(data || it) = sum of entropies - joint entropy."""
        loss = self.at(MARGINALS, EXACT, divergence="forward")[1]
        assert loss.abs().max() < 1e-12
        product = torch.outer(*MARGINALS)
        correlation = -(MARGINALS * MARGINALS.log()).sum() + (JOINT * JOINT.log()).sum()
        assert float((JOINT * (JOINT / product).log()).sum()) == pytest.approx(float(correlation), rel=1e-12)
        assert correlation > 0.05
        n, model = 20000, Lookup(torch.zeros(16, L, V, dtype=F64))
        model.logits.data[-1] = MARGINALS.log()
        out = SDTT(PROCESS, steps=1).sample(model, tokens(torch.zeros(n, L).long()), NoCond(), rng.generator(0)).ids
        found = torch.bincount(out[:, 0] * V + out[:, 1], minlength=9) / n
        assert ((found - product.flatten()).abs() < 4 * (product * (1 - product) / n).sqrt().flatten()).all()

    def test_tokens_keep_the_law_of_the_step_that_revealed_them(self):
        teacher = TablePosterior(random_table(V, 3), V, 3)
        places = torch.tensor(
            [[0.0, 0.9, 0.5]], dtype=F64
        )  # the first step reveals the first token, the second the last
        draws = [torch.tensor([u], dtype=F64) for u in ([0.1] * 3, [0.9] * 3)]
        times = [torch.tensor([t], dtype=F64) for t in (1, 2 / 3, 1 / 3, 0)]
        z = tokens([[M, M, M]])
        target = revealing_targets(teacher, PROCESS, times, z, places, NoCond(), Recorded(draws))
        say = lambda *ids: teacher(tokens([ids]), times[0], NoCond())[0]  # noqa: E731
        a = int((say(M, M, M)[0].exp().cumsum(0) < 0.1).sum())
        c = int((say(a, M, M)[2].exp().cumsum(0) < 0.9).sum())
        torch.testing.assert_close(target[0], say(M, M, M)[0])
        torch.testing.assert_close(target[2], say(a, M, M)[2])
        torch.testing.assert_close(target[1], say(a, M, c)[1])
        assert (target[1] - say(M, M, M)[1]).abs().max() > 0.01

    def test_rounds_lengthen_the_step_to_the_student_s(self):
        o = SDTT(PROCESS, steps=8, substeps=3, rounds=3, round_steps=10)
        assert [o.calls(o.phases(step)[0]) for step in (0, 9, 10, 20, 1000)] == [72, 72, 24, 8, 8]
        assert [step for step in range(50) if o.promotions(step)] == [10, 20]
        assert o.promotions(10) == {"target": "student_ema"}
        assert [r.name for r in o.roles] == ["teacher", "target", "student"]
        assert [r.name for r in SDTT(PROCESS).roles] == ["teacher", "student"]

    def test_training_in_rounds_reaches_the_two_step_law_of_the_last_target(self):
        """The target is what the student was, and the student ends where two steps of the target go."""
        torch.manual_seed(0)
        o = SDTT(PROCESS, steps=1, rounds=2, round_steps=100, divergence="forward", times="continuous")
        student, target = TokenNet(V, L), TokenNet(V, L)
        modules = {"teacher": crooked(), "target": target, "student": student, "student_ema": TokenNet(V, L)}
        source = TokenSource(TABLE, V, L, 128, 0)
        harness.train(o, modules, lambda i: source.batch(i, 0, 1), 350, lr=1e-2, ema=0.98)
        assert not any(torch.equal(p, q) for p, q in zip(target.parameters(), student.parameters(), strict=True))
        # at t = 1 the target has been asked at 1 and 1/2
        ask = lambda net, t, *s: net(tokens([s]), torch.tensor([t]), NoCond())[0].exp().detach()  # noqa: E731
        p, best = ask(target, 1.0, M, M).double(), []
        for i in range(L):
            later = torch.stack([ask(target, 0.5, *([w, M] if i else [M, w]))[i] for w in range(V)]).double()
            again = ask(target, 0.5, M, M)[i].double()
            best.append(0.5 * p[i] + 0.25 * again + 0.25 * (p[1 - i] @ later))
        assert (ask(modules["student_ema"], 1.0, M, M) - torch.stack(best)).abs().max() < 0.03
        assert (law(modules["teacher"], M, M) - torch.stack(best)).abs().max() > 0.05


class TestDCD:
    """Two anchors: t = 1 with s = 1/2 in the first half of a batch, t = 1/2 with s = 0 in the second."""

    pairs = tuple(itertools.product(range(9), (0.25, 0.75), (0.25, 0.75)))
    x0 = sequences(V, L)[[i for i, *_ in pairs] * 2]
    u = torch.tensor([us for _, *us in pairs] * 2, dtype=F64)
    weights = TABLE[[i for i, *_ in pairs] * 2] / 4

    def at(self, logits, teacher, **options):
        return expected(DCD(PROCESS, steps=2, **options), Lookup(logits), teacher, self.x0, self.weights, [self.u])

    def test_a_posterior_is_consistent(self):
        best = torch.stack([law(EXACT, *s) for s in STATES.tolist()]).clamp(min=1e-300).log()
        assert self.at(best, EXACT, divergence="forward")[1].abs().max() < 1e-12
        worse = best + torch.randn(best.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        assert self.at(worse, EXACT, divergence="forward")[1].abs().max() > 1e-3
        assert self.at(worse, EXACT, divergence="forward")[0] > self.at(best, EXACT, divergence="forward")[0]

    @pytest.mark.parametrize("divergence", MEANS)
    def test_optimum_from_full_masks(self, divergence):
        """Kept masks: the mean over what the teacher sees. With forward KL data_weight 1 adds the data's own law: half
        the tokens at t = 1, and the quarter of the pairs that t = 1/2 masks too.
        """
        teacher, logits = crooked(), torch.zeros(16, L, V, dtype=F64)
        forward = divergence == "forward"
        for i in range(L):
            later = torch.stack([law(teacher, *([w, M] if i else [M, w]))[i] for w in range(V)])
            laws = torch.cat([law(teacher, M, M)[i][None], later])
            weights = torch.cat([torch.tensor([0.5], dtype=F64), MARGINALS[1 - i] / 2])
            best = MEANS[divergence](laws, weights[:, None])
            logits[-1, i] = ((0.5 * best + 0.75 * MARGINALS[i]) / 1.25 if forward else best).log()
        gradient = self.at(logits, teacher, divergence=divergence, data_weight=float(forward))[1]
        assert gradient[-1].abs().max() < 1e-12
        logits[-1, 0, 0] += 0.1
        gradient = self.at(logits, teacher, divergence=divergence, data_weight=float(forward))[1]
        assert gradient[-1].abs().max() > 1e-3

    def test_the_teacher_sees_a_superset_of_the_same_sequence(self):
        teacher, student = crooked(), crooked()
        modules = {"teacher": teacher, "student": student}
        x0 = TokenSource(TABLE, V, L, 64, 0).batch(0, 0, 1)
        for step in range(5):
            net = RoleView(modules, modules, "student", rng.generator(step))
            o = DCD(PROCESS, steps=4, times="continuous")
            o.loss(o.phases(0)[0], x0, net, rng.generator(step))
            (z_s, still), (z_t, at) = teacher.seen[-1], student.seen[-1]
            assert (still <= at).all()
            assert still.sum() < at.sum()
            assert torch.equal(z_s.ids[~still], x0.like.ids[~still])
            assert torch.equal(z_t.ids[~at], x0.like.ids[~at])

    def test_a_small_network_gets_there(self):
        torch.manual_seed(0)
        net, source = TokenNet(V, L), TokenSource(TABLE, V, L, 256, 0)
        o = DCD(PROCESS, steps=2, divergence="forward")
        modules = {"teacher": EXACT, "student": net, "student_ema": TokenNet(V, L)}
        harness.train(o, modules, lambda i: source.batch(i, 0, 1), 400, lr=1e-2, ema=0.98)
        ask = lambda t, *s: modules["student_ema"](tokens([s]), torch.tensor([t]), NoCond())[0].exp()  # noqa: E731
        assert (ask(1.0, M, M) - MARGINALS).abs().max() < 0.03
        for w in range(V):
            assert (ask(0.5, w, M)[1] - law(EXACT, w, M)[1]).abs().max() < 0.05


class TestMDLM:
    def nodes(self):
        """Gauss nodes of t, masks and sequences: E over them is exact, the integrand being a polynomial of t."""
        nodes = itertools.product((0.5 - 12**-0.5, 0.5 + 12**-0.5), (0, 1), (0, 1), range(9))
        t, a, b, x = (torch.tensor(v) for v in zip(*nodes, strict=True))
        t, masked = t.double(), torch.stack([a, b], 1).double()
        weights = 0.5 * TABLE[x] * (masked * t[:, None] + (1 - masked) * (1 - t[:, None])).prod(1)
        return t, masked, sequences(V, L)[x], weights

    def elbo(self, model):
        t, masked, x0, weights = self.nodes()
        return (weights * mdlm_loss(model, PROCESS, tokens(x0), t, NoCond(), Recorded([masked]))).sum()

    def test_the_loss_of_the_posterior_is_the_entropy(self):
        """The weight is float32, hence the tolerance."""
        entropy = -float((TABLE * TABLE.log()).sum())
        assert float(self.elbo(EXACT)) == pytest.approx(entropy, rel=1e-7)
        student = Lookup(torch.stack([law(EXACT, *s) for s in STATES.tolist()]).clamp(min=1e-300).log())
        assert torch.autograd.grad(self.elbo(student), student.logits)[0].abs().max() < 1e-7
        other = crooked()
        assert self.elbo(other) > entropy + 0.1
        assert torch.autograd.grad(self.elbo(other), other.logits)[0].abs().max() > 1e-2

    def test_stratified_draws_agree(self):
        net, n = RoleView({"student": EXACT}, {"student": EXACT}, "student", rng.generator(0)), 8192
        batch = TokenSource(TABLE, V, L, n, 0).batch(0, 0, 1)
        o = MDLM(PROCESS)
        per_sample = o.loss(o.phases(0)[0], batch, net, rng.generator(1)).per_sample * L
        entropy = -float((TABLE * TABLE.log()).sum())
        assert abs(float(per_sample.mean()) - entropy) < 4 * float(per_sample.std()) / n**0.5


OBJECTIVES = [SDTT(PROCESS, steps=2), DCD(PROCESS, steps=2), SDTT(PROCESS, steps=2, times="continuous", substeps=3)]


def per_sample(objective, x0, generator, seed=0):
    torch.manual_seed(0)
    net = {role: TokenNet(V, 8).double() for role in ("teacher", "student")}
    view = RoleView(net, net, "student", rng.generator(seed))
    return objective.loss(objective.phases(0)[0], Batch(x0), view, generator).per_sample


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["sdtt", "dcd", "continuous"])
class TestInvariances:
    ids = torch.randint(V, (6, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1, 5, 2])[:, None]

    def test_padding(self, objective):
        x0 = Tokens(self.ids, self.mask)
        wide = Tokens(torch.cat([self.ids, self.ids[:, :3]], 1), torch.cat([self.mask, self.mask[:, :3] & False], 1))
        for seed in range(3):
            a, b = (per_sample(objective, x, rng.generator(seed), seed) for x in (x0, wide))
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
            assert (a > 0).any()

    def test_order_of_the_batch(self, objective):
        """At one time for all: samples keep their losses when they and their draws change places."""
        objective, order = replace(objective, steps=1, times="anchors"), torch.tensor([3, 0, 5, 1, 4, 2])
        draws = [torch.rand(6, 5, generator=torch.Generator().manual_seed(i), dtype=F64) for i in range(5)]
        a = per_sample(objective, Tokens(self.ids, self.mask), Recorded(draws))
        b = per_sample(objective, Tokens(self.ids[order], self.mask[order]), Recorded([u[order] for u in draws]))
        torch.testing.assert_close(b, a[order])

    def test_given_tokens_are_never_predicted(self, objective):
        given = torch.zeros(64, L, dtype=torch.bool)
        given[:, 0] = True
        x0 = replace(TokenSource(TABLE, V, L, 64, 0).batch(0, 0, 1).like, given=given)
        teacher, student = crooked(), crooked()
        view = RoleView({"teacher": teacher, "student": student}, {"student": student}, "student", rng.generator(0))
        loss = objective.loss(objective.phases(0)[0], Batch(x0), view, rng.generator(0)).per_sample
        loss.sum().backward()
        for z, at in teacher.seen + student.seen:
            assert not (at & given).any()
            assert torch.equal(z.ids[given], x0.ids[given])
        assert student.logits.grad[:, 0].abs().max() == 0
        assert student.logits.grad[:, 1].abs().max() > 0

    def test_nothing_masked_is_no_loss(self, objective):
        ids = self.ids[:, :L]
        student = crooked()
        view = RoleView({"teacher": crooked(), "student": student}, {"student": student}, "student", rng.generator(0))
        x0 = tokens(ids, given=torch.ones_like(ids, dtype=torch.bool))
        loss = objective.loss(objective.phases(0)[0], Batch(x0), view, rng.generator(0)).per_sample
        loss.sum().backward()  # and every rank still takes part in the backward pass
        assert not loss.any()


def test_uniforms_do_not_know_the_padding():
    like = Tokens(torch.zeros(3, 4).long(), torch.arange(4) < torch.tensor([4, 2, 3])[:, None])
    wide = Tokens(torch.zeros(3, 7).long(), torch.arange(7) < torch.tensor([4, 2, 3])[:, None])
    for make in (lambda: rng.generator(0), lambda: rng.per_sample(0, range(3))):
        a, b = uniforms(like, make()), uniforms(wide, make())
        assert torch.equal(a, b[:, :4])
        assert (a[like.mask] > 0).all()
        assert not b[~wide.mask].any()


@pytest.mark.parametrize("never", [-1e6, float("-inf")])
def test_divergences_ignore_impossible_tokens(never):
    """Values of the formulas over possible tokens, finite gradients, and zero only at equality."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=g, dtype=F64).log_softmax(1) for _ in range(2))
    p, q = student.exp(), teacher.exp()
    values = {
        "reverse": (p * (p / q).log()).sum(1),
        "forward": (q * (q / p).log()).sum(1),
        "mse": ((student - teacher) ** 2).mean(1),
        "tv": (p - q).abs().sum(1) / 2,
    }
    column = torch.full((5, 1), never, dtype=F64)
    for name in DIVERGENCES:
        o = SDTT(PROCESS, divergence=name)
        wide = torch.cat([student, column], 1).requires_grad_()
        gap = o.gap(wide, torch.cat([teacher, column], 1))
        torch.testing.assert_close(gap, values[name])
        assert torch.autograd.grad(gap.sum(), wide)[0].isfinite().all()
        assert not o.gap(wide, wide).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "revers"}, "did you mean 'reverse'"),
        ({"times": "grid"}, "unknown times 'grid'"),
        ({"refresh": "teacher"}, "unknown refresh"),
        ({"rounds": 0}, "rounds=0: expected an integer"),
        ({"substeps": 1.5}, "substeps=1.5: expected an integer"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_wrong_options_say_what_is_right(options, message):
    with pytest.raises(UsageError, match=message):
        SDTT(PROCESS, **options)
