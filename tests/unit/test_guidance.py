"""Guidance is linear mixing; one formula covers the guided gaps of DMD, LSG, Zero-CFG and Anti-CFG."""

import pytest
import torch

from xdistill import rng
from xdistill.domains.toy import Label, MixtureTeacher
from xdistill.domains.toy.teacher import circle
from xdistill.errors import UsageError
from xdistill.guidance import Guided, guide
from xdistill.models import denoise
from xdistill.process import Kind, Linear
from xdistill.state import Dense, Field

F64 = torch.float64
PROCESS = Linear()
T = torch.linspace(0.1, 0.9, 6, dtype=F64)
COND = Label(torch.arange(6) % 4)


def net(std=0.3, kind=Kind.VELOCITY):
    return MixtureTeacher(PROCESS, circle(4, 1.5), std, kind=kind)


def state():
    return Field(torch.randn(6, 2, generator=rng.generator(0), dtype=F64), Dense(6))


def clean(model, cond=COND):
    return denoise(model, PROCESS, state(), T, cond).value


@pytest.mark.parametrize(
    ("real", "fake"), [(3.5, 1.0), (2.0, 2.0), (1.0, 0.0), (1.0, -0.5)], ids=["dmd", "lsg", "zero", "anti"]
)
def test_guidance_algebra(real, fake):
    """gap = (D_f,c - D_r,c) - (w_r - 1)(D_r,c - D_r,0) + (w_f - 1)(D_f,c - D_f,0)."""
    teacher, critic = net(0.3), net(0.6)
    gap = clean(guide(critic, "cfg", scale=fake)) - clean(guide(teacher, "cfg", scale=real))
    r_c, r_0, f_c, f_0 = (clean(m, c) for m in (teacher, critic) for c in (COND, COND.drop()))
    torch.testing.assert_close(gap, (f_c - r_c) - (real - 1) * (r_c - r_0) + (fake - 1) * (f_c - f_0))


def test_every_kind_guides_alike():
    """Weights sum to one, so guiding the velocity is guiding the clean estimate."""
    guided = [clean(Guided(net(kind=kind), 2.5)) for kind in Kind]
    for other in guided[1:]:
        torch.testing.assert_close(guided[0], other)


def test_one_is_the_conditional_model():
    calls = []

    class Counted(MixtureTeacher):
        def forward(self, x_t, t, cond):
            calls.append(cond)
            return super().forward(x_t, t, cond)

    model = Counted(PROCESS, circle(4, 1.5), 0.3)
    assert torch.equal(clean(Guided(model, 1.0)), clean(net()))
    assert len(calls) == 1


def test_autoguidance():
    """w c + (1 - w)(r weak + (1 - r) null)."""
    strong, weak = net(0.3), net(0.6)
    mixed = Guided(strong, 1.7, weak=weak, autoguidance_ratio=0.25)
    null = 0.25 * clean(weak) + 0.75 * clean(strong, COND.drop())
    torch.testing.assert_close(clean(mixed), 1.7 * clean(strong) - 0.7 * null)
    torch.testing.assert_close(
        clean(guide(strong, "autoguidance", scale=1.7, weak=weak)), 1.7 * clean(strong) - 0.7 * clean(weak)
    )


def test_interval():
    """Outside its interval of times guidance is off."""
    plain, guided = clean(net()), clean(Guided(net(), 3.0, interval=(0.3, 0.6)))
    inside = (T >= 0.3) & (T <= 0.6)
    assert torch.equal(plain[~inside], guided[~inside])
    assert (plain[inside] != guided[inside]).any(1).all()


def test_errors():
    with pytest.raises(UsageError, match="needs a weak model"):
        Guided(net(), 2.0, autoguidance_ratio=0.5)
    with pytest.raises(UsageError, match="unknown guidance 'cgf'"):
        guide(net(), "cgf", scale=2.0)
    assert isinstance(guide(net(), "none", scale=5.0), MixtureTeacher)


def test_every_preset_can_be_configured() -> None:
    from xdistill.guidance import PRESETS
    from xdistill.overrides import CHOICES

    assert CHOICES["guidance.name"] == tuple(PRESETS)
