"""A corpus as ids in a memory-mapped file: made once, a piece at a time, and found again by what it was made of."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from xdistill.cache import alone, cache_folder
from xdistill.domains.text.documents import Documents, Piece
from xdistill.domains.text.text_report import TextReport
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.errors import XDistillError

SCHEMA = 1
BATCH = 1 << 19  # characters encoded at once: their encodings need about a hundred times as many bytes
FEW = 250  # documents: of fewer, whole ones would make too uneven a validation split
SLOW = 8 << 20  # bytes: a corpus from here on shows a progress bar


@dataclass(frozen=True)
class TokenStream:
    """`folder/ids.bin` (uint16 or uint32, little-endian) and `folder/manifest.json`, which says where each split lies.

    Opening it checks the manifest's own checksum and the file's length; raises ValueError or OSError when damaged.
    """

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """dtype, count, cut (train is before it, validation after), report."""
        values = json.loads((self.folder / "manifest.json").read_bytes())
        if values.pop("sha256") != _digest(values):
            raise ValueError("the checksum of manifest.json is wrong")
        found, wanted = (self.folder / "ids.bin").stat().st_size, values["count"] * np.dtype(values["dtype"]).itemsize
        if found != wanted:
            raise ValueError(f"ids.bin has {found} bytes, expected {wanted}")
        return values

    @property
    def report(self) -> TextReport:
        """What was kept and left out when it was made."""
        return TextReport.from_dict(self.manifest["report"])

    def ids(self, split: str) -> NDArray[np.integer]:
        """[T] the ids of `train` or `validation`, memory-mapped and read-only."""
        count, cut, dtype = (self.manifest[k] for k in ("count", "cut", "dtype"))
        start, stop = (0, cut) if split == "train" else (cut, count)
        if start == stop:
            return np.empty(0, dtype)
        at = start * np.dtype(dtype).itemsize
        return np.memmap(self.folder / "ids.bin", dtype, mode="r", offset=at, shape=(stop - start,))


def token_stream(documents: Documents, tokenizer: TextTokenizer, *, ends: bool = True) -> TokenStream:
    """The ids of all documents without specials, END after each when `ends`; made when not there or damaged.

    Of processes that ask for the same one, the first makes it, the others wait. Memory does not grow with the corpus.

    Raises:
        XDistillError: the documents are empty or unusable, or the cache folder cannot be written to.
    """
    made_of = {"schema": SCHEMA, "tokenizer": tokenizer.fingerprint, "ends": ends, "documents": documents.identity()}
    parent = cache_folder("tokens")
    folder = parent / _digest(made_of)[:24]
    stream = _open(folder)
    if stream:
        return stream
    try:
        with alone(parent / f"{folder.name}.lock", f"the token stream of {documents.name}"):
            if stream := _open(folder):
                return stream
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as scratch:
                made = Path(scratch) / "stream"
                made.mkdir()
                _build(made, documents, tokenizer, ends)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(made, folder)
    except OSError as error:
        raise XDistillError(
            f"could not write the tokens of {documents.name} to {parent} ({error}): make room there, or set "
            f"XDISTILL_CACHE to another folder"
        ) from error
    return TokenStream(folder)


def _open(folder: Path) -> TokenStream | None:
    """The stream in `folder` if there is one, whole."""
    stream = TokenStream(folder)
    try:
        return stream if stream.manifest else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        Console(stderr=True).print(f"{folder} is damaged ({error}): making it again")
        return None


def _build(folder: Path, documents: Documents, tokenizer: TextTokenizer, ends: bool) -> None:
    report, dtype = TextReport(), "<u2" if tokenizer.vocabulary <= 1 << 16 else "<u4"
    counts = {"train": 0, "validation": 0}
    end = [tokenizer.end_id] if ends else []
    with open(folder / "ids.bin", "w+b") as train, open(folder / "validation.bin", "w+b") as validation:
        files: dict[str, IO[bytes]] = {"train": train, "validation": validation}
        for batch in _batches(documents, report):
            for piece, ids in zip(batch, tokenizer.encode_batch([p.text for p in batch]), strict=True):
                counts[piece.split] += files[piece.split].write(
                    np.asarray([*ids, *end] if piece.last else ids, dtype=dtype).tobytes()
                )
        validation.seek(0)
        shutil.copyfileobj(validation, train)
    (folder / "validation.bin").unlink()
    cut, count = (n // np.dtype(dtype).itemsize for n in (counts["train"], sum(counts.values())))
    if documents.holdout is not None and report.documents < FEW:
        cut, report.held_out = count - round(documents.holdout * count), 0
    values = {"dtype": dtype, "count": count, "cut": cut, "report": report.to_dict()}
    (folder / "manifest.json").write_text(json.dumps({**values, "sha256": _digest(values)}, indent=2) + "\n")


def _batches(documents: Documents, report: TextReport) -> Iterator[list[Piece]]:
    """Pieces in their order, in batches of limited size; shows how far it is."""
    columns = TextColumn("tokenising {task.description}"), BarColumn(), TimeRemainingColumn()
    size = documents.size
    batch: list[Piece] = []
    held = 0
    with Progress(*columns, console=Console(stderr=True), disable=0 < size < SLOW) as progress:
        task = progress.add_task(documents.name, total=size or None)
        for piece in documents.pieces(report):
            batch.append(piece)
            held += len(piece.text) + 1
            if held >= BATCH:
                yield batch
                progress.update(task, completed=report.characters)
                batch, held = [], 0
        yield batch


def _digest(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
