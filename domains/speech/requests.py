"""What a user asks to be said: a text or a file of texts, in which voice, how fast."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xdistill.domains.speech.prompting import chunk_bytes, chunks
from xdistill.domains.speech.voices import RATE, Voice, read_voice
from xdistill.errors import UsageError
from xdistill.registry import nearest

STDIN = "-"
PART_BYTES = 60  # of a streamed part: about 4 seconds, as long as what aligned networks are trained on
#: Keys of a request, those that `texts=` may give in each line first.
LINE_KEYS = ("text", "ref", "ref_text", "duration", "speed")
NUMBERS = ("duration", "speed")
FILE_KEYS = ("vocoder", "watermark")
KEYS = (*LINE_KEYS, "texts", "say", *FILE_KEYS)


@dataclass(frozen=True)
class Ask:
    """One text to be said. duration: seconds of new speech (None: as the network's rule has it). speed: 2 is twice as
    fast. say: (word, "P R O N") of words that the dictionary lacks. where: what messages call it.
    """

    text: str
    voice: Voice | None = None
    duration: float | None = None
    speed: float = 1.0
    say: tuple[tuple[str, str], ...] = ()
    where: str = "text="

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UsageError(f"{self.where} is empty: give what is to be said")
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
                raise UsageError(f"{self.where}, {name}={value}: expected a positive number")


@dataclass(frozen=True)
class Asks:
    """The requests of a run; sample i takes request i modulo their number. identity: of the files they come from."""

    asks: tuple[Ask, ...]
    identity: str

    def __len__(self) -> int:
        return len(self.asks)


def open_request(request: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The request with its files read, and the number of its texts (see `Domain.open_request`)."""
    asked = parse_request(request)
    opened = dict(request)
    if asked is None:
        return opened, None
    if "texts" in opened:
        opened["texts"] = asked
        return opened, len(asked)
    if "ref" in opened:
        opened["ref"] = asked.asks[0].voice
    return opened, 1


def parse_request(request: Mapping[str, Any]) -> Asks | None:
    """From `generate`'s keys, files or what `open_request` made of them; None when no text is asked for.

    Raises UsageError for an unknown or impossible request, XDistillError for a voice that cannot be used.
    """
    for key in request:
        if key not in KEYS:
            raise UsageError(f"unknown key '{key}' of a speech request{nearest(key, KEYS)}")
    given = {key: value for key, value in request.items() if key not in FILE_KEYS and value is not None}
    if isinstance(given.get("texts"), Asks):
        return given["texts"]
    if "text" in given and "texts" in given:
        raise UsageError("text= and texts= are both given: choose one")
    if "texts" in given:
        return _read(str(given.pop("texts")), given)
    if "text" not in given:
        if given:
            raise UsageError(f"{next(iter(given))}= says how, but not what: add text= or texts=")
        return None
    return Asks((_ask(given, "text="),), "")


def parts(asked: Asks | None, aligned: bool) -> Asks:
    """One request cut into those that are said one after the other: short ones, so that the first is soon heard.

    Raises UsageError for anything but one text, and for a duration, which is of a whole.
    """
    if asked is None or len(asked) != 1:
        raise UsageError("stream=true says one text as it is made: give text=, or texts= of one line")
    ask = asked.asks[0]
    if ask.duration is not None:
        raise UsageError("duration= is of a whole text: leave it out with stream=true, or give speed=")
    limit = PART_BYTES
    if not aligned and ask.voice is not None:
        limit = chunk_bytes(ask.voice.text, len(ask.voice.wave) / RATE, ask.speed)
    said = [text for text in chunks(ask.text, limit) if any(c.isalnum() for c in text)]
    return Asks(tuple(replace(ask, text=text) for text in said or [ask.text]), asked.identity)


def _ask(given: Mapping[str, Any], where: str) -> Ask:
    ref, said = given.get("ref"), given.get("ref_text")
    if ref is None and said is not None:
        raise UsageError(f"{where}: ref_text= is what a recording says: add ref=voice.wav")
    voice = ref if isinstance(ref, Voice) or ref is None else read_voice(str(ref), None if said is None else str(said))
    say = tuple(sorted((str(word), str(phones)) for word, phones in dict(given.get("say", {})).items()))
    return Ask(str(given["text"]), voice, given.get("duration"), given.get("speed", 1.0), say, where)


def _read(path: str, common: Mapping[str, Any]) -> Asks:
    """Requests of a .txt or .jsonl file, or of the standard input; `common` is what lines leave open."""
    name = "standard input" if path == STDIN else path
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"texts={path}: {error.strerror or error}: give a .txt or .jsonl file, or -") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 (byte {error.start}): convert it, e.g. with iconv") from None
    voices: dict[tuple[str, str | None], Voice] = {}
    rows = [(n, row.strip()) for n, row in enumerate(text.split("\n"), 1) if row.strip()]
    if not rows:
        raise UsageError(f"texts={path} has no line: expected a text or a JSON object a line")
    folder = Path(".") if path == STDIN else Path(path).parent
    line = partial(_line, plain=path.endswith(".txt"), common=common, folder=folder, voices=voices)
    asks = tuple(line(row, f"{name} line {n}") for n, row in rows)
    digest = hashlib.sha256(data + "".join(a.voice.identity for a in asks if a.voice).encode()).hexdigest()
    return Asks(asks, f"sha256:{digest}")


def _line(
    row: str,
    where: str,
    *,
    plain: bool,
    common: Mapping[str, Any],
    folder: Path,
    voices: dict[tuple[str, str | None], Voice],
) -> Ask:
    found = {"text": row} if plain or not row.startswith("{") else _json_row(row, where)
    if "ref" in found:
        found["ref"] = _beside(found["ref"], folder, where)
    if "ref" in found and "ref_text" not in found:
        common = {k: v for k, v in common.items() if k != "ref_text"}
    merged = {**common, **found}
    ref, said = merged.get("ref"), merged.get("ref_text")
    if ref is not None and not isinstance(ref, Voice):
        key = (str(ref), None if said is None else str(said))
        if key not in voices:
            voices[key] = read_voice(*key)
        merged["ref"] = voices[key]
    return _ask(merged, where)


def _json_row(row: str, where: str) -> dict[str, Any]:
    """What a JSON line gives, without its nulls; raises UsageError for other keys, and values of another type."""
    try:
        found: dict[str, Any] = json.loads(row)
        json.dumps(found, ensure_ascii=False).encode()  # "\ud800" alone is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON object ({error}): a plain text must not begin with {{") from None
    if found.get("text") is None:
        raise UsageError(f'{where} has no "text"')
    for key, value in found.items():
        if key not in LINE_KEYS:
            raise UsageError(f"{where}: unknown key {key!r}{nearest(key, LINE_KEYS)}")
        number = key in NUMBERS
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float if number else str)):
            shown, wanted = json.dumps(value)[:40], "number" if number else "text in quotes"
            raise UsageError(f"{where}: {key} is {shown}: expected a {wanted}, or leave it out")
    return {key: value for key, value in found.items() if value is not None}


def _beside(ref: str, folder: Path, where: str) -> str:
    """A recording's path, looked for in the folder of the texts first; raises UsageError for what cannot be a path."""
    try:
        return str(folder / ref) if (folder / ref).is_file() else ref
    except OSError as error:
        raise UsageError(f"{where}: ref cannot be read ({error.strerror}): give the path of a recording") from None
