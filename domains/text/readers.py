"""Files of text, one reader a format: each yields documents, and a document is an iterable of blocks of text."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from xdistill.domains.text.text_report import TextReport
from xdistill.domains.text.tokenizers import END

BLOCK = 1 << 16  # characters of a piece of a document, at least; none is longer than two
WINDOW = 4096  # characters before a cut in which a space between words is looked for


def read_text(path: Path, name: str, key: str, report: TextReport) -> Iterator[Iterable[str]]:
    """The documents of a text file: all of it, or what stands between lines of END; `key` is not used."""
    if (at := not_utf8(path)) is not None:
        report.skip("not UTF-8", f"{name} (byte {at})")
        return
    with open(path, encoding="utf-8-sig") as file:
        lines = iter(lambda: file.readline(BLOCK), "")
        for line in lines:
            document = _until_end(line, lines)
            yield document
            for _ in document:  # what the consumer left of it
                continue


def _until_end(line: str, more: Iterator[str]) -> Iterator[str]:
    following: str | None = line
    while following is not None and following.strip() != END:
        yield following
        following = next(more, None)


def read_json_lines(path: Path, name: str, key: str, report: TextReport) -> Iterator[Iterable[str]]:
    """The value of `key` in the JSON object of each line."""
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{name} line {number}"
            try:
                value = json.loads(raw.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                report.skip("not UTF-8", f"{where} (byte {error.start} of the line)")
                continue
            except (ValueError, RecursionError):
                if raw.strip():
                    report.skip("not JSON", where)
                continue
            text = value.get(key) if isinstance(value, dict) else None
            if (usable := _usable(text, where, report)) is not None:
                yield [usable]


def read_parquet(path: Path, name: str, key: str, report: TextReport) -> Iterator[Iterable[str]]:
    """The rows of column `key`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if key not in file.schema_arrow.names:
                report.skip("no text", f"{name} (columns {', '.join(file.schema_arrow.names[:6])})")
                return
            values = (v for batch in file.iter_batches(batch_size=256, columns=[key]) for v in batch.column(0))
            for row, value in enumerate(values, 1):
                where = f"{name} row {row}"
                try:
                    text = value.as_py()
                except UnicodeDecodeError as error:
                    report.skip("not UTF-8", f"{where} (byte {error.start} of the text)")
                    continue
                if (usable := _usable(text, where, report)) is not None:
                    yield [usable]
    except (OSError, pa.ArrowException) as error:
        report.skip("unreadable file", f"{name} ({str(error).splitlines()[0]})")


def _usable(text: object, where: str, report: TextReport) -> str | None:
    if not isinstance(text, str):
        report.skip("no text", where)
        return None
    try:
        text.encode("utf-8")  # JSON may hold half of a surrogate pair
    except UnicodeEncodeError as error:
        report.skip("not UTF-8", f"{where} (character {error.start} of the text)")
        return None
    return text


READERS = {".txt": read_text, ".md": read_text, ".jsonl": read_json_lines, ".parquet": read_parquet}


def cut(blocks: Iterable[str], limit: int = BLOCK) -> Iterator[tuple[str, bool]]:
    """A document without outer white space in pieces of about `limit` characters, and whether each is its last.

    A piece after the first begins with the space between two words, where tokenizers cut too, so that the pieces have
    the ids of the whole document; only where there is no such space, it begins at a new line or anywhere.
    """
    held: list[str] = []
    size, begun = 0, False
    for block in blocks:
        held.append(block)
        size += len(block)
        if size <= 2 * limit:
            continue
        text = "".join(held) if begun else "".join(held).lstrip()
        start = 0
        while len(text) - start > 2 * limit:
            end = _between_words(text, start + limit)
            yield text[start:end], False
            start, begun = end, True
        held, size = [text[start:]], len(text) - start
    text = "".join(held).rstrip()
    yield text if begun else text.lstrip(), True


def _between_words(text: str, end: int) -> int:
    """A place to cut at, at most `end` and at least one piece's window before it."""
    start = max(end - WINDOW, 1)
    spaces = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", text[start:end])]
    if spaces:
        return start + spaces[-1]
    line = text.rfind("\n", start, end)
    return line if line > 0 else end


def not_utf8(path: Path) -> int | None:
    """The offset of the first byte that is not UTF-8, None when all are; reads the file in pieces."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return done - pending + error.start
            if not block:
                return None
            done += len(block)
