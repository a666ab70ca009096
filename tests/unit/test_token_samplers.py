"""Token samplers: what no sampler may touch, what a sample may depend on, how many calls they make."""

import itertools

import pytest
import torch

from xdistill import rng
from xdistill.domains.toy.tokens import TokenNet
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.process import MaskProcess
from xdistill.rng import Recorded
from xdistill.samplers.draws import TokenDraw, categorical, token_uniforms
from xdistill.samplers.mask import METHODS, ancestral, grid, reveal_steps, sample_tokens
from xdistill.samplers.mask_confidence import entropy_bounded, threshold, top_k
from xdistill.samplers.mask_order import first_hitting, spread
from xdistill.samplers.mask_remask import remdm
from xdistill.samplers.mask_reveal import LEAST_ROWS
from xdistill.state import Tokens

V, L = 5, 12
PROCESS = MaskProcess(V)
CASES = [(name, {}) for name in METHODS] + [
    ("ancestral", {"precision": "paper_fp32"}),
    ("ancestral", {"last": "argmax"}),
    ("analytic", {"precision": "paper_fp32"}),
    ("spread", {"order": "random"}),
    ("spread", {"order": "left_to_right"}),
    ("psi", {"kappa": 0.0}),
    *[("remdm", {"schedule": s, "eta": 0.5}) for s in ("cap", "rescale", "conf", "loop")],
    ("confidence", {"block": 5}),
    ("threshold", {"confidence": 0.4, "block": 5}),
    ("entropy_bounded", {"gamma": 2.0, "block": 5}),
]
EVERY = pytest.mark.parametrize(
    ("method", "options"), CASES, ids=[f"{m}-{'-'.join(map(str, o.values()))}" for m, o in CASES]
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return TokenNet(V, 2 * L).double()


def sequences(batch, width=L, lengths=None, given=None):
    """Tokens of the given lengths, token i % V at position i."""
    ids = (torch.arange(width) % V).expand(batch, width)
    lengths = torch.as_tensor(lengths or [width] * batch)
    mask = torch.arange(width)[None] < lengths[:, None]
    return Tokens(ids.masked_fill(~mask, 1), mask, None if given is None else given.expand(batch, width) & mask)


def run(net, like, indices, method, options, steps=4, **kw):
    out = sample_tokens(net, PROCESS, steps, like, NoCond(), rng.per_sample(7, indices), method=method, **kw, **options)
    return out.ids


class Watch:
    """Counts forward calls of a network, and remembers the rows and times of each."""

    def __init__(self, net):
        self.rows, self.times, self.net = [], [], net

    def __enter__(self):
        self.hook = self.net.register_forward_pre_hook(self._see)
        return self

    def _see(self, _, args):
        self.rows.append(args[0].batch)
        self.times.append(args[1].clone())

    def __exit__(self, *_):
        self.hook.remove()


class TestEverySampler:
    @EVERY
    def test_reveals_all_but_touches_nothing_given_or_padded(self, net, method, options):
        given = torch.zeros(L, dtype=torch.bool)
        given[[0, 1, 6, 11]] = True
        like = sequences(6, lengths=[12, 12, 7, 9, 3, 2], given=given)
        ids = run(net, like, range(6), method, options)
        assert torch.equal(ids[~like.free], like.ids[~like.free])
        assert ((ids[like.mask] >= 0) & (ids[like.mask] < V)).all()
        assert not torch.equal(ids, run(net, like, range(6, 12), method, options))

    @EVERY
    def test_tokens_visible_at_the_start_stay(self, net, method, options):
        like = sequences(6)
        visible = torch.rand(6, L, generator=rng.generator(0)) < 0.4
        z = like.with_ids(torch.where(visible, like.ids, V))
        out = METHODS[method](net, PROCESS, grid(5), z, NoCond(), rng.per_sample(0, range(6)), **options)
        assert torch.equal(out.ids[visible], like.ids[visible])
        assert not PROCESS.masked(out).any()

    @EVERY
    def test_a_sample_depends_on_its_generator_alone(self, net, method, options):
        lengths = [12, 9, 12, 5, 12, 12, 3, 12]
        whole = run(net, sequences(8, lengths=lengths), range(8), method, options)
        part = [6, 1, 2, 7]
        alone = run(net, sequences(4, lengths=[lengths[i] for i in part]), part, method, options)
        assert torch.equal(whole[part], alone)

    @EVERY
    def test_padding_changes_nothing(self, net, method, options):
        lengths = [12, 8, 5, 11]
        narrow = run(net, sequences(4, lengths=lengths), range(4), method, options)
        wide = run(net, sequences(4, 2 * L, lengths=lengths), range(4), method, options)
        valid = sequences(4, lengths=lengths).mask
        assert torch.equal(wide[:, :L][valid], narrow[valid])

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("steps", [1, 3, 4, 30])
    def test_number_of_calls(self, net, method, steps):
        with Watch(net) as seen:
            run(net, sequences(64), range(64), method, {}, steps)
        calls = len(seen.rows)
        if method == "first_hitting":
            assert calls == L
        elif method in ("threshold", "entropy_bounded"):
            assert calls <= min(steps, L)
        else:
            one_a_token = method in ("spread", "confidence", "margin", "entropy")
            assert calls == min(steps, L) if one_a_token else calls == steps

    def test_temperature_zero_is_the_most_likely(self, net):
        a, b = (
            ancestral(net, PROCESS, grid(1), all_masked(4), NoCond(), rng.per_sample(s, range(4)), draw=TokenDraw(0))
            for s in (0, 1)
        )
        likely = net(all_masked(4), torch.ones(4), NoCond()).argmax(2)
        assert torch.equal(a.ids, likely)
        assert torch.equal(b.ids, likely)

    def test_last_call_may_be_greedy(self, net):
        z = sample_tokens(net, PROCESS, 1, sequences(8), NoCond(), rng.per_sample(0, range(8)), last="argmax")
        assert torch.equal(z.ids, net(all_masked(8), torch.ones(8), NoCond()).argmax(2))

    def test_unknown_names_and_values(self, net):
        like, g = sequences(2), rng.generator(0)
        for options, message in (
            ({"method": "ancestrall"}, "did you mean 'ancestral'"),
            ({"method": "remdm", "etta": 1}, "unknown option 'etta' of method 'remdm': did you mean 'eta'"),
            ({"method": "remdm", "schedule": "caps"}, "expected cap, rescale, conf, loop"),
            ({"method": "remdm", "eta": 2.0}, "eta=2.0"),
            ({"method": "psi", "kappa": 1.5}, "kappa=1.5"),
            ({"method": "spread", "order": "far"}, "order=far"),
            ({"method": "confidence", "block": -1}, "block=-1"),
            ({"method": "entropy_bounded", "gamma": -1}, "gamma=-1"),
            ({"precision": "fp16"}, "float64 or paper_fp32"),
            ({"last": "mode"}, "draw or argmax"),
            ({"times": 3}, "unknown option 'times'"),
        ):
            with pytest.raises(UsageError, match=message):
                sample_tokens(net, PROCESS, 2, like, NoCond(), g, **options)
        with pytest.raises(UsageError, match="at least one"):
            grid(0)
        with pytest.raises(UsageError, match="top_p=0"):
            TokenDraw(top_p=0)


def all_masked(batch, length=L):
    ids = torch.full((batch, length), V)
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


class TestDraws:
    @pytest.mark.parametrize("size", [1, 3, 64, 65, 1000])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_grid_of_uniforms_gives_each_outcome_its_probability(self, size, dtype):
        g, n = rng.generator(1), 40_000
        p = torch.rand(size, generator=g, dtype=dtype) ** 3 * (torch.rand(size, generator=g) < 0.6)
        p[size // 2] = 0.3
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        counts = torch.bincount(categorical(p.expand(n, -1), u), minlength=size)
        assert (counts / n - p / p.sum()).abs().max() < 2 / n
        assert counts[p == 0].sum() == 0

    def test_the_ends_of_the_unit_interval_never_give_outcomes_of_weight_zero(self):
        p = torch.zeros(1, 200)
        p[0, [3, 70]] = torch.tensor([0.1, 0.7])
        assert categorical(p, torch.tensor([0.0], dtype=torch.float64)) == 3
        assert categorical(p, torch.tensor([1 - 2.0**-53], dtype=torch.float64)) == 70

    def test_chunks_change_nothing(self, monkeypatch):
        log_p = torch.randn(50, 30, generator=rng.generator(0)).log_softmax(1)
        u = torch.rand(50, generator=rng.generator(1), dtype=torch.float64)
        whole = TokenDraw()(log_p, u)
        monkeypatch.setattr("xdistill.samplers.draws.CHUNK", 90)
        assert torch.equal(TokenDraw()(log_p, u), whole)

    def test_top_p_keeps_the_smallest_set(self):
        p = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]])
        for top_p, kept in ((0.3, [1]), (0.4, [1]), (0.41, [1, 3]), (0.7, [1, 3]), (0.8, [1, 3, 4]), (1.0, range(5))):
            inside = TokenDraw(top_p=top_p).probabilities(p.log())
            assert inside.nonzero()[:, 1].tolist() == list(kept)
            torch.testing.assert_close(inside.sum(), torch.tensor(1.0))

    def test_top_p_of_flat_laws_looks_beyond_the_first_outcomes(self):
        p = torch.full((2, 3000), 1 / 3000)
        p[0], p[0, :2] = 0, 0.5
        inside = TokenDraw(top_p=0.9).probabilities(p.log().log_softmax(1))
        assert (inside[0] > 0).sum() == 2
        assert (inside[1] > 0).sum() >= 2700

    def test_temperature_divides_logits(self):
        log_p = torch.randn(3, 7, generator=rng.generator(0)).log_softmax(1)
        torch.testing.assert_close(TokenDraw(0.5).probabilities(log_p), (2 * log_p).softmax(1))

    def test_uniforms_of_a_row_ignore_padding_and_other_rows(self):
        wide = sequences(3, 20, lengths=[4, 20, 7])
        u, v = token_uniforms(wide, rng.per_sample(0, [5, 6, 7]), 2)
        a, b = token_uniforms(sequences(1, 7), rng.per_sample(0, [7]), 2)
        assert torch.equal(u[2, :7], a[0])
        assert torch.equal(v[2, :7], b[0])
        assert not u[2, 7:].any()
        single = token_uniforms(wide, rng.generator(0))[0]
        assert single.dtype == torch.float64
        assert single[wide.mask].unique().numel() == 31


