"""From many designs to the few worth keeping: the best by a column of the manifest, no two of them alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xdistill.domain import Domain
from xdistill.errors import UsageError, XDistillError
from xdistill.generation import manifest
from xdistill.generation.shards import Designs, replace_file
from xdistill.registry import nearest

FOLDER, TABLE = "shortlist", "shortlist.parquet"
BLOCK = 1024  # candidates read at once: a pass over their shards each


@dataclass(frozen=True)
class Choice:
    """keep: most designs. by: column to rank by, best first. diversity: most similarity of any two kept (none: any)."""

    keep: int
    by: str
    diversity: float | None = None


@dataclass(frozen=True)
class Shortlist:
    """kept: designs, best first. candidates: designs to choose from. examined: those looked at until enough were
    kept; alike: those too similar to a better one; unusable: those that no file can hold.
    """

    kept: list[int]
    candidates: int
    examined: int
    alike: int
    unusable: int

    def line(self, choice: Choice) -> str:
        """What a run says of it."""
        text = f"shortlist: {len(self.kept)} of {self.candidates} samples by {choice.by}"
        if choice.diversity is not None:
            text += f", no two more alike than {choice.diversity:g} ({self.alike} of {self.examined} examined were)"
        if self.unusable:
            text += f"; {self.unusable} hold unusable coordinates"
        return text if len(self.kept) == choice.keep else f"{text}; fewer than keep={choice.keep}, no more are left"


def check(choice: Choice, domain: Domain, columns: Sequence[str]) -> None:
    """Raise UsageError, before anything is generated, for a shortlist that the run could not end with.

    columns: of the run's filters (`Funnel.columns`).
    """
    if choice.keep < 1:
        raise UsageError(f"keep={choice.keep}: expected at least 1")
    if choice.by not in domain.ranking:
        raise UsageError(f"cannot rank by '{choice.by}'{nearest(choice.by, domain.ranking)}")
    if choice.by not in (*domain.design_columns, *columns):
        names = [name for name, factory in domain.filters().items() if choice.by in _columns(factory)]
        raise UsageError(f"by={choice.by} needs the filter that measures it: add {' or '.join(names)} to filter=")
    if choice.diversity is not None:
        if not 0 < choice.diversity < 1:
            raise UsageError(f"diversity={choice.diversity:g}: expected a similarity between 0 and 1")
        domain.neighbours(choice.diversity)


def ranked(rows: pa.Table, domain: Domain, by: str) -> list[int]:
    """Indices of the designs that passed and have a file and a value, best first, ties by index."""
    if by not in rows.column_names:
        raise UsageError(f"by={by}: the manifest has no such column{nearest(by, rows.column_names)}")
    rows = rows.filter(pc.and_(rows["passed"], rows["file"].is_valid()))
    value = rows[by].cast(pa.float64()).to_numpy(zero_copy_only=False)
    index = rows["index"].to_numpy()
    known = np.isfinite(value)
    value, index = value[known] * (1 if domain.ranking[by] == "low" else -1), index[known]
    return index[np.lexsort((index, value))].tolist()


def greedy(
    order: Sequence[int],
    among: Callable[[Sequence[int]], Mapping[int, Any]],
    domain: Domain,
    choice: Choice,
    format: str,
    on_step: Callable[[int, int], None] = lambda examined, kept: None,
) -> tuple[Shortlist, dict[int, bytes]]:
    """Take designs in `order` unless one taken before is too similar, until `choice.keep` are taken.

    among: indices -> samples. on_step sees how many are examined and kept. Returns the kept ones' files as well.
    """
    near = None if choice.diversity is None else domain.neighbours(choice.diversity)
    files: dict[int, bytes] = {}
    examined = alike = unusable = 0
    for index, sample in _stream(order, among):
        if len(files) == choice.keep:
            break
        examined += 1
        try:
            data = domain.encode(sample, format)
        except UsageError:
            raise
        except XDistillError:
            unusable += 1
            continue
        if near is not None and near.has_near(sample):
            alike += 1
        else:
            files[index] = data
            if near is not None:
                near.add(sample)
        on_step(examined, len(files))
    return Shortlist(list(files), len(order), examined, alike, unusable), files


def shortlist(
    folder: Path,
    rows: pa.Table,
    domain: Domain,
    choice: Choice,
    format: str | None = None,
    on_step: Callable[[int, int], None] = lambda examined, kept: None,
) -> Shortlist:
    """Choose among the designs of a finished run; writes `folder/shortlist/` and `folder/shortlist.parquet`.

    rows: the run's manifest; the written table holds the rows of the kept designs, best first, with their `rank` (from
    1) and their `file`. format: of the files, default the domain's first. An earlier shortlist is replaced.
    """
    format = format or domain.formats[0]
    within = dict(zip(rows["index"].to_pylist(), rows["file"].to_pylist(), strict=True))
    designs = Designs(domain, {i: folder / file for i, file in within.items() if file is not None})
    chosen, files = greedy(ranked(rows, domain, choice.by), designs.among, domain, choice, format, on_step)
    names = {index: f"{FOLDER}/sample_{index:06d}.{format}" for index in chosen.kept}
    (folder / TABLE).unlink(missing_ok=True)  # the table is written last: it says that the files are complete
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    for index, data in files.items():
        replace_file(folder / names[index], data, durable=False)
    replace_file(folder / TABLE, manifest.encode(_table(rows, chosen.kept, names)))
    return chosen


def _table(rows: pa.Table, kept: Sequence[int], names: Mapping[int, str]) -> pa.Table:
    place = {index: i for i, index in enumerate(rows["index"].to_pylist())}
    table = rows.take(pa.array([place[index] for index in kept], pa.int64()))
    table = table.drop_columns([c for c in ("sha256", "offset", "shard") if c in table.column_names])
    file = pa.array([names[index] for index in kept], pa.string())
    table = table.set_column(table.column_names.index("file"), "file", file)
    return table.add_column(0, "rank", pa.array(range(1, len(kept) + 1), pa.int64()))


def _stream(order: Sequence[int], among: Callable[[Sequence[int]], Mapping[int, Any]]) -> Iterator[tuple[int, Any]]:
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        samples = among(block)
        yield from ((index, samples[index]) for index in block)


def _columns(factory: Any) -> Sequence[str]:
    return getattr(factory, "columns", ())
