"""CATH fold labels (`C.A.T.H`, `x` masks a level) and their rows in the fold embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xdistill.errors import XDistillError

LEVELS = ("C", "A", "T")
MASKED = "x"


def prefixes(label: str) -> tuple[str | None, str | None, str | None]:
    """`"3.40.50.x" -> ("3", "3.40", "3.40.50")`; a masked level and all below it are None.

    Raises XDistillError unless the label has three or four dot-separated parts.
    """
    parts = label.split(".")
    if len(parts) not in (3, 4) or not all(p == MASKED or p.isdigit() for p in parts):
        raise XDistillError(f"fold label {label!r} is not of the form C.A.T.H with numbers or x, such as 3.40.50.x")
    known = parts.index(MASKED) if MASKED in parts else len(parts)
    c, a, t = (".".join(parts[: i + 1]) if i < known else None for i in range(3))
    return c, a, t


@dataclass(frozen=True)
class ClassMap:
    """Label prefix -> embedding row for each of the levels C, A, T; the row after the last class means "no label"."""

    levels: tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassMap:
        """From `{"C": {"1": 0, ...}, "A": {...}, "T": {...}}`. Raises XDistillError if a level or a row is wrong."""
        missing = [level for level in LEVELS if level not in values]
        if missing:
            raise XDistillError(f"fold class map has no level {missing[0]!r}; expected the keys C, A and T")
        c, a, t = ({str(k): int(v) for k, v in dict(values[level]).items()} for level in LEVELS)
        for level, rows in zip(LEVELS, (c, a, t), strict=True):
            if sorted(rows.values()) != list(range(len(rows))):
                raise XDistillError(f"fold class map, level {level}: rows must be 0..{len(rows) - 1}, each once")
        return cls((c, a, t))

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {level: dict(rows) for level, rows in zip(LEVELS, self.levels, strict=True)}

    @property
    def num_classes(self) -> tuple[int, int, int]:
        c, a, t = (len(rows) for rows in self.levels)
        return c, a, t

    def row(self, label: str) -> list[int]:
        """Rows `[C, A, T]` of one label; masked and unknown prefixes get the null row."""
        pairs = zip(prefixes(label), self.levels, strict=True)
        return [rows.get(prefix, len(rows)) if prefix is not None else len(rows) for prefix, rows in pairs]

    def encode(self, labels: Sequence[str | Sequence[str]], generator: torch.Generator | None = None) -> Tensor:
        """`[b, 3]` int64 rows for one label or list of labels per protein.

        Of several labels one is drawn uniformly from `generator` (Proteina's "sample" mode); an empty list means
        no label.
        Raises XDistillError if a draw is needed and no generator was given.
        """
        return torch.tensor([self.row(_choose(label, generator)) for label in labels]).reshape(-1, 3)

    def null(self, batch: int) -> Tensor:
        """`[batch, 3]` rows that mean "no label"."""
        return torch.tensor(self.num_classes).expand(batch, 3).clone()

    def from_coarse(self, classes: Tensor) -> Tensor:
        """`[b, 3]` rows for coarse classes 1..4 (`ChainSet.coarse_classes`) as the C level; A and T are masked."""
        return self.encode([f"{int(k)}.x.x.x" for k in classes])


def coarse_class_map() -> ClassMap:
    """Class map of a network that knows only the four coarse secondary-structure classes (no A, no T)."""
    return ClassMap.from_dict({"C": {str(k + 1): k for k in range(4)}, "A": {}, "T": {}})


def _choose(label: str | Sequence[str], generator: torch.Generator | None) -> str:
    if isinstance(label, str):
        return label
    if len(label) <= 1:
        return label[0] if label else "x.x.x.x"
    if generator is None:
        raise XDistillError("a protein has several fold labels: pass a torch.Generator to draw one of them")
    return label[int(torch.randint(len(label), (), generator=generator))]
