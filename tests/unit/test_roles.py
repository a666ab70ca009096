"""The role rules raise, never pass silently."""

import pytest
import torch
from torch import nn

from xdistill.errors import RoleError
from xdistill.roles import RoleView, phase_grads


@pytest.fixture
def modules():
    return {"teacher": nn.Linear(2, 2).requires_grad_(False), "student": nn.Linear(2, 2), "critic": nn.Linear(2, 2)}


def view(modules, owner="student", engines=None):
    return RoleView(modules, engines or modules, owner, torch.Generator())


def test_train_is_for_the_owner(modules):
    with pytest.raises(RoleError, match="asked to train 'critic'"):
        view(modules).train("critic")


def test_through_is_not_for_the_owner(modules):
    with pytest.raises(RoleError, match="use train"):
        view(modules).through("student")


def test_through_needs_frozen_parameters(modules):
    with pytest.raises(RoleError, match="phase_grads"):
        view(modules).through("critic")
    with phase_grads(modules, "student"):
        x = torch.ones(1, 2, requires_grad=True)
        view(modules).through("critic")(x).sum().backward()
    assert x.grad is not None
    assert modules["critic"].weight.grad is None


def test_unknown_role(modules):
    for ask in ("frozen", "through"):
        with pytest.raises(RoleError, match="no role 'judge'"):
            getattr(view(modules), ask)("judge")
    assert view(modules).has("critic")
    assert not view(modules).has("judge")


def test_only_the_owner_is_called_through_its_engine(modules):
    calls = []
    engines = {name: lambda x, name=name: (calls.append(name), modules[name](x))[1] for name in modules}
    net = view(modules, engines=engines)
    net.train("student")(torch.ones(1, 2))
    net.frozen("student")(torch.ones(1, 2))
    net.frozen("critic")(torch.ones(1, 2))
    assert calls == ["student"]


def test_frozen_has_no_graph(modules):
    assert not view(modules).frozen("critic")(torch.ones(1, 2, requires_grad=True)).requires_grad


def test_attributes_come_from_the_module(modules):
    assert view(modules).frozen("critic").in_features == 2


def test_phase_grads_restores_every_flag(modules):
    modules["critic"].bias.requires_grad_(False)
    before = {r: [p.requires_grad for p in m.parameters()] for r, m in modules.items()}

    def fail():
        with phase_grads(modules, "student"):
            assert not any(p.requires_grad for r in ("teacher", "critic") for p in modules[r].parameters())
            assert all(p.requires_grad for p in modules["student"].parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert before == {r: [p.requires_grad for p in m.parameters()] for r, m in modules.items()}


def test_autocast_wraps_every_call(modules):
    seen = []

    class Cast:
        def __enter__(self):
            seen.append("in")

        def __exit__(self, *error):
            seen.append("out")

    net = RoleView(modules, modules, "student", torch.Generator(), autocast=Cast)
    net.train("student")(torch.ones(1, 2))
    net.frozen("teacher")(torch.ones(1, 2))
    assert seen == ["in", "out"] * 2
