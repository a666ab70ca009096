"""DiDi-Instruct: its options, its phases, and what its pieces do at the edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xdistill import rng
from xdistill.compat import compatibility
from xdistill.domain import Domain
from xdistill.domains.toy import ToyDomain
from xdistill.domains.toy.tokens import TokenNet
from xdistill.errors import UsageError
from xdistill.models import Batch, NoCond
from xdistill.objectives import didi_losses as terms
from xdistill.objectives.categorical import entropy
from xdistill.objectives.didi import DiDi
from xdistill.objectives.didi_rollout import two_jumps
from xdistill.process import MaskProcess
from xdistill.roles import RoleView
from xdistill.state import Tokens
from xdistill.testing.oracles import At
from xdistill.times import Beta, Uniform

PROCESS = MaskProcess(5)


class Counted(TokenNet):
    """Counts the sequences it is called with."""

    def __init__(self) -> None:
        super().__init__(5, 8)
        self.sequences: list[int] = []

    def forward(self, z_t: Tokens, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.sequences.append(z_t.batch)
        return super().forward(z_t, *args, **kwargs)


def batch(n: int) -> Batch[Tokens]:
    ids = torch.randint(0, 5, (n, 8), generator=rng.generator(0))
    return Batch(Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), NoCond())


@pytest.mark.parametrize(
    "options",
    [
        {"advantage": "lou"},
        {"credit": "tokens"},
        {"group": 1},
        {"teacher_steps": 0},
        {"omega_min": 2.0, "omega_max": 1.0},
        {"label_smoothing": 0.5},
        {"odds_clip": -1.0},
        {"importance_weight": True, "time_law": Uniform()},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DiDi(PROCESS, **options)


def test_phases() -> None:
    method = DiDi(PROCESS, discriminator_updates=3, discriminator_warmup=2)
    owners = [[(p.owner, p.repeat) for p in method.phases(step)] for step in (1, 2)]
    assert owners == [[("discriminator", 3)], [("discriminator", 3), ("student", 1)]]


def test_equal_starts_are_seen_once_and_given_tokens_stay() -> None:
    net, tau = Counted(), torch.full((8,), 0.5, dtype=torch.float64)
    first, last = two_jumps(net, PROCESS, batch(2), tau, rng.generator(1))
    assert net.sequences == [1, 8]
    assert last.after.ids.max() < 5
    given = torch.arange(8).expand(2, 8) < torch.tensor([[0], [3]])
    prompted = Batch(Tokens(batch(2).like.ids, batch(2).like.mask, given), NoCond())
    net.sequences.clear()
    first, last = two_jumps(net, PROCESS, prompted, tau, rng.generator(1))
    assert net.sequences == [2, 8]
    assert torch.equal(last.after.ids[4:, :3], prompted.like.ids[1, :3].expand(4, 3))
    revealed = (first.before.ids != first.after.ids) | (last.before.ids != last.after.ids)
    assert torch.equal(revealed, first.before.ids == 5)
    assert torch.equal((first.log_prob() + last.log_prob()) != 0, revealed)


def test_drawing_from_the_same_pass_or_another_is_the_same() -> None:
    net, tau = Counted(), torch.full((8,), 0.5, dtype=torch.float64)
    pairs = [two_jumps(net, PROCESS, batch(2), tau, rng.generator(1), drawer=d) for d in (None, net)]
    for once, twice in zip(*pairs, strict=True):
        assert torch.equal(once.after.ids, twice.after.ids)
        torch.testing.assert_close(once.log_prob(), twice.log_prob())
    assert net.sequences == [1, 8, 1, 1, 8, 8]


@pytest.mark.parametrize("credit", ["sequence", "visible", "token"])
@pytest.mark.parametrize("real_source", ["data", "teacher", "mix"])
def test_every_choice_has_finite_losses_and_gradients(credit: str, real_source: str) -> None:
    """Also where nearly nothing is masked between the jumps."""
    domain = ToyDomain({"task": "tokens", "vocabulary": 3, "length": 2})
    teacher = domain.teacher()
    nets = {"teacher": teacher, "student": domain.network(), "discriminator": domain.discriminator(teacher)}
    law = At(0.02) if real_source == "mix" else Beta()
    options: dict[str, Any] = {"credit": credit, "real_source": real_source, "time_law": law, "teacher_steps": 2}
    paper = {**DiDi.PAPER, "kl_teacher": "subs"} if real_source == "teacher" else {"kl": "jeffreys", "entropy": 0.1}
    method = DiDi(domain.process, **{**paper, **options})
    assert method.needs.data == (real_source != "teacher")
    for phase in method.phases(0):
        net = RoleView(nets, nets, phase.owner, rng.generator("shared"))
        data = domain.data(2, 0) if method.needs.data else domain.null_data(2, 0)
        out = method.loss(phase, data.batch(0, 0, 1), net, rng.generator(3))
        out.per_sample.mean().backward()
        assert out.per_sample.shape == (8,)
        grads = [p.grad for p in nets[phase.owner].parameters() if p.grad is not None]
        assert grads
        assert all(g.isfinite().all() for g in [out.per_sample, *grads])


def test_advantages_ignore_ties_and_see_their_group_alone() -> None:
    reward = torch.tensor([0.1, 0.1 + 1e-9, 0.1, 0.1, 1.0, 2.0, 3.0, 6.0])
    loo, group = (terms.advantage(reward, 4, kind, 0) for kind in ("leave_one_out", "group"))
    assert torch.equal(loo[:4], torch.zeros(4))
    assert torch.equal(group[:4], torch.zeros(4))
    torch.testing.assert_close(loo[4:], torch.tensor([-8 / 3, -4 / 3, 0.0, 4.0]))
    assert float(group[4:].std()) == pytest.approx(1)
    assert float(terms.advantage(reward, 4, "leave_one_out", 3.0).max()) == 3


def test_entropy_and_divergence_of_impossible_tokens() -> None:
    log_p = torch.tensor([[0.0, -1e6], [-0.7, -0.7]]).log_softmax(1).requires_grad_()
    value = entropy(log_p).sum() + terms.divergence(log_p.detach().flip(0), log_p, "forward").sum()
    value.backward()
    assert log_p.grad is not None
    assert log_p.grad.isfinite().all()


def test_the_beta_law() -> None:
    law = Beta(2, 5, low=0.0, high=1.0)
    t = law.sample(20000, rng.generator(0))
    assert float(t.mean()) == pytest.approx(2 / 7, abs=0.01)
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert float(torch.trapezoid(law.density(grid), grid)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match="whole numbers"):
        Beta(1.5, 2)


def test_a_domain_without_a_discriminator_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = ToyDomain({"task": "tokens"})
    monkeypatch.setattr(type(domain), "discriminator", Domain.discriminator)
    with pytest.raises(UsageError, match="'didi' as configured needs a discriminator, and domain 'toy' offers none"):
        compatibility({"objective": {"name": "didi"}}, domain, DiDi(domain.process))


def test_conditions_must_repeat() -> None:
    conditional = Batch(batch(2).like, type("Class", (), {"drop": None, "to": None})())
    net = RoleView({"student": Counted()}, {}, "student", torch.Generator())
    with pytest.raises(UsageError, match=r"has no repeat\(n\)"):
        DiDi(PROCESS).jumps(net.frozen("student"), conditional, torch.full((8,), 0.5), rng.generator(0))
