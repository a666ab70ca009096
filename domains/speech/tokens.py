"""Tokenizers of F5-TTS (speech spec 1.2): characters, characters with pinyin for Chinese, UTF-8 bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.registry import nearest

KINDS = ("char", "pinyin", "byte")
PADDING = -1
UNKNOWN = 0  # the id of the first symbol, the space

_STRAIGHT = str.maketrans({";": ",", "“": '"', "”": '"', "‘": "'", "’": "'"})
# Where jieba cuts text without Chinese: its tokens are the reference's segments.
_SEGMENT = re.compile(r"[cC](?:\+\+|#)|[a-zA-Z0-9]+(?:[._-][a-zA-Z0-9]+)*%?|[+#&._%-]+|.", re.DOTALL)
_NO_SPACE_AFTER = frozenset(" :'\"")


@dataclass(frozen=True)
class SpeechTokenizer:
    """Text to ids of a vocabulary; kind: `char`, `pinyin` or `byte` (which needs no vocabulary).

    Raises UsageError for an unknown kind, a missing vocabulary or repeated symbols.
    """

    kind: str
    vocabulary: tuple[str, ...] = ()
    index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown tokenizer '{self.kind}'{nearest(self.kind, KINDS)}")
        if self.kind != "byte" and not self.vocabulary:
            raise UsageError(f"tokenizer {self.kind} needs the vocabulary of its network: give vocab.txt")
        object.__setattr__(self, "index", {symbol: i for i, symbol in enumerate(self.vocabulary)})
        if len(self.index) != len(self.vocabulary):
            seen: set[str] = set()
            twice = next(s for s in self.vocabulary if s in seen or seen.add(s))  # type: ignore[func-returns-value]
            raise UsageError(f"symbol {twice!r} is twice in the vocabulary: expected one symbol a line, each once")

    @property
    def size(self) -> int:
        """V, the number of ids."""
        return 256 if self.kind == "byte" else len(self.vocabulary)

    def symbols(self, text: str) -> list[str]:
        """What ids stand for: characters, pinyin syllables; of `byte`, one character a byte.

        Raises UsageError for Chinese text when pypinyin or rjieba (or jieba) is missing.
        """
        if self.kind == "byte":
            return [chr(b) for b in text.encode("utf-8")]
        return list(text) if self.kind == "char" else pinyin(text)

    def encode(self, text: str) -> list[int]:
        """Ids in [0, V); symbols outside the vocabulary are 0, as in the reference: see `unknown`."""
        if self.kind == "byte":
            return list(text.encode("utf-8"))
        return [self.index.get(symbol, UNKNOWN) for symbol in self.symbols(text)]

    def unknown(self, text: str) -> tuple[str, ...]:
        """Symbols of the text that the vocabulary lacks, each once, in order: they are spoken as a space."""
        if self.kind == "byte":
            return ()
        return tuple(dict.fromkeys(s for s in self.symbols(text) if s not in self.index))

    def batch(self, texts: Sequence[str]) -> Tensor:
        """[B, T] int64 of all texts, padded with -1."""
        return pad([self.encode(text) for text in texts])


def pad(ids: Sequence[Sequence[int]]) -> Tensor:
    """[B, T] int64, padded with -1."""
    rows = [torch.tensor(row, dtype=torch.int64) for row in ids]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def pinyin(text: str) -> list[str]:
    """Symbols of the `pinyin` tokenizer.

    Chinese characters become syllables with tone numbers, each after a space; other text stays one symbol a character,
    with straight quotes and a space before each word of several letters that does not follow one of space : ' ".
    Raises UsageError for Chinese text when pypinyin or rjieba (or jieba) is missing.
    """
    symbols: list[str] = []
    for segment in _segments(text.translate(_STRAIGHT)):
        if segment.isascii():
            if symbols and len(segment) > 1 and symbols[-1] not in _NO_SPACE_AFTER:
                symbols.append(" ")
            symbols += segment
            continue
        for chinese, run in groupby(segment, _is_chinese):
            characters = "".join(run)
            symbols += [s for syllable in _syllables(characters) for s in (" ", syllable)] if chinese else characters
    return symbols


def _is_chinese(character: str) -> bool:
    return "\u3100" <= character <= "\u9fff"


def _segments(text: str) -> Iterator[str]:
    if not any(map(_is_chinese, text)):
        return (m.group() for m in _SEGMENT.finditer(text))
    for name in ("rjieba", "jieba"):
        try:
            return iter(import_module(name).cut(text))
        except ImportError:
            continue
    raise _missing("rjieba")


def _syllables(characters: str) -> list[str]:
    try:
        library = import_module("pypinyin")
    except ImportError as error:
        raise _missing("pypinyin") from error
    return library.lazy_pinyin(characters, style=library.Style.TONE3, tone_sandhi=True)


def _missing(package: str) -> UsageError:
    return UsageError(f"Chinese text needs {package}: pip install 'xdistill[pinyin]', or pip install pypinyin rjieba")
