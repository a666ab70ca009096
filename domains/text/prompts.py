"""What a user asks of a text: a prompt, a suffix, a template with gaps; and where its tokens lie in a sequence."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from xdistill.domains.text.codec import read_text
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.errors import UsageError
from xdistill.registry import nearest
from xdistill.state import Tokens

GAP = re.compile(r" ?<gap(?::(\d{1,9}))?>")
KEYS = ("prompt", "suffix", "infill")
STDIN = "-"


@dataclass(frozen=True)
class Ask:
    """One request: a text to go on from, one to end with, or a template `It is a truth <gap:12> acknowledged` whose
    gaps have so many tokens. where: what messages call it.
    """

    prompt: str = ""
    suffix: str = ""
    infill: str = ""
    where: str = "the prompt"

    def layout(self, length: int, tokenizer: TextTokenizer) -> list[int | None]:
        """[length] ids, None where the network writes.

        Training sequences are BEGIN, tokens of the corpus, END: a prompt follows BEGIN, which most tokenizers call END
        too, and END follows a suffix. A gap swallows one space before it, because tokens begin with theirs.

        Raises UsageError when it does not fit, a gap is empty or ends the template, or nothing is left to write.
        """
        if not (self.prompt or self.suffix or self.infill):
            return [None] * length
        body = self._template(length, tokenizer) if self.infill else tokenizer.encode(self.prompt)
        head = [tokenizer.begin_id, *body]
        tail = [*tokenizer.encode(self.suffix), tokenizer.end_id] if self.suffix else []
        if tokenizer.mask_id in (*head, *tail):
            raise UsageError(f"{self.where} holds the mask token: mark gaps with infill= and <gap:12>")
        free = length - len(head) - len(tail)
        if free < 0 or (free == 0 and None not in head):
            raise UsageError(
                f"{self.where} takes {len(head) + len(tail)} of {length} tokens and leaves no room to write: "
                f"shorten it, or give a larger length= where the network was trained for one"
            )
        return [*head, *[None] * free, *tail]

    def _template(self, length: int, tokenizer: TextTokenizer) -> list[int | None]:
        pieces = GAP.split(self.infill)  # text, size, text, size, ..., text
        if len(pieces) == 1:
            raise UsageError(f"{self.where} has no gap: write <gap:12> for 12 tokens, or give it as prompt=")
        if not pieces[-1].strip():
            raise UsageError(f"{self.where} ends with a gap: give the text before it as prompt=")
        ids: list[int | None] = list(tokenizer.encode(pieces[0]))
        for size, text in zip(pieces[1::2], pieces[2::2], strict=True):
            if not size or not 1 <= int(size) <= length:
                raise UsageError(f"{self.where}: a gap needs its number of tokens, 1 to {length}, as in <gap:12>")
            ids += [*[None] * int(size), *tokenizer.encode(text)]
        return ids


@dataclass(frozen=True)
class Prompts:
    """The requests of a file, one a line. identity: what says that it is this very file, `sha256:...`."""

    asks: tuple[Ask, ...]
    identity: str

    def __len__(self) -> int:
        return len(self.asks)


def read_prompts(path: str) -> Prompts:
    """Requests of a .txt or .jsonl file, or of the standard input (`-`): plain text or a JSON object a line.

    Raises UsageError in one line: no file, not UTF-8, no line, a line that is no request.
    """
    name = "standard input" if path == STDIN else path
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"prompts={path}: {error.strerror or error}: give a .txt or .jsonl file, or -") from None
    plain = path.endswith(".txt")
    rows = enumerate(read_text(name, data).split("\n"), 1)
    asks = tuple(_ask(row.rstrip("\r"), f"{name} line {number}", plain) for number, row in rows if row.strip())
    if not asks:
        raise UsageError(f"prompts={path} has no line: expected a text or a JSON object a line")
    return Prompts(asks, f"sha256:{hashlib.sha256(data).hexdigest()}")


def _ask(row: str, where: str, plain: bool) -> Ask:
    if plain or not row.lstrip().startswith("{"):
        return Ask(prompt=row, where=where)
    try:
        found = json.loads(row)
    except ValueError as error:
        raise UsageError(f"{where} is no JSON object ({error}): a plain text must not begin with {{") from None
    for key, value in found.items():
        if key in KEYS and not isinstance(value, str):
            raise UsageError(f'{where}: "{key}" is no text')
    if not any(key in found for key in KEYS):
        raise UsageError(f'{where} has none of "prompt", "suffix", "infill"')
    return checked({key: found[key] for key in KEYS if key in found}, where)


def checked(given: dict[str, str], where: str) -> Ask:
    """Texts by name as one request; raises UsageError for a template together with a prompt or suffix."""
    if given.get("infill") and (given.get("prompt") or given.get("suffix")):
        raise UsageError(f"{where} has a template and a prompt or suffix: write them into the template")
    return Ask(**given, where=where)


@dataclass(frozen=True)
class Request:
    """What all samples of a run are asked for; sample i takes request i modulo their number."""

    asks: tuple[Ask, ...]
    length: int

    def tokens(self, indices: Any, tokenizer: TextTokenizer) -> Tokens:
        """[B, length] ids, masks where the network writes; `given` marks the rest, None when there is nothing."""
        rows = [_layout(self.asks[i % len(self.asks)], self.length, tokenizer) for i in indices]
        ids = torch.tensor([[tokenizer.mask_id if i is None else i for i in row] for row in rows])
        given = torch.tensor([[i is not None for i in row] for row in rows])
        return Tokens(ids, torch.ones_like(given), given if bool(given.any()) else None)


_layout = lru_cache(4096)(Ask.layout)


def parse_request(request: dict[str, Any], context: int, any_length: bool = False) -> Request:
    """From `generate`'s keys; raises UsageError for an unknown or impossible one."""
    known = ("prompt", "prompts", "suffix", "infill", "length")
    for key in request:
        if key not in known:
            raise UsageError(f"unknown key '{key}' of a text's request{nearest(key, known)}")
    texts = {key: str(request[key]) for key in KEYS if request.get(key) is not None}
    prompts = request.get("prompts")
    if prompts is not None and texts:
        raise UsageError(f"prompts= and {next(iter(texts))}= are both given: choose one")
    if prompts is not None:
        asks = (prompts if isinstance(prompts, Prompts) else read_prompts(str(prompts))).asks
    else:
        asks = (checked(texts, f"{'infill' if 'infill' in texts else 'prompt'}="),)
    return Request(asks, parse_length(request.get("length"), context, any_length))


def parse_length(given: Any, context: int, any_length: bool = False) -> int:
    """Tokens of a passage; raises UsageError for a length that the network was not trained on."""
    if given is None:
        return context
    if not isinstance(given, int) or given < 2:
        raise UsageError(f"length={given}: expected a number of tokens, at least 2")
    if given > context and not any_length:
        raise UsageError(f"length={given}: the network was trained on {context} tokens, give at most that")
    return given
