"""Recorded tensors by name, each of them marked when it is read or checked."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from xdistill.errors import XDistillError
from xdistill.testing.results import CaseResult, compare


class Recording:
    """The tensors of one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.stored = path, path.stem, load_file(path)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.seen.add(key)
        return self.stored[key]

    def __contains__(self, key: str) -> bool:
        return key in self.stored

    def check(self, key: str, found: Tensor, atol: float) -> CaseResult:
        """Floats within `atol`, anything else equal; raises XDistillError when shapes differ."""
        expected = self[key]
        found = found.detach()
        return compare(f"{self.name}/{key}", found, expected, atol if expected.is_floating_point() else 0.0, 0.0)

    def unchecked(self) -> CaseResult:
        """The number of recorded tensors that nothing has looked at: 0 of all."""
        left = sorted(self.stored.keys() - self.seen)
        name = f"{self.name}/tensors that nothing looks at" + (f" ({', '.join(left)})" if left else "")
        return CaseResult(name, float(len(left)), 0.0, not left)


def count(name: str, found: int, expected: int) -> CaseResult:
    """One whole number."""
    if expected < 0:
        raise XDistillError(f"{name}: recorded {expected}, expected a count")
    return CaseResult(name, float(abs(found - expected)), 0.0, found == expected)
