"""Total derivatives: forward mode and finite differences against each other and against calculus."""

import pytest
import torch

from xdistill import rng
from xdistill.derivatives import total_derivative
from xdistill.domains.toy import MixtureTeacher, PointNet
from xdistill.domains.toy.teacher import circle
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.process import Linear
from xdistill.state import Dense, Field

F64 = torch.float64


def draw(*shape, seed):
    return torch.randn(shape, generator=rng.generator("derivative", seed), dtype=F64)


@pytest.mark.parametrize("backend", ["func", "finite_difference"])
def test_against_calculus(backend):
    """d/de sin(x) t^2 along (dx, dt) is cos(x) t^2 dx + 2 t sin(x) dt."""
    x, t, dx, dt = (draw(5, seed=i) for i in range(4))
    slope = total_derivative(lambda x, t: x.sin() * t**2, (x, t), (dx, dt), backend=backend)
    exact = x.cos() * t**2 * dx + 2 * t * x.sin() * dt
    torch.testing.assert_close(slope, exact, rtol=1e-10 if backend == "func" else 1e-4, atol=1e-5)


def test_finite_difference_is_of_second_order():
    x, dx = draw(5, seed=0), draw(5, seed=1)
    exact = x.exp() * dx

    def error(step):
        slope = total_derivative(torch.exp, (x,), (dx,), backend="finite_difference", step=step)
        return float((slope - exact).abs().max())

    assert error(1e-2) / error(5e-3) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("net", ["mlp", "exact"])
def test_of_a_network(net):
    """The derivative of a network along its own flow, which consistency objectives need; no graph is left."""
    torch.manual_seed(0)
    model = PointNet(Linear()).double() if net == "mlp" else MixtureTeacher(Linear(), circle(8, 1.5), 0.4)

    def f(x, t):
        return model(Field(x, Dense(6)), t, NoCond()).value

    primals = draw(6, 2, seed=2), torch.linspace(0.2, 0.8, 6, dtype=F64)
    tangents = draw(6, 2, seed=3), torch.ones(6, dtype=F64)
    exact, near = (total_derivative(f, primals, tangents, backend=b, step=1e-4) for b in ("func", "finite_difference"))
    torch.testing.assert_close(exact, near, rtol=1e-5, atol=1e-6)
    assert exact.abs().max() > 0.1
    assert not exact.requires_grad


def test_unknown_backend():
    with pytest.raises(UsageError, match="func or finite_difference"):
        total_derivative(torch.sin, (draw(1, seed=0),), (draw(1, seed=1),), backend="dual")
