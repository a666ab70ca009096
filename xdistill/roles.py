"""Roles, and the one way an objective reaches a network.

Two rules keep distributed runs right (design section 4): R1, only the phase's owner is called through its
engine; R2, every other role is called as the raw module with its parameters frozen. Broken, ZeRO-3 trains
silently wrong; so `RoleView` raises instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xdistill.errors import RoleError


@dataclass(frozen=True)
class RoleSpec:
    """A network an objective needs: `teacher`, `student`, `critic` (the fake score), `discriminator`."""

    name: str
    trainable: bool = True


class Called:
    """A role as a model: calls go to `call`, everything else (kind, features...) to the raw module."""

    def __init__(self, call: Callable[..., Any], module: nn.Module) -> None:
        self._call, self._module = call, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class RoleView:
    """What one phase may touch.

    modules: raw networks by role. engines: the callables that train a role (an engine's forward).
    owner: the role this phase trains. shared: a generator in the same state on every rank, for draws that
    change the depth of the graph.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        engines: Mapping[str, Callable[..., Any]],
        owner: str,
        shared: torch.Generator,
        autocast: Callable[[], Any] | None = None,
    ) -> None:
        self._modules, self._engines, self.owner, self.shared = modules, engines, owner, shared
        self._autocast = autocast

    def train(self, role: str) -> Any:
        """The owner's network through its engine: parameters get gradients."""
        if role != self.owner:
            raise RoleError(f"phase trains '{self.owner}' but asked to train '{role}': use through() or frozen()")
        return Called(self._cast(self._engines[role]), self._module(role))

    def through(self, role: str) -> Any:
        """The raw network, parameters frozen; gradients flow to its input."""
        if role == self.owner:
            raise RoleError(f"'{role}' is trained in this phase: through() would drop its gradient, use train()")
        module = self._module(role)
        if any(p.requires_grad for p in module.parameters()):
            raise RoleError(f"'{role}' still requires gradients outside its phase: run inside phase_grads()")
        return Called(self._cast(module), module)

    def frozen(self, role: str, *, exact: bool = False) -> Any:
        """The raw network under no_grad; `exact` without autocast, for derivatives."""
        module = self._module(role)
        call = module if exact else self._cast(module)

        def no_grad_call(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                return call(*args, **kwargs)

        return Called(no_grad_call, module)

    def has(self, role: str) -> bool:
        """Whether the run has this role."""
        return role in self._modules

    def _module(self, role: str) -> nn.Module:
        if role not in self._modules:
            raise RoleError(f"no role '{role}' in this run: it has {', '.join(self._modules)}")
        return self._modules[role]

    def _cast(self, call: Callable[..., Any]) -> Callable[..., Any]:
        if self._autocast is None:
            return call
        autocast = self._autocast

        def cast_call(*args: Any, **kwargs: Any) -> Any:
            with autocast():
                return call(*args, **kwargs)

        return cast_call


@contextmanager
def phase_grads(modules: Mapping[str, nn.Module], owner: str) -> Iterator[None]:
    """Inside, only the owner's parameters require gradients; before and after, every flag is as it was."""
    flags = [(p, p.requires_grad) for role, m in modules.items() if role != owner for p in m.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
