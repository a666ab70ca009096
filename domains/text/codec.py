"""Passages in files: JSON, one object a passage, alone or one a line; and plain text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xdistill.domains.text.passage import Passage, passage
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.errors import UsageError, XDistillError
from xdistill.registry import nearest

FORMATS = ("json", "txt")
PACKED_SUFFIX = ".jsonl"


def as_json(sample: Passage, index: int | None = None) -> dict[str, Any]:
    """What a line says of a passage; `passage_of` is its inverse."""
    found: dict[str, Any] = {} if index is None else {"index": index}
    found["text"] = sample.text
    if sample.given:
        found |= {"prompt": sample.prompt, "filled": list(sample.filled), "given": [list(s) for s in sample.given]}
    return found | {"ids": list(sample.ids)}


def passage_of(found: Any, tokenizer: TextTokenizer) -> Passage:
    """From what `as_json` returns, or from a text alone; raises XDistillError for anything else."""
    if isinstance(found, str):
        found = {"text": found}
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise XDistillError('expected a text, or an object with "text"')
    if "ids" not in found:
        return passage(tokenizer.encode(found["text"]), (), tokenizer)
    try:
        ids = tuple(int(i) for i in found["ids"])
        given = tuple((int(a), int(b)) for a, b in found.get("given", ()))
        filled = tuple(str(text) for text in found.get("filled", ()))
    except (TypeError, ValueError) as error:
        raise XDistillError(f'"ids", "given" or "filled" are not what generate writes ({error})') from error
    if any(not 0 <= i < tokenizer.vocabulary for i in ids):
        raise XDistillError(f'"ids" has numbers outside 0-{tokenizer.vocabulary - 1}: it is of another tokenizer')
    return Passage(ids, found["text"], given, str(found.get("prompt", "")), filled)


def line(sample: Passage, index: int | None = None) -> bytes:
    """One JSON object with its newline."""
    return (json.dumps(as_json(sample, index), ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def encode(sample: Passage, format: str) -> bytes:
    """The file of one passage; raises UsageError for an unknown format."""
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}'{nearest(format, FORMATS)}")
    return line(sample) if format == "json" else (sample.text + "\n").encode()


def write(sample: Passage, path: Path) -> Path:
    """Write one passage atomically, `.json` unless the path says `.txt`; returns the final path."""
    if path.suffix[1:].lower() not in FORMATS:
        path = path.with_name(f"{path.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(encode(sample, path.suffix[1:].lower()))
    os.replace(part, path)
    return path


def pack(samples: Sequence[Passage], indices: Sequence[int]) -> bytes:
    """One line a passage."""
    return b"".join(line(s, int(i)) for s, i in zip(samples, indices, strict=True))


def unpack(data: bytes, tokenizer: TextTokenizer) -> dict[int, Passage]:
    """Index -> passage of packed lines; raises XDistillError that names the line when they are damaged."""
    found: dict[int, Passage] = {}
    for number, row in enumerate(_lines(data), 1):
        try:
            value = json.loads(row)
            found[int(value["index"])] = passage_of(value, tokenizer)
        except (ValueError, KeyError, TypeError, XDistillError) as error:
            raise XDistillError(f"line {number} holds no passage ({error})") from error
    if not data.endswith(b"\n"):
        raise XDistillError("truncated: the last line does not end")
    return found


def load(path: Path, tokenizer: TextTokenizer) -> Passage:
    """The passage of one .json or .txt file."""
    return next(_passages(path, tokenizer))


def read(folder: Path, tokenizer: TextTokenizer) -> list[Passage]:
    """Passages of a folder's .txt and .json files (one each) and .jsonl files (one a line), in the order of names."""
    suffixes = (".txt", ".json", PACKED_SUFFIX)
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    paths = [p for p in paths if p.name != "request.json"]
    if not paths:
        raise XDistillError(f"{folder}: no {', '.join(suffixes)} files to read")
    return [sample for path in paths for sample in _passages(path, tokenizer)]


def read_text(path: Path | str, data: bytes) -> str:
    """UTF-8; raises UsageError that says where it is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} in line {number}): convert it, e.g. with iconv"
        ) from None


def _passages(path: Path, tokenizer: TextTokenizer) -> Iterator[Passage]:
    text = read_text(path, path.read_bytes())
    if path.suffix.lower() == ".txt":
        yield passage_of(text.removesuffix("\n"), tokenizer)
        return
    for number, row in enumerate([text] if path.suffix.lower() == ".json" else text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            yield passage_of(json.loads(row), tokenizer)
        except (ValueError, XDistillError) as error:
            raise XDistillError(f"{path} line {number} holds no passage: {error}") from error


def _lines(data: bytes) -> list[str]:
    try:
        return data.decode().split("\n")[:-1] if data else []
    except UnicodeDecodeError as error:
        raise XDistillError(f"altered: not UTF-8 at byte {error.start}") from error
