"""Quality where diversity is equal: every source is swept just far enough to enclose the teacher's, and read there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xdistill.curves import Array, Axes, Curve, Point, advantage, as_json, gap_closed
from xdistill.domain import Metric
from xdistill.evaluation import Drawn

STEP = 0.08  # of the setting, from one point to the next
MOST = 5  # points of a curve


#: Curves and what is read of them as plain values, and verdicts as lines.
Matched = tuple[dict[str, Any], list[str]]


@dataclass(frozen=True)
class Swept:
    """A source as it was drawn at `setting`, and how it is drawn at another. kind: teacher, few, student, rival.

    few: the name of the teacher at as few calls as this student's.
    """

    name: str
    kind: str
    setting: float
    drawn: Drawn
    draw: Callable[[float], Drawn]
    few: str = ""


def enclosing(source: Swept, rows: Callable[[Sequence[Any]], Array], x: float) -> Curve:
    """The source's curve from its own setting on towards x, until two points enclose it or there are `MOST`.

    x must grow with the setting, as the entropy of a text does with temperature.
    """
    points: list[Point] = []
    setting, drawn = source.setting, source.drawn
    while True:
        points.append(Point(setting, rows(drawn.samples), drawn.calls, drawn.seconds))
        xs, settings = [p.x for p in points], [float(p.setting or 0) for p in points]
        low = max(xs) < x
        setting = round(max(settings) + STEP if low else min(settings) - STEP, 6)
        if min(xs) <= x <= max(xs) or len(points) == MOST or setting <= 0:
            return Curve(source.name, tuple(sorted(points, key=lambda p: float(p.setting or 0))))
        drawn = source.draw(setting)


def match(sources: Sequence[Swept], rows: Callable[[Sequence[Any]], Array], axes: Axes, seed: int) -> Matched:
    """All curves, read at the x of the first source: the teacher as it is published, which is not swept."""
    teacher = sources[0]
    own = Point(teacher.setting, rows(teacher.drawn.samples), teacher.drawn.calls, teacher.drawn.seconds)
    curves = {teacher.name: Curve(teacher.name, (own,))}
    curves |= {s.name: enclosing(s, rows, own.x) for s in sources[1:]}
    label = f"the {axes.x} of the {teacher.name}"
    found = as_json(list(curves.values()), axes, {label: own.x}, seed) | {"students": {}}
    lines = []
    for s in sources:
        if s.kind == "student":
            verdicts, said = _student(s, sources, curves, own.x, axes, seed)
            found["students"][s.name] = verdicts
            value = curves[s.name].at(own.x, seed)
            at = f"{axes.y} {_cell(value)}" if value.n else f"out of reach of its {axes.setting}"
            lines.append(f"{s.name}, at {label}, {own.x:.2f}: {at}{said}")
    return found, lines


def _student(
    student: Swept, sources: Sequence[Swept], curves: Mapping[str, Curve], x: float, axes: Axes, seed: int
) -> tuple[dict[str, Any], str]:
    """What a student closes of the teacher's gap, and by how much it is better than every rival."""
    closed = gap_closed(curves[student.name], curves[student.few], curves[sources[0].name], x, seed)
    found: dict[str, Any] = {"gap_closed": asdict(closed), "better_than": {}}
    said = [f"closes {_cell(closed)} of the gap from {student.few} to {sources[0].name}"] if closed.n else []
    for other in sources:
        if other.name == student.few or other.kind == "rival":
            by = advantage(curves[student.name], curves[other.name], x, axes, seed)
            found["better_than"][other.name] = asdict(by)
            if by.n:
                said.append(f"{_verdict(by)} {other.name} by {_cell(by)}")
    return found, "".join(f"; {part}" for part in said)


def _verdict(by: Metric) -> str:
    return "wins over" if by.low > 0 else "loses to" if by.high < 0 else "is not told from"


def _cell(m: Metric) -> str:
    return f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]"
