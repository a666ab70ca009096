"""Text to phones for English, by the CMU dictionary (`assets/lexicon`, BSD); words it lacks are the user's to say."""

import difflib
import lzma
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from xdistill.domains.speech import corpus
from xdistill.domains.speech.normalise import Token, tokens
from xdistill.domains.speech.phones import INDEX, SILENCE, VOWELS, Phones
from xdistill.errors import UsageError

FOLDER = Path(__file__).parent / "assets" / "lexicon"
Pronunciation = tuple[str, ...]
# The dictionary has "A" as the article and "AM" as the verb; capitals mean the letters.
_LETTERS_FIRST = frozenset(("am",))
_LONGEST_INITIALISM = 5
_TIMES_HEARD = 2
_HISSING = frozenset(("S", "Z", "SH", "ZH", "CH", "JH"))
_VOICELESS = frozenset(("P", "T", "K", "F", "TH"))


@cache
def dictionary() -> dict[str, tuple[Pronunciation, ...]]:
    """All words with their pronunciations, the usual one first."""
    entries: dict[str, list[Pronunciation]] = {}
    text = lzma.decompress((FOLDER / "cmudict.dict.xz").read_bytes()).decode("utf-8")
    for line in (text + (FOLDER / "extra.dict").read_text(encoding="utf-8")).splitlines():
        word, *phones = line.split()
        entries.setdefault(word.partition("(")[0], []).append(tuple(phones))
    return {word: tuple(variants) for word, variants in entries.items()}


@cache
def usual() -> dict[str, Pronunciation]:
    """How the embedded voice says each word most often: "use" is the verb, "to" is weak."""
    said: dict[str, Counter[Pronunciation]] = defaultdict(Counter)
    for sentence in corpus.aligned("train"):
        spoken: dict[int, list[str]] = defaultdict(list)
        for phone, word in zip(sentence.phones.phones, sentence.phones.words, strict=True):
            spoken[word].append(phone)
        for index, token in enumerate(tokens(sentence.clip.text)):
            said[token.word][tuple(spoken[index])] += 1
    most = {word: ways.most_common(1)[0] for word, ways in said.items() if len(dictionary().get(word, ())) > 1}
    return {word: way for word, (way, times) in most.items() if times >= _TIMES_HEARD and word != "a"}


def spelled(word: str) -> Pronunciation:
    """A word letter by letter; empty when a character has no name."""
    names = [dictionary().get(letter + ".") or dictionary().get(letter) or ((),) for letter in word]
    return tuple(phone for name in names for phone in name[0]) if all(name[0] for name in names) else ()


def pronunciations(token: Token, say: Mapping[str, Pronunciation] | None = None) -> tuple[Pronunciation, ...]:
    """All ways to say a word, the usual one first; empty when unknown."""
    word = token.word
    if say and word in say:
        return (say[word],)
    if token.caps and word in _LETTERS_FIRST:
        return (spelled(word),)
    if word in dictionary():
        return dictionary()[word]
    if token.caps and len(word) <= _LONGEST_INITIALISM and spelled(word):
        return (spelled(word),)
    if word.endswith("'s"):
        stem = pronunciations(Token(word[:-2], caps=token.caps), say)
        return tuple((*phones, *_plural(phones[-1])) for phones in stem)
    return ()


def parse_say(say: Mapping[str, str] | None) -> dict[str, Pronunciation]:
    """The user's own pronunciations, word -> "AE S T ...". Raises UsageError for a phone outside the alphabet."""
    parsed = {}
    for word, text in (say or {}).items():
        phones = tuple("".join(c for c in phone if not c.isdigit()) for phone in text.upper().split())
        wrong = [phone for phone in phones if phone not in INDEX or phone == SILENCE]
        if wrong or not phones:
            known = " ".join(p for p in INDEX if p != SILENCE)
            problem = f"unknown phones {' '.join(wrong)}" if wrong else "no phones"
            raise UsageError(f"say.{word}: {problem}; write ARPAbet phones separated by spaces: {known}")
        parsed[word.lower()] = phones
    return parsed


def phones(text: str, say: Mapping[str, str] | None = None) -> Phones:
    """Phones of a text: silence at both ends and after every punctuation mark. `say`: word -> "P R O N".

    Raises UsageError when there is no word to say, or for words that neither the dictionary nor `say` knows.
    """
    own = parse_say(say)
    words = tokens(text)
    if not words:
        raise UsageError(f"nothing to say in {text!r}: give a sentence with English words or digits")
    choices = [pronunciations(token, own) for token in words]
    missing = list(dict.fromkeys(t.word for t, choice in zip(words, choices, strict=True) if not choice))
    if missing:
        raise UsageError(_unknown(missing))
    names, index, marks = [SILENCE], [-1], [""]
    for position, (token, choice) in enumerate(zip(words, choices, strict=True)):
        following = choices[position + 1][0] if position + 1 < len(words) and not token.mark else ()
        word = choice[0] if token.word in own else _in_context(token, choice, position, following)
        names += word
        index += [position] * len(word)
        marks += [""] * (len(word) - 1) + [token.mark]
        if token.mark or position + 1 == len(words):
            names, index, marks = [*names, SILENCE], [*index, -1], [*marks, token.mark]
    return Phones(tuple(names), tuple(index), tuple(marks))


def _in_context(
    token: Token, choice: tuple[Pronunciation, ...], position: int, following: Pronunciation
) -> Pronunciation:
    """ "the" ends in IY before a vowel; a capital A inside a sentence is the letter."""
    if token.word == "the" and following and following[0] in VOWELS:
        return ("DH", "IY")
    if token.word == "a" and token.caps and position > 0:
        return spelled("a")
    way = usual().get(token.word, ())
    return way if way in choice else choice[0]


def _plural(last: str) -> Pronunciation:
    return ("IH", "Z") if last in _HISSING else ("S",) if last in _VOICELESS else ("Z",)


def _unknown(words: list[str]) -> str:
    first = words[0]
    near = difflib.get_close_matches(first, [w for w in dictionary() if w[0] == first[0]], n=3, cutoff=0.75)
    hint = f" (do you mean {', '.join(near)}?)" if near else ""
    noun = "word" if len(words) == 1 else "words"
    return (
        f"no pronunciation for the {noun} {', '.join(words)}{hint}: spell with words of the dictionary, or give one, "
        f'for example say.{first}="HH AH L OW"'
    )
