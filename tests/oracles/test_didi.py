"""DiDi-Instruct by enumeration (V = 3, L = 2): its own code on every outcome of its draws, weighted by their chances.

The student is a free table, q_t the law of its two-step sampler after masking, p_t that of the data.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from xdistill import rng
from xdistill.domains.toy.tokens import random_table, sequences
from xdistill.models import Batch, NoCond
from xdistill.objectives.base import Phase
from xdistill.objectives.didi import DiDi
from xdistill.process import MaskProcess
from xdistill.roles import RoleView, phase_grads
from xdistill.state import Tokens
from xdistill.testing.oracles import At

V, L, TAU = 3, 2, 0.6
F64 = torch.float64
PROCESS = MaskProcess(V, eps=0.0)
CLEAN = sequences(V, L)  # [9, 2]
STATES = sequences(V + 1, L)  # [16, 2]
BITS = sequences(2, L).bool()  # [4, 2]
TABLE = random_table(V, L)
NEVER, ALWAYS = 1 - 1e-12, 0.0  # uniforms


class Student(nn.Module):
    """Log-probabilities of every position in every state, free."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(len(STATES), L, V, generator=rng.generator("student"), dtype=F64))

    def forward(self, z: Tokens, t: Tensor, cond: NoCond, *, at: Tensor) -> Tensor:
        return self.logits.log_softmax(2)[code(z.ids)][at]


class Discriminator(nn.Module):
    """Logits of every position in every state, free."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits[:, None].repeat(1, L))

    def forward(self, z: Tokens, t: Tensor, cond: NoCond) -> Tensor:
        return self.logits[code(z.ids)]


def code(ids: Tensor) -> Tensor:
    """The number of a state."""
    return ids[:, 0] * (V + 1) + ids[:, 1]


def two_step_law(student: Student) -> Tensor:
    """[9], differentiable: 1 -> TAU -> 0, each position revealed by the first call with probability keep(TAU)."""
    p, keep = student.logits.softmax(2), float(PROCESS.keep(torch.tensor(TAU)))
    law = []
    for x in CLEAN:
        total = torch.zeros((), dtype=F64)
        for shown in BITS:
            z = torch.where(shown, x, V)
            first = torch.where(shown, p[-1].gather(1, x[:, None])[:, 0] * keep, 1 - keep)
            second = torch.where(shown, 1.0, p[code(z[None])[0]].gather(1, x[:, None])[:, 0])
            total = total + (first * second).prod()
        law.append(total)
    return torch.stack(law)


def masked_law(law: Tensor) -> Tensor:
    """[16] law of z_TAU."""
    keep = float(PROCESS.keep(torch.tensor(TAU)))
    chance = torch.where(STATES == V, 1 - keep, keep).prod(1)
    agrees = ((STATES[:, None] == V) | (STATES[:, None] == CLEAN)).all(2)
    return chance * (agrees.double() @ law)


def gap(student: Student) -> Tensor:
    """KL(q_t || p_t)."""
    q, p = masked_law(two_step_law(student)), masked_law(TABLE)
    return (q * (q / p).log()).sum()


def log_ratio(student: Student) -> Tensor:
    """[16] log p_t / q_t: the discriminator's optimum."""
    return (masked_law(TABLE) / masked_law(two_step_law(student))).log().detach()


@dataclass(frozen=True)
class Outcomes:
    """All outcomes of one sample's draws: uniforms that lead to each (five [n, L]), and their chances [n]."""

    uniforms: tuple[Tensor, ...]
    chance: Tensor

    @classmethod
    def of(cls, student: Student) -> Outcomes:
        p, keep = student.logits.softmax(2).detach(), float(PROCESS.keep(torch.tensor(TAU)))
        rows, chances = [], []
        for shown, x, kept in itertools.product(BITS, CLEAN, BITS):
            z = torch.where(shown, x, V)
            laws = p[-1], p[code(z[None])[0]]
            own = torch.where(shown, laws[0].gather(1, x[:, None])[:, 0], laws[1].gather(1, x[:, None])[:, 0])
            chances.append((own * factor(shown, keep) * factor(kept, keep)).prod())
            rows.append([uniform(shown), middle(laws[0], x), torch.zeros(L), middle(laws[1], x), uniform(kept)])
        stacked = [torch.stack([r[i].double() for r in rows]) for i in range(5)]
        return cls(tuple(stacked), torch.stack(chances))

    def tuples(self, size: int) -> Outcomes:
        """All tuples of outcomes as consecutive rows, each row with the chance of its tuple."""
        n = len(self.chance)
        pick = torch.tensor(list(itertools.product(range(n), repeat=size))).flatten()
        chance = self.chance[pick].view(-1, size).prod(1).repeat_interleave(size)
        return Outcomes(tuple(u[pick] for u in self.uniforms), chance)


def factor(bits: Tensor, keep: float) -> Tensor:
    return torch.where(bits, keep, 1 - keep)


def uniform(bits: Tensor) -> Tensor:
    """Uniforms below any probability where True."""
    return torch.where(bits, ALWAYS, NEVER)


