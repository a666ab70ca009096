"""Which text belongs to which recording: LJSpeech's metadata.csv, JSON lines, or a text file beside each recording."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xdistill.domains.speech.audio import SUFFIXES
from xdistill.domains.speech.folder_report import FolderReport
from xdistill.errors import XDistillError

BESIDE = (".txt", ".lab")


@dataclass(frozen=True)
class Transcribed:
    """A recording's file and text, not looked into yet; `name`: its path below the folder, for messages and splits."""

    path: Path
    text: str
    name: str


def transcribed(source: Path, report: FolderReport) -> Iterator[Transcribed]:
    """The recordings of a folder, of a metadata.csv or of a .jsonl file, in an order that never changes.

    In a folder, metadata.csv is taken, else all .jsonl files, else .txt and .lab beside the recordings. Recordings
    without a transcript and transcripts without a recording count in `report`. Raises XDistillError for no folder or an
    empty one.
    """
    if not source.exists():
        raise XDistillError(f"{source} does not exist: give a folder of recordings and transcripts")
    folder = source if source.is_dir() else source.parent
    files = _audio(folder)
    lists = [source] if source.is_file() else _lists(folder)
    if not files and not lists:
        raise XDistillError(f"no recording in {source}: expected {' '.join(SUFFIXES)} with transcripts")
    found = (
        [pair for path in lists for pair in _listed(path, folder, files, report)] if lists else _beside(files, report)
    )
    seen: set[Path] = set()
    for path, text in found:
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        if path in seen:
            report.skip("listed twice", name)
            continue
        seen.add(path)
        yield Transcribed(path, " ".join(text.split()), name)
    if lists and source.is_dir():
        for path in sorted(set(files) - seen):
            report.skip("no transcript", path.relative_to(folder).as_posix())


def _audio(folder: Path) -> list[Path]:
    found = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _lists(folder: Path) -> list[Path]:
    metadata = folder / "metadata.csv"
    return [metadata] if metadata.is_file() else sorted(folder.glob("*.jsonl"))


def _text(path: Path, report: FolderReport) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        report.skip("not UTF-8", path.name)
        return None


def _beside(files: list[Path], report: FolderReport) -> list[tuple[Path, str]]:
    pairs = []
    for path in files:
        text_file = next((p for suffix in BESIDE if (p := path.with_suffix(suffix)).is_file()), None)
        if text_file is None:
            report.skip("no transcript", path.name)
        elif (text := _text(text_file, report)) is not None:
            pairs.append((path, text))
    return pairs


def _listed(path: Path, folder: Path, files: list[Path], report: FolderReport) -> Iterator[tuple[Path, str]]:
    """Rows of a metadata.csv (id|text[|text as spoken]) or of JSON lines (keys `audio`, `text`).

    A recording is named by its path, with or without suffix, or by its stem where only one has it.
    """
    known = _index(files, folder)
    for number, line in enumerate((_text(path, report) or "").splitlines(), 1):
        if not line.strip():
            continue
        row = _json_row(line) if path.suffix.lower() == ".jsonl" else _ljspeech_row(line)
        if row is None:
            report.skip("bad line", f"{path.name} line {number}")
            continue
        try:
            found = [folder / row[0]] if (folder / row[0]).is_file() else known.get(row[0], [])
        except OSError:  # no file system takes such a name
            report.skip("bad line", f"{path.name} line {number}")
            continue
        if len(found) == 1:
            yield found[0], row[1]
        else:
            names = " or ".join(p.relative_to(folder).as_posix() for p in found)
            shown = f"ambiguous id {row[0]}: {names}" if found else row[0]
            report.skip("audio not found", f"{path.name} line {number} ({shown})")


def _index(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Recordings by their stems, and by their paths below the folder without suffix, which alone decide where known."""
    stems: dict[str, list[Path]] = defaultdict(list)
    paths: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        stems[path.stem].append(path)
        paths[path.relative_to(folder).with_suffix("").as_posix()].append(path)
    return {**stems, **paths}


def _ljspeech_row(line: str) -> tuple[str, str] | None:
    name, *texts = line.split("|")
    return (name.strip(), next((t for t in reversed(texts) if t.strip()), "")) if texts else None


def _json_row(line: str) -> tuple[str, str] | None:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # "\ud800" alone is JSON, but no text
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("audio"), str) or not isinstance(row.get("text"), str):
        return None
    return row["audio"], row["text"]
