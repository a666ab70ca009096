"""The manifest of designs as Parquet: one row a design, the same bytes for the same rows, however they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xdistill.errors import XDistillError

#: What every manifest starts with; then the domain's metrics, the filters' values, and `LAST`.
FIRST = {
    "index": pa.int64(),
    "shard": pa.int64(),
    "file": pa.string(),
    "offset": pa.int64(),
    "seed": pa.int64(),
    "length": pa.int64(),
    "calls": pa.int64(),
}
LAST = {"passed": pa.bool_(), "failed_at": pa.string(), "sha256": pa.string()}
ROW_GROUP = 65_536  # designs


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows with equal keys -> a table, sorted by index. A value that no row has (None) is a missing number."""
    columns = {}
    for name in rows[0]:
        known = {**FIRST, **LAST}.get(name)
        column = pa.array([row[name] for row in rows], known)
        columns[name] = column.cast(pa.float64()) if pa.types.is_null(column.type) else column
    return pa.table(columns).sort_by("index")


def encode(rows: pa.Table) -> bytes:
    """Parquet bytes, a function of the rows."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue().to_pybytes()


def read(path: Path) -> pa.Table:
    """A manifest or a part of one; raises XDistillError when it is damaged."""
    try:
        return pq.read_table(pa.BufferReader(path.read_bytes()))
    except (pa.ArrowInvalid, OSError) as error:
        raise XDistillError(
            f"{path} is no Parquet file ({str(error)[:80]}): delete it, generate makes it anew"
        ) from error


def merge(parts: Iterable[pa.Table]) -> pa.Table:
    """All rows, sorted by index; columns that are whole numbers in one part and not in another become numbers."""
    return pa.concat_tables(parts, promote_options="permissive").sort_by("index").combine_chunks()


def of_shards(rows: pa.Table, shards: Iterable[int]) -> pa.Table:
    """The rows of some shards."""
    return rows.filter(pc.is_in(rows["shard"], pa.array(sorted(shards), pa.int64())))