class TestPlans:
    def test_ancestral_steps_are_the_schedule(self):
        """A grid of uniforms falls into each call as often as keep rises there."""
        times = torch.tensor([1.0, 0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
        u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        share = torch.bincount(reveal_steps(PROCESS, times, u), minlength=5) / 10_000
        torch.testing.assert_close(share.double(), torch.tensor([0.3, 0.5, 0.1, 0.1, 0.0]).double(), rtol=0, atol=2e-4)
        partial = reveal_steps(PROCESS, times[:3], u)  # ends at t = 0.2 with a fifth still masked
        assert float((partial == 2).double().mean()) == pytest.approx(0.2, abs=2e-4)

    def test_rows_without_reveals_are_not_called(self, net):
        with Watch(net) as seen:
            run(net, sequences(24), range(24), "ancestral", {}, 100)
        assert sum(seen.rows) < 0.25 * 24 * len(seen.rows)
        assert min(seen.rows) == LEAST_ROWS

    def test_replay_calls_rows_again_only_if_they_changed(self, net):
        net.timed = False
        with Watch(net) as seen:
            run(net, sequences(8), range(8), "ancestral", {"precision": "paper_fp32"}, 100)
        del net.timed
        with Watch(net) as timed:
            run(net, sequences(8), range(8), "ancestral", {"precision": "paper_fp32"}, 100)
        assert sum(seen.rows) < 0.6 * sum(timed.rows)

    def test_recorded_uniforms(self, net):
        u = torch.linspace(0, 0.99, 4 * L, dtype=torch.float64).view(2, 2, L)
        a, b = (ancestral(net, PROCESS, grid(3), all_masked(2), NoCond(), Recorded(u)).ids for _ in range(2))
        assert torch.equal(a, b)

    def test_first_hitting_times_are_order_statistics(self, net):
        """The k-th event of n is the k-th largest of n uniforms, of mean (n + 1 - k) / (n + 1)."""
        n = 4000
        with Watch(net) as seen:
            first_hitting(net, PROCESS, grid(1), all_masked(n, 4), NoCond(), rng.generator(0))
        times = torch.stack(seen.times)
        k = torch.arange(1, 5, dtype=torch.float64)
        mean, std = (5 - k) / 5, (k * (5 - k) / (25 * 6)).sqrt()
        assert ((times.mean(1) - mean).abs() < 4 * std / n**0.5).all()
        assert (times.diff(dim=0) <= 0).all()

    @pytest.mark.parametrize(("length", "steps"), [(64, 8), (128, 16), (16, 16)])
    def test_spread_puts_the_tokens_of_a_call_at_equal_distances(self, length, steps):
        calls = reveals(spread, length, steps)
        for row in range(4):
            for call in calls:
                at = call[row].nonzero()[:, 0]
                gaps = torch.cat([at.diff(), at[:1] + length - at[-1:]])
                assert len(at) == length // steps
                assert (gaps == steps).all()
        assert len({tuple(calls[0][i].nonzero()[:, 0].tolist()) for i in range(8)}) > 1

    def test_left_to_right(self):
        for k, call in enumerate(reveals(spread, 12, 4, order="left_to_right")):
            assert (call.nonzero()[:, 1].view(8, 3) == torch.arange(3 * k, 3 * k + 3)).all()

    def test_blocks_are_finished_in_order(self):
        calls = reveals(top_k, 12, 6, block=4)
        for k, call in enumerate(calls):
            assert (call.nonzero()[:, 1] // 4 == k // 2).all()
            assert (call.sum(1) == 2).all()


def reveals(sampler, length, steps, **options):
    """[8, L] bool of each call: what it revealed, of a network that knows nothing."""

    class Uniform(torch.nn.Module):
        def forward(self, z, t, cond, *, at=None):
            states.append(z.ids)
            return torch.full((int(at.sum()), V), 1 / V).log()

    states: list[torch.Tensor] = []
    out = sampler(
        Uniform(), PROCESS, grid(steps), all_masked(8, length), NoCond(), rng.per_sample(3, range(8)), **options
    )
    states.append(out.ids)
    return [(a == V) & (b != V) for a, b in itertools.pairwise(states)]


class Label:
    """A condition: the rows of a call belong to it, so that all of them go through the network."""

    def drop(self):
        return self

    def to(self, device):
        return self


class Law(torch.nn.Module):
    """A network that predicts the same law [L, V] whatever it sees."""

    def __init__(self, p):
        super().__init__()
        self.log_p = torch.as_tensor(p).log()

    def forward(self, z, t, cond, *, at=None):
        return self.log_p.expand(z.batch, -1, -1)[at]


class TestConfidence:
    SURE = ((0.97, 0.03), (0.6, 0.4), (0.95, 0.05), (0.5, 0.5))

    def reveal_order(self, sampler, steps, **options):
        seen = []
        law = Law(self.SURE)
        law.register_forward_pre_hook(lambda _, args: seen.append(args[0].ids[0].clone()))
        z = Tokens(torch.full((5, 4), V), torch.ones(5, 4, dtype=torch.bool))
        out = sampler(law, PROCESS, grid(steps), z, NoCond(), rng.generator(0), draw=TokenDraw(0), **options)
        seen.append(out.ids[0])
        return [((a == V) & (b != V)).nonzero()[:, 0].tolist() for a, b in itertools.pairwise(seen)]

    @pytest.mark.parametrize("score", ["probability", "margin", "entropy"])
    def test_surest_first(self, score):
        assert self.reveal_order(top_k, 4, score=score) == [[0], [2], [1], [3]]
        assert self.reveal_order(top_k, 2, score=score) == [[0, 2], [1, 3]]

    def test_threshold_reveals_all_that_is_sure_and_at_least_one(self):
        assert self.reveal_order(threshold, 9) == [[0, 2], [1], [3]]
        assert self.reveal_order(threshold, 2) == [[0, 2], [1, 3]]

    def test_entropy_bound(self):
        """Entropies 0.135, 0.673, 0.199, 0.693 nats: a set's sum less its largest stays below gamma."""
        assert self.reveal_order(entropy_bounded, 9, gamma=0.0) == [[0], [2], [1], [3]]
        assert self.reveal_order(entropy_bounded, 9, gamma=0.2) == [[0, 2], [1], [3]]
        assert self.reveal_order(entropy_bounded, 9, gamma=0.34) == [[0, 1, 2], [3]]
        assert self.reveal_order(entropy_bounded, 9, gamma=1.1) == [[0, 1, 2, 3]]


class TestRemasking:
    def test_confident_tokens_are_forgotten_last(self):
        """`conf` remasks in proportion to softmax(-probability): a token drawn at 0.02 e^0.96 times one at 0.98."""
        forgotten = torch.zeros(2)
        law = Law([[0.98, 0.02]] * 40)
        states = []
        law.register_forward_pre_hook(lambda _, args: states.append(args[0].ids.clone()))
        z = Tokens(torch.full((400, 40), V), torch.ones(400, 40, dtype=torch.bool))
        remdm(law, PROCESS, grid(6), z, Label(), rng.generator(0), schedule="conf", eta=1.0)
        shown = torch.zeros(2)
        for a, b in itertools.pairwise(states):
            for v in (0, 1):
                shown[v] += (a == v).sum()
                forgotten[v] += ((a == v) & (b == V)).sum()
        rate = forgotten / shown
        assert 2.0 < float(rate[1] / rate[0]) < 3.3

    def test_loop_holds_the_level(self, net):
        """Between t_on and t_off about alpha_on of the tokens are visible, and they keep changing."""
        states = []
        hook = net.register_forward_pre_hook(lambda _, args: states.append(args[0].ids.clone()))
        run(net, sequences(200), range(200), "remdm", {"schedule": "loop", "eta": 0.1, "alpha_on": 0.8}, 20)
        hook.remove()
        visible = [float((ids != V).double().mean()) for ids in states if len(ids) == 200]
        assert all(abs(v - 0.8) < 0.03 for v in visible[10:18])
