"""What `evaluate` measures: sources of samples by one interface, their table rows, metrics of models, and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from xdistill.curves import Axes, Curve, Point, sweep
from xdistill.domain import Domain, Metric
from xdistill.evaluation import Draw, Drawn, Row, draw, measure, teacher_sampler

PAIRED = "paired"  # among `metrics=`: the distance to the teacher's own samples


@dataclass
class Source:
    """Samples that were found, or a model and its sampler, which takes options (`temperature=0.8`).

    usual: value of an option where the samples of the table are drawn. teacher: loads the guided network that samples
    are paired with, `taught` tells such networks apart (None: nothing to pair with).
    """

    name: str
    domain: Domain
    samples: Sequence[Any] | None = None
    model: nn.Module | None = None
    sampler: Callable[..., Draw] | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    teacher: Callable[[], nn.Module] | None = None
    taught: str = ""


@dataclass
class Measuring:
    """How sources are sampled and measured: the keys of `evaluate` of the same names."""

    num: int
    seed: int
    batch: int
    extras: Sequence[str]
    request: Mapping[str, Any]
    device: torch.device
    _taught: dict[str, Sequence[Any]] = field(default_factory=dict)

    def draw(self, source: Source, **options: Any) -> Drawn:
        """Samples of a source that has a model."""
        assert source.model is not None
        assert source.sampler is not None
        return draw(
            source.domain, source.model.to(self.device), source.sampler(**options), self.num, seed=self.seed,
            batch_size=self.batch, precision=source.precision, device=self.device, request=self.request,
        )  # fmt: skip

    def row(self, source: Source) -> Row:
        """The source's line of the table, metrics of its model among the extras."""
        drawn = None if source.samples is not None else self.draw(source)
        samples = drawn.samples if drawn else source.samples or []
        of_models = source.domain.model_metrics()
        others = [n for n in self.extras if n not in of_models and n != PAIRED]
        found = measure(source.domain, samples, self.seed, others, self.request)
        if PAIRED in self.extras and drawn:
            found |= self.paired(source, samples)
        if source.model is not None and source.sampler is not None:
            for name in self.extras:
                if name in of_models:
                    found |= of_models[name](source.model, source.sampler(), self.num, self.seed)
        cost = (drawn.calls, drawn.seconds, drawn.others) if drawn else ()
        return Row(source.name, found, samples, *cost)

    def paired(self, source: Source, samples: Sequence[Any]) -> dict[str, Metric]:
        """Against what the teacher's reference sampler makes of the same noise, drawn once for all its students."""
        if source.teacher is None:
            return {}
        if source.taught not in self._taught:
            sampler = partial(teacher_sampler, source.domain.teacher_samplers()["reference"])
            teacher = Source("teacher", source.domain, model=source.teacher(), sampler=sampler)
            self._taught[source.taught] = self.draw(teacher).samples
        return source.domain.paired_metrics(samples, self._taught[source.taught], self.seed)

    def curve(self, source: Source, axes: Axes, settings: Sequence[float], row: Row) -> Curve:
        """The source at every setting; the samples of its row are one point, those of a folder the only one."""
        rows, usual = source.domain.curve_rows, source.usual.get(axes.setting)
        if source.model is None:
            return Curve(source.name, (Point(None, rows(row.samples)),))

        def drawn(setting: float) -> Drawn:
            if setting == usual and row.calls is not None and row.seconds is not None:
                return Drawn(list(row.samples), row.calls, row.seconds)
            return self.draw(source, **{axes.setting: setting})

        return sweep(source.name, settings, drawn, rows)


def targets(
    curves: Sequence[Curve], sources: Sequence[Source], axes: Axes, real: Mapping[str, Any]
) -> dict[str, float]:
    """Where curves are compared: the x of the first teacher as it is published (setting 1), and that of real data."""
    found = {}
    for curve, source in zip(curves, sources, strict=True):
        own = [p for p in curve.points if p.setting == source.usual.get(axes.setting)]
        if source.name.startswith("teacher") and own:
            found[f"the {axes.x} of {source.name}"] = own[0].x
            break
    if axes.x in real:
        found[f"the {axes.x} of real data"] = real[axes.x].value
    return found