def middle(law: Tensor, x: Tensor) -> Tensor:
    """Uniforms [L] that draw x from the law [L, V] by inversion."""
    inside = torch.gather(law, 1, x[:, None])[:, 0]
    return torch.gather(law.cumsum(1), 1, x[:, None])[:, 0] - inside / 2


def objective(group: int, **options: object) -> DiDi:
    exact = {"judge": "all", "advantage_clip": 0.0, "odds_clip": 0.0, "label_smoothing": 0.0, "kl_first": 0.0}
    return DiDi(PROCESS, time_law=At(TAU), group=group, **{**exact, "kl_second": 0.0, **options})


def losses(method: DiDi, owner: str, modules: dict, batch: Tensor, uniforms: tuple[Tensor, ...]) -> Tensor:
    with phase_grads(modules, owner):
        net = RoleView(modules, modules, owner, torch.Generator())
        like = Batch(Tokens(batch, torch.ones_like(batch, dtype=torch.bool)), NoCond())
        return method.loss(Phase(owner, owner), like, net, rng.Recorded(uniforms)).per_sample


def student_gradient(group: int, **options: object) -> tuple[Tensor, Tensor]:
    """(mean of the estimator over all groups of outcomes, exact gradient of omega KL(q_t || p_t))."""
    student = Student()
    modules = {"student": student, "discriminator": Discriminator(log_ratio(student)), "teacher": nn.Identity()}
    outcomes = Outcomes.of(student).tuples(group)
    batch = torch.full((len(outcomes.chance) // group, L), V)
    per_sample = losses(objective(group, **options), "student", modules, batch, outcomes.uniforms)
    (found,) = torch.autograd.grad((per_sample * outcomes.chance).sum() / group, student.logits)
    (exact,) = torch.autograd.grad(gap(student) / TAU, student.logits)
    return found, exact


def test_the_outcomes_are_all_there_are() -> None:
    assert float(Outcomes.of(Student()).chance.sum()) == pytest.approx(1, abs=1e-12)
    assert float(two_step_law(Student()).detach().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("credit", ["sequence", "visible"])
def test_policy_gradient_is_the_gradient_of_the_two_step_samplers_gap(credit: str) -> None:
    """With the exact log-ratio as reward; the leave-one-out baseline leaves no bias over pairs of samples."""
    found, exact = student_gradient(2, credit=credit)
    assert float((found - exact).norm() / exact.norm()) < 1e-5


def test_normalised_groups_are_biased() -> None:
    """The published advantage points elsewhere: cosine 0.949 with the exact gradient for pairs."""
    found, exact = student_gradient(2, advantage="group")
    cosine = float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0))
    assert cosine == pytest.approx(0.949, abs=0.002)


def test_one_jump_alone_is_not_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the decomposition is for: crediting only the second jump loses the first one's part."""
    credited = DiDi.credited
    monkeypatch.setattr(DiDi, "credited", lambda self, jumps, z, a: credited(self, (jumps[1], jumps[1]), z, a) / 2)
    found, exact = student_gradient(2)
    assert float(found[-1].norm()) < 0.9 * float(exact[-1].norm())


def discriminator_gradient(shift: float) -> Tensor:
    """Of the expected loss at log p_t / q_t + shift."""
    student = Student()
    method, fake = objective(4 * 144), Outcomes.of(student)
    net = Discriminator(log_ratio(student) + shift)
    modules = {"student": student, "discriminator": net, "teacher": nn.Identity()}
    # rows: clean sequence x mask of the real one x outcome of the fake one
    real_bits = BITS.repeat(len(CLEAN), 1).repeat_interleave(144, 0)
    jumps = [u.repeat(len(CLEAN) * 4, 1) for u in fake.uniforms[:4]]
    kept = torch.stack([uniform(real_bits).double(), fake.uniforms[4].repeat(len(CLEAN) * 4, 1)], 1).flatten(0, 1)
    keep = float(PROCESS.keep(torch.tensor(TAU)))
    chance = TABLE.repeat_interleave(4 * 144) * factor(real_bits, keep).prod(1) * fake.chance.repeat(len(CLEAN) * 4)
    per_sample = losses(method, "discriminator", modules, CLEAN, (*jumps, kept))
    (found,) = torch.autograd.grad((per_sample * chance).sum(), net.logits)
    return found


def test_the_discriminators_optimum_is_the_log_ratio() -> None:
    assert float(discriminator_gradient(0.0).abs().max()) < 1e-8
    assert float(discriminator_gradient(0.1).abs().max()) > 1e-3


def test_equal_rewards_give_no_gradient() -> None:
    """A student that is right everywhere: rewards differ by rounding alone."""
    student = Student()
    modules = {"student": student, "discriminator": Discriminator(torch.full((16,), 0.3, dtype=F64))}
    outcomes = Outcomes.of(student).tuples(2)
    for advantage in ("leave_one_out", "group"):
        method = objective(2, advantage=advantage)
        per_sample = losses(
            method, "student", modules, torch.full((len(outcomes.chance) // 2, L), V), outcomes.uniforms
        )
        assert float(per_sample.abs().max()) == 0
