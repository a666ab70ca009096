"""Tokenizers of F5-TTS: symbols, ids, unknown ones, Chinese text with and without its packages."""

from __future__ import annotations

import random
import sys

import pytest

from xdistill.domains.speech.tokens import SpeechTokenizer, pad, pinyin
from xdistill.errors import UsageError

LETTERS = (" ", *"abcdefghijklmnopqrstuvwxyz',.")


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("hello world", "hello world"),
        ("hello,world", "hello, world"),
        ("a,b", "a,b"),
        ("one; two", "one, two"),
        ("“don’t”", '"don\'t"'),
        ("12:30 (noon)", "12:30 ( noon)"),
        ("naïve", "naï ve"),
        ("wait...what", "wait ... what"),
        ("C++ at 3.5%", "C++ at 3.5%"),
    ],
)
def test_text_without_chinese(text: str, symbols: str) -> None:
    assert pinyin(text) == list(symbols)


def test_segments_are_those_of_jieba() -> None:
    jieba, draw = pytest.importorskip("rjieba"), random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choice("abZ019.,-+#&_%' :!?()$é") for _ in range(draw.randint(1, 9)))
        expected: list[str] = []
        for segment in jieba.cut(text):
            if expected and len(segment) > 1 and expected[-1] not in " :'\"":
                expected.append(" ")
            expected += segment
        assert pinyin(text) == expected, text


def test_chinese() -> None:
    pytest.importorskip("pypinyin")
    pytest.importorskip("rjieba")
    assert pinyin("你好，world") == [" ", "ni2", " ", "hao3", "，", " ", *"world"]
    assert pinyin("去银行 go") == [" ", "qu4", " ", "yin2", " ", "hang2", " ", *"go"], "a polyphone in its word"
    assert pinyin("3个A") == ["3", " ", "ge4", "A"]


@pytest.mark.parametrize("package", ["pypinyin", "rjieba"])
def test_chinese_without_its_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jieba", package):
        monkeypatch.setitem(sys.modules, name, None)
    pytest.importorskip("rjieba") if package == "pypinyin" else None
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'xdistill\[pinyin\]'"):
        pinyin("你好")
    assert pinyin("hello") == list("hello"), "other text needs none"


def test_ids() -> None:
    tokenizer = SpeechTokenizer("char", LETTERS)
    assert tokenizer.encode("a b!") == [1, 0, 2, 0]
    assert tokenizer.unknown("Übel, übel!") == ("Ü", "ü", "!")
    assert tokenizer.batch(["ab", "c"]).tolist() == [[1, 2], [3, -1]]
    assert tokenizer.size == len(LETTERS)
    assert SpeechTokenizer("pinyin", LETTERS).encode("a;b") == SpeechTokenizer("char", LETTERS).encode("a,b")


def test_bytes() -> None:
    tokenizer = SpeechTokenizer("byte")
    assert tokenizer.encode("aé") == [97, 195, 169]
    assert tokenizer.unknown("é") == ()
    assert tokenizer.size == 256
    assert pad([[1], []]).tolist() == [[1], [-1]]


def test_bad_tokenizers() -> None:
    with pytest.raises(UsageError, match="did you mean 'pinyin'"):
        SpeechTokenizer("pinyn", LETTERS)
    with pytest.raises(UsageError, match=r"vocab\.txt"):
        SpeechTokenizer("char")
    with pytest.raises(UsageError, match="'a' is twice"):
        SpeechTokenizer("char", ("a", "b", "a"))
