"""Filters on the way: each judges what the ones before it let pass, so the expensive ones see few samples."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from xdistill.domain import Domain, Filter
from xdistill.errors import UsageError, XDistillError
from xdistill.registry import nearest

PREFIX = "filter."
BATCH = 64  # samples a filter sees at once


@dataclass(frozen=True)
class FilterRecord:
    """What became of one sample: the filter it fell at (none: it passed all), and the values measured until then."""

    passed: bool
    failed_at: str | None
    values: dict[str, float]


@dataclass(frozen=True)
class Stage:
    """One filter's share of a run."""

    name: str
    entered: int
    fell: int


class Funnel:
    """Filters of a domain in a given order; without any, every sample passes.

    names: of the domain's filters, first to last. options: filter -> its options, as text or as values.
    description: what decides a verdict, for the identity of a request: filter -> every option with its value.
    columns: names of all values that records may carry, in order.

    Raises UsageError for an unknown or repeated filter, an unknown option, a value of the wrong type or out of range,
    options of a filter that is not named, and whatever a filter itself needs and misses.
    """

    def __init__(
        self, names: Sequence[str], domain: Domain, options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.names, options, known = tuple(names), options or {}, domain.filters()
        for name in self.names:
            if name not in known:
                raise UsageError(f"domain '{domain.name}' has no filter '{name}'{nearest(name, known)}")
        if repeated := [name for name, times in Counter(self.names).items() if times > 1]:
            raise UsageError(f"filter '{repeated[0]}' is named twice: name each once, in the order they should run")
        if unused := [name for name in options if name not in self.names]:
            raise UsageError(f"{PREFIX}{unused[0]}.* is given, but filter={','.join(self.names)} does not name it")
        self.description = {name: _options(name, known[name], options.get(name, {})) for name in self.names}
        self._filters: dict[str, Filter] = {name: known[name](**self.description[name]) for name in self.names}
        self.columns = tuple(dict.fromkeys(c for f in self._filters.values() for c in f.columns))

    @classmethod
    def from_text(cls, text: str | None, domain: Domain, options: Mapping[str, str] | None = None) -> Funnel:
        """`geometry,mpnn` and flat options `geometry.bonds` -> `0.9` (see `filter_options`)."""
        grouped: dict[str, dict[str, str]] = {}
        for path, value in (options or {}).items():
            name, dot, key = path.partition(".")
            if not dot or not key:
                raise UsageError(f"{PREFIX}{path}={value}: expected {PREFIX}NAME.OPTION=VALUE")
            grouped.setdefault(name, {})[key] = value
        return cls([name.strip() for name in (text or "").split(",") if name.strip()], domain, grouped)

    def apply(self, samples: Sequence[Any], indices: Sequence[int]) -> list[FilterRecord]:
        """One record a sample, in order. indices: of the samples, for messages; verdicts do not depend on them."""
        values: list[dict[str, float]] = [{} for _ in samples]
        failed: list[str | None] = [None] * len(samples)
        alive = list(range(len(samples)))
        for name, judge in self._filters.items():
            for start in range(0, len(alive), BATCH):
                batch = alive[start : start + BATCH]
                for i, verdict in zip(batch, self._verdicts(name, judge, samples, batch, indices), strict=True):
                    values[i] |= {k: float(v) for k, v in verdict.values.items()}
                    failed[i] = None if verdict.passed else name
            alive = [i for i in alive if failed[i] is None]
        return [FilterRecord(f is None, f, v) for f, v in zip(failed, values, strict=True)]

    @staticmethod
    def _verdicts(
        name: str, judge: Filter, samples: Sequence[Any], batch: Sequence[int], indices: Sequence[int]
    ) -> Sequence[Any]:
        where = f"filter '{name}' on samples {indices[batch[0]]}..{indices[batch[-1]]}"
        try:
            verdicts = judge([samples[i] for i in batch])
        except XDistillError as error:
            raise type(error)(f"{where}: {error}") from error
        if len(verdicts) != len(batch):
            raise XDistillError(f"{where} gave {len(verdicts)} verdicts for {len(batch)} samples: expected one each")
        return verdicts


def filter_options(pairs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split command-line pairs: (`filter.NAME.OPTION` without the prefix -> value, all the others)."""
    mine = {k.removeprefix(PREFIX): v for k, v in pairs.items() if k.startswith(PREFIX)}
    return mine, {k: v for k, v in pairs.items() if not k.startswith(PREFIX)}


def filter_counts(names: Sequence[str], failed_at: Iterable[str | None]) -> list[Stage]:
    """What fell where, from the manifest's column `failed_at` (none: passed all) and the filters in their order."""
    counts = Counter(failed_at)
    entered, stages = counts.total(), []
    for name in names:
        stages.append(Stage(name, entered, counts[name]))
        entered -= counts[name]
    return stages


def counts_table(stages: Sequence[Stage], passed: int) -> Table:
    """The funnel as a table, one row a filter."""
    table = Table(title="filters, in their order")
    for column in ("", "entered", "fell", "fell, share"):
        table.add_column(column, justify="right" if column else "left")
    for stage in stages:
        share = stage.fell / stage.entered if stage.entered else 0.0
        table.add_row(stage.name, str(stage.entered), str(stage.fell), f"{share:.1%}")
    table.add_section()
    table.add_row("passed all", str(passed), "", "")
    return table


def _options(name: str, factory: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a filter: the given value in the type of its default, or the default."""
    defaults = {k: p.default for k, p in inspect.signature(factory).parameters.items()}
    for key in given:
        if key not in defaults:
            raise UsageError(f"unknown option '{PREFIX}{name}.{key}'{nearest(key, defaults)}")
    return defaults | {k: _typed(f"{PREFIX}{name}.{k}", v, defaults[k]) for k, v in given.items()}


def _typed(path: str, value: Any, default: Any) -> Any:
    kinds: dict[type, tuple[str, Any]] = {
        bool: ("true or false", {"true": True, "false": False}.__getitem__),
        int: ("an integer", int),
        float: ("a number", float),
    }
    if not isinstance(value, str) or type(default) not in kinds:
        return value
    what, convert = kinds[type(default)]
    try:
        return convert(value)
    except (ValueError, KeyError):
        raise UsageError(f"{path}={value}: expected {what}, e.g. {path}={str(default).lower()}") from None
