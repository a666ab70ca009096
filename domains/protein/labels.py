"""CATH fold labels (`C.A.T.H`, `x` masks a level): rows of the fold embedding, what users write, draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from xdistill import rng
from xdistill.errors import UsageError, XDistillError

LEVELS = ("C", "A", "T")
MASKED = "x"
#: Words for the C level; CATH and the coarse classes from secondary structure number them alike.
NAMES = {"mainly-alpha": "1", "mainly-beta": "2", "alpha-beta": "3", "few-secondary": "4"}
NEIGHBOURS = 64  # real chains of similar length that a label is drawn from


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


def parse_label(text: Any, classes: ClassMap) -> str:
    """What a user wrote (`1`, `mainly-alpha`, `3.40.x.x`, `3.40.50.720`) -> a label `C.A.T.H` of this class map.

    Raises UsageError when it cannot be read, or names a class that the map does not hold.
    """
    words = str(text)
    if isinstance(text, float):
        raise UsageError(f"label={words}: is it {words} or {words}0? Write all four levels, such as {words}0.x.x")
    label = NAMES.get(words, words)
    label = ".".join([*label.split("."), *[MASKED] * 4][: max(4, label.count(".") + 1)])
    try:
        known = prefixes(label)
    except XDistillError:
        raise UsageError(
            f"label={words}: expected {', '.join(NAMES)}, sample, a number such as 1, or CATH levels such as 3.40.50.x"
        ) from None
    for level, prefix, rows in zip(LEVELS, known, classes.levels, strict=True):
        if prefix is not None and prefix not in rows:
            near = get_close_matches(prefix, rows, n=3) or list(rows)[:6]
            hint = f"known: {', '.join(near)}{', ...' if len(near) < len(rows) else ''}" if rows else "it knows none"
            raise UsageError(f"label={words}: the teacher has no class {prefix} of level {level} ({hint})")
    return label


@dataclass(frozen=True)
class LabelLaw:
    """Empirical joint law of length and coarse class: lengths [m] and classes [m] 1..4 of real chains."""

    lengths: Tensor
    classes: Tensor

    def __post_init__(self) -> None:
        if len(self.lengths) == 0:
            raise XDistillError("cannot draw fold labels: the chain set is empty")

    def draw(self, n: int, generator: torch.Generator) -> str:
        """The label of a chain drawn from the NEIGHBOURS (or more, at ties) real ones nearest to n residues.

        A and T are not known.
        """
        distance = (self.lengths - n).abs()
        near = self.classes[distance <= distance.kthvalue(min(NEIGHBOURS, len(distance))).values]
        return f"{int(near[rng.randint(0, len(near), generator)])}.x.x.x"


def _choose(label: str | Sequence[str], generator: torch.Generator | None) -> str:
    if isinstance(label, str):
        return label
    if len(label) <= 1:
        return label[0] if label else "x.x.x.x"
    if generator is None:
        raise XDistillError("a protein has several fold labels: pass a torch.Generator to draw one of them")
    return label[int(torch.randint(len(label), (), generator=generator))]
