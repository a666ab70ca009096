"""A corpus as a stream of documents that is never held in memory: a user's files, or what ships with the domain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from xdistill.domains.text.readers import READERS, cut
from xdistill.domains.text.text_report import TextReport
from xdistill.errors import UsageError, XDistillError

HASHED = 4096  # first characters of a document that decide its split


@dataclass(frozen=True)
class Piece:
    """A part of a document of `split`; `last`: the document ends with it. Pieces of a document follow each other."""

    text: str
    split: str
    last: bool


class Documents(Protocol):
    """A corpus that can be read again. name: for messages. size: bytes to read, 0 when unknown.

    holdout: share of the tokens to hold out when the documents are too few to hold out whole ones; None: never.
    """

    @property
    def name(self) -> str: ...

    @property
    def holdout(self) -> float | None: ...

    @property
    def size(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """Plain JSON values that change whenever the documents do."""

    def pieces(self, report: TextReport) -> Iterator[Piece]:
        """The documents in an order that never changes; counts into `report`."""


@dataclass(frozen=True)
class Files:
    """A file, or all files below a folder, of .txt, .md, .jsonl and .parquet; hidden ones are left out.

    A .txt or .md file is one document, or several between lines of <|endoftext|>. key: of a JSON object, or the
    column, that holds the text. holdout: share of the documents for validation, chosen by a hash of how a document
    begins, so that it stays held out whatever is added to the folder. White space around a document is dropped.
    """

    path: Path
    key: str = "text"
    holdout: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UsageError(f"holdout={self.holdout}: expected a share of the documents, 0 or more and below 1")

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        files = self.files()
        packed = any(p.suffix.lower() == ".parquet" for p in files)
        return 0 if packed else sum(p.stat().st_size for p in files)

    def files(self) -> list[Path]:
        """The files, sorted by relative path; raises XDistillError when none has a format that is read."""
        if self.path.is_file():
            found = [self.path]
        elif self.path.is_dir():
            found = [p for p in self.path.rglob("*") if p.is_file() and not self._name(p).startswith(".")]
            found = [p for p in found if "/." not in self._name(p)]
        else:
            raise XDistillError(f"{self.path} is no file or folder: give {', '.join(READERS)} files")
        if not any(p.suffix.lower() in READERS for p in found):
            raise XDistillError(f"no text file in {self.path}: expected {', '.join(READERS)}")
        return sorted(found, key=self._name)

    def _name(self, path: Path) -> str:
        return path.name if path == self.path else path.relative_to(self.path).as_posix()

    def identity(self) -> dict[str, Any]:
        stats = [(p, p.stat()) for p in self.files()]
        files = [[str(p.resolve()), s.st_size, s.st_mtime_ns] for p, s in stats]
        return {"files": files, "key": self.key, "holdout": self.holdout}

    def pieces(self, report: TextReport) -> Iterator[Piece]:
        for path in self.files():
            name = self._name(path)
            reader = READERS.get(path.suffix.lower())
            if reader is None:
                report.skip("other format", name)
                continue
            report.files += 1
            try:
                for number, blocks in enumerate(reader(path, name, self.key, report), 1):
                    yield from self._document(blocks, f"{name} document {number}", report)
            except OSError as error:
                report.skip("unreadable file", f"{name} ({error.strerror})")
        if not report.documents:
            raise XDistillError(report.nothing(self.name))

    def _document(self, blocks: Iterable[str], name: str, report: TextReport) -> Iterator[Piece]:
        split = ""
        for text, last in cut(blocks):
            if not split:
                if not text:
                    report.skip("empty document", name)
                    return
                split = "validation" if _fraction(text[:HASHED]) < self.holdout else "train"
                report.documents += 1
                report.held_out += split == "validation"
            report.characters += len(text)
            yield Piece(text, split, last)


def _fraction(text: str) -> float:
    """A number in [0, 1) that only the text decides."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=6).digest(), "big") / 2**48
