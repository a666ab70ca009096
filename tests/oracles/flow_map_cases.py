"""What the tests of flow maps share: exact and trained networks, draws, and how far apart two states are."""

import torch

from xdistill import rng
from xdistill.domains.toy import MixtureTeacher
from xdistill.models import NoCond, average_velocity, velocity
from xdistill.objectives import Phase
from xdistill.objectives.improved_meanflow import ImprovedMeanFlow
from xdistill.objectives.interval import Interval
from xdistill.process import Linear
from xdistill.roles import RoleView
from xdistill.state import Dense, Field
from xdistill.testing.oracles import GaussianFlowMap
from xdistill.times import ConstantLam

F64 = torch.float64
PROCESS = Linear()
MEAN, STD = 0.7, 1.3
N = 40
STEP = Phase("student", "student")


def exact(shift=0.0):
    return GaussianFlowMap(MEAN, STD, shift)


def draw(n=N, seed=0):
    """(x_t [n, 2], t, r, lam), some rows without a jump."""
    g = rng.generator("flow map", seed)
    x = Field(1.5 * torch.randn(n, 2, generator=g, dtype=F64), Dense(n))
    a, b, lam = torch.rand(3, n, generator=g, dtype=F64)
    t, r = torch.maximum(a, b), torch.minimum(a, b)
    return x, t, torch.where(torch.arange(n) < n // 4, t, r), lam


def average(net):
    return lambda x, t, r: average_velocity(net, PROCESS, x, t, r, NoCond())


def instant(net):
    return lambda x, t: velocity(net, PROCESS, x, t, NoCond())


def gap(a, b):
    return float((a - b).value.abs().max())


def view(student, teacher=None, engine=None, shared=0):
    """Roles as one phase sees them; `engine` is called in the student's place where a graph is wanted."""
    teacher = MixtureTeacher(PROCESS, torch.full((1, 2), MEAN, dtype=F64), STD) if teacher is None else teacher
    modules = {"student": student, "teacher": teacher}
    return RoleView(modules, {"student": engine or student}, "student", rng.generator("shared", shared))


def data(n=N, seed=1):
    g = rng.generator("data", seed)
    return Field(MEAN + STD * torch.randn(n, 2, generator=g, dtype=F64), Dense(n))


def split(**options):
    return Interval(PROCESS, **options)


def meanflow(**options):
    return Interval(PROCESS, leg="velocity", lam=ConstantLam(0.0), **options)


#: Objectives whose target at the exact map is that map, whatever their draws.
EXACT = {
    "split": split(),
    "shortcut": split(lam=ConstantLam(0.5)),
    "meanflow": meanflow(),
    "improved_meanflow": ImprovedMeanFlow(PROCESS, velocity="teacher"),
}
