"""Text as it is spoken: lower case, numbers as words, punctuation as marks; one normaliser for synthesis and WER."""

import re
from dataclasses import dataclass

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_ABBREVIATIONS = {
    "mr.": "mister",
    "mrs.": "missus",
    "ms.": "miz",
    "dr.": "doctor",
    "prof.": "professor",
    "st.": "saint",
    "vs.": "versus",
    "etc.": "et cetera",
    "e.g.": "for example",
    "i.e.": "that is",
}
_SYMBOLS = {"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at", "#": "number", "°": "degrees"}
_MARK = {",": ",", ";": ",", ":": ",", "—": ",", "–": ",", ".": ".", "!": ".", "…": ".", "?": "?"}
_TOKEN = re.compile(
    r"(?P<abbreviation>(?<![^\W_])(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e)\.(?!\w))"
    r"|(?P<initials>(?<![^\W_])(?:[^\W\d_]\.){2,})"
    r"|(?P<money>[$€£]\d[\d,]*(?:\.\d+)?)"
    r"|(?P<time>\b\d{1,2}:\d{2}\b)"
    r"|(?P<number>\d+(?:,\d{3})*(?:\.\d+)?(?:st|nd|rd|th)?(?![^\W_]))"
    r"|(?P<mixed>(?=[^\W_]*\d)[^\W_]+)"
    r"|(?P<word>[^\W\d_]+(?:'[^\W\d_]+)*'?)"
    r"|(?P<symbol>[%&+=@#°])"
    r"|(?P<mark>[.,;:!?…—–]|(?<=\s)-(?=\s))",
    re.IGNORECASE,
)
_CURRENCY = {"$": ("dollar", "dollars"), "€": ("euro", "euros"), "£": ("pound", "pounds")}


@dataclass(frozen=True)
class Token:
    """A spoken word: lower case; `mark`: punctuation after it (one of phones.MARKS); `caps`: in capitals."""

    word: str
    mark: str = ""
    caps: bool = False


def cardinal(number: int) -> str:
    """English words of an integer, without "and": 1205 -> "one thousand two hundred five"."""
    if number < 0:
        return "minus " + cardinal(-number)
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    size, name = next((size, name) for size, name in _SCALES if number >= size)
    head, rest = divmod(number, size)
    return f"{cardinal(head)} {name}" + (f" {cardinal(rest)}" if rest else "")


def ordinal(number: int) -> str:
    """English words of a rank: 22 -> "twenty second"."""
    head, _, last = cardinal(number).rpartition(" ")
    last = _ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return f"{head} {last}".strip()


def tokens(text: str) -> list[Token]:
    """Words of a text as they are spoken. Hyphens separate words; what is no word, number or mark is left out."""
    found: list[Token] = []
    for match in _TOKEN.finditer(re.sub("[‘’`´]", "'", text)):
        kind, piece = str(match.lastgroup), match.group()
        if kind == "mark":
            if found and (not found[-1].mark or found[-1].mark == ","):
                found[-1] = Token(found[-1].word, _MARK.get(piece, ","), found[-1].caps)
            continue
        caps = kind == "initials" or (kind in ("word", "mixed") and piece.upper() == piece)
        found += [Token(word, caps=caps) for word in _spoken(kind, piece.lower()).split()]
        ends_here = kind == "initials" and not text[match.end() :].strip()
        if ends_here:
            found[-1] = Token(found[-1].word, ".", found[-1].caps)
    return found


def plain(text: str) -> str:
    """The words alone, separated by one space: what two texts are compared by in WER and CER."""
    return " ".join(token.word for token in tokens(text))


def _spoken(kind: str, piece: str) -> str:
    if kind == "abbreviation":
        return _ABBREVIATIONS[piece]
    if kind == "initials":
        return piece.replace(".", "")
    if kind == "money":
        amount = _number(piece[1:])
        return f"{amount} {_CURRENCY[piece[0]][amount != 'one']}"
    if kind == "time":
        hour, minute = piece.split(":")
        tail = {"00": "o'clock"}.get(minute) or ("oh " if minute[0] == "0" else "") + cardinal(int(minute))
        return f"{cardinal(int(hour))} {tail}"
    if kind == "number":
        return _number(piece)
    if kind == "mixed":
        return " ".join(_ONES[int(part)] if part.isdigit() else part for part in re.findall(r"\d|\D+", piece))
    return _SYMBOLS[piece] if kind == "symbol" else piece.rstrip("'")


def _number(piece: str) -> str:
    """Digits with commas, decimals or an ordinal ending. Codes (leading zero, over 15 digits) digit by digit."""
    digits = piece.replace(",", "")
    if digits[-1].isalpha():
        return ordinal(int(digits[:-2]))
    whole, _, part = digits.partition(".")
    code = len(whole) > 15 or (len(whole) > 1 and whole[0] == "0")
    words = " ".join(_ONES[int(d)] for d in whole) if code else cardinal(int(whole))
    return words + (" point " + " ".join(_ONES[int(d)] for d in part) if part else "")
