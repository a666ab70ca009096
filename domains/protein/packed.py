"""Many CA traces in one gzipped BinaryCIF file: one model a design, coordinates with the three decimals of PDB.

Any program that reads BinaryCIF opens a packed shard; the category `xdistill_design` says which design each model is.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from biotite.structure.io import pdbx
from biotite.structure.io.pdbx.encoding import (
    ByteArrayEncoding,
    DeltaEncoding,
    Encoding,
    FixedPointEncoding,
    IntegerPackingEncoding,
    RunLengthEncoding,
    StringArrayEncoding,
)
from numpy.typing import ArrayLike, NDArray

from xdistill.domains.protein.codec import NM
from xdistill.errors import XDistillError

SUFFIX = ".bcif.gz"
DECIMALS = 1000  # steps of 0.001 A, what PDB columns hold
LIMIT = 999.999  # A: what PDB columns hold on both sides, and float32 keeps to 0.001 A
MISSING = 2  # BinaryCIF's mask value for `?`
DESIGNS, BLOCK = "xdistill_design", "designs"


def thousandths(coords_nm: ArrayLike) -> NDArray[np.float64]:
    """Coordinates [n, 3] in whole steps of 0.001 A, rounded as a PDB file rounds them; NaN where it holds none.

    NaN, infinity and values beyond +-999.999 A are the ones that no PDB file holds.
    """
    x = (np.asarray(coords_nm, np.float32) * np.float32(NM)).astype(np.float64)  # the product that the codec writes
    with np.errstate(invalid="ignore"):
        steps = np.rint(x * DECIMALS)  # exact: 24 bits times 10 bits; ties to even, as in decimal formatting
        return np.where(np.abs(steps) <= LIMIT * DECIMALS, steps, np.nan) + 0.0  # -0.000 becomes 0.000


def on_grid(coords_nm: ArrayLike) -> NDArray[np.float32]:
    """The trace [n, 3] in nm as a file returns it: rounded to 0.001 A, the same when rounded again."""
    return (thousandths(coords_nm) / (DECIMALS * NM)).astype(np.float32)


def pack(traces: Sequence[ArrayLike], indices: Sequence[int]) -> bytes:
    """A packed shard of CA traces [n, 3] in nm; a coordinate that `thousandths` does not hold is stored as unknown.

    Raises:
        XDistillError: no trace, a shape other than [n, 3] with n >= 1, or a repeated index.
    """
    arrays = [np.asarray(t) for t in traces]
    if not arrays or any(a.ndim != 2 or a.shape[1] != 3 or len(a) == 0 for a in arrays):
        raise XDistillError(f"a packed shard takes CA traces [n, 3], got shapes {[list(a.shape) for a in arrays][:5]}")
    if len(indices) != len(arrays) or len(set(indices)) != len(indices):
        raise XDistillError(
            f"a packed shard takes one distinct index a design: {len(arrays)} designs, {list(indices)[:5]}"
        )
    lengths = np.array([len(a) for a in arrays], np.int32)
    steps = np.concatenate([thousandths(a) for a in arrays])
    block = pdbx.BinaryCIFBlock({"atom_site": _atom_site(steps, lengths), DESIGNS: _designs(indices, lengths)})
    buffer = BytesIO()
    pdbx.BinaryCIFFile({BLOCK: block}).write(buffer)
    return gzip.compress(buffer.getvalue(), mtime=0)


def unpack(data: bytes) -> dict[int, NDArray[np.float32]]:
    """Index -> CA trace [n, 3] in nm of a packed shard, equal to `on_grid` of what was packed; unknown values are NaN.

    Raises:
        XDistillError: truncated, altered, or no packed shard at all.
    """
    try:
        block = pdbx.BinaryCIFFile.read(BytesIO(gzip.decompress(data)))[BLOCK]
        index, length = (block[DESIGNS][name].as_array(np.int64) for name in ("index", "length"))
        atoms = block["atom_site"]
        x = np.stack([atoms[f"Cartn_{axis}"].as_array(np.float64, masked_value=np.nan) for axis in "xyz"], axis=1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise XDistillError(f"truncated or altered packed shard ({error})") from error
    except Exception as error:  # intact gzip of something else: biotite's parser raises nearly anything
        raise XDistillError(f"no packed shard of designs ({type(error).__name__}: {str(error)[:80]})") from error
    if len(index) != len(length) or length.min(initial=1) < 1 or length.sum() != len(x):
        raise XDistillError(
            f"packed shard is inconsistent: {len(index)} designs, {len(x)} atoms, {length.sum()} expected"
        )
    trace = (x / NM).astype(np.float32)
    return dict(zip(index.tolist(), np.split(trace, np.cumsum(length)[:-1]), strict=True))


def _designs(indices: Sequence[int], lengths: NDArray[np.int32]) -> pdbx.BinaryCIFCategory:
    return pdbx.BinaryCIFCategory(
        {
            "model_num": _integers(np.arange(1, len(lengths) + 1)),
            "index": _integers(np.asarray(indices)),
            "length": _integers(lengths),
        }
    )


def _atom_site(steps: NDArray[np.float64], lengths: NDArray[np.int32]) -> pdbx.BinaryCIFCategory:
    total = len(steps)
    residue = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    constants = {
        "group_PDB": "ATOM",
        "type_symbol": "C",
        "label_atom_id": "CA",
        "label_alt_id": ".",
        "label_comp_id": "ALA",
        "label_asym_id": "A",
        "label_entity_id": "1",
        "pdbx_PDB_ins_code": "?",
        "auth_asym_id": "A",
        "auth_comp_id": "ALA",
        "auth_atom_id": "CA",
    }
    columns: dict[str, Any] = {name: _constant(value, total) for name, value in constants.items()}
    columns["id"] = _integers(np.arange(1, total + 1))
    columns["label_seq_id"] = columns["auth_seq_id"] = _integers(residue)
    columns["pdbx_PDB_model_num"] = _integers(np.repeat(np.arange(1, len(lengths) + 1), lengths))
    columns |= {f"Cartn_{axis}": _coordinate(steps[:, k]) for k, axis in enumerate("xyz")}
    return pdbx.BinaryCIFCategory(columns)


def _coordinate(steps: NDArray[np.float64]) -> pdbx.BinaryCIFColumn:
    unknown = np.isnan(steps)
    mask = pdbx.BinaryCIFData(np.where(unknown, MISSING, 0).astype(np.uint8), [ByteArrayEncoding()])
    angstrom = np.where(unknown, 0.0, steps) / DECIMALS
    packed = [FixedPointEncoding(DECIMALS), DeltaEncoding(), IntegerPackingEncoding(2), ByteArrayEncoding()]
    return pdbx.BinaryCIFColumn(pdbx.BinaryCIFData(angstrom, packed), mask if unknown.any() else None)


def _integers(values: NDArray[Any]) -> pdbx.BinaryCIFColumn:
    packed = [DeltaEncoding(), RunLengthEncoding(), IntegerPackingEncoding(2), ByteArrayEncoding()]
    return pdbx.BinaryCIFColumn(pdbx.BinaryCIFData(values.astype(np.int32), packed))


def _constant(value: str, count: int) -> pdbx.BinaryCIFColumn:
    runs: list[Encoding] = [RunLengthEncoding(), IntegerPackingEncoding(1), ByteArrayEncoding()]
    mask = {".": 1, "?": MISSING}.get(value)
    data = pdbx.BinaryCIFData(np.full(count, "" if mask else value), [StringArrayEncoding(data_encoding=runs)])
    if mask is None:
        return pdbx.BinaryCIFColumn(data)
    return pdbx.BinaryCIFColumn(data, pdbx.BinaryCIFData(np.full(count, mask, np.uint8), [*runs]))
