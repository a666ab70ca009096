"""Text to words to phones: numbers, abbreviations, marks, and words that nobody knows."""

import pytest

from xdistill.domains.speech import lexicon
from xdistill.domains.speech.normalise import cardinal, ordinal, plain, tokens
from xdistill.domains.speech.phones import PHONES, SILENCE, Phones
from xdistill.errors import UsageError, XDistillError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Press 1, then 22!", "press one then twenty two"),
        ("It costs $3.50 at 10:05 p.m.", "it costs three point five zero dollars at ten oh five pm"),
        ("1,205 items", "one thousand two hundred five items"),
        ("the 3rd and 40th", "the third and fortieth"),
        ("agent 007", "agent zero zero seven"),
        ("Mr. O'Neil's x-ray", "mister o'neil's x ray"),
        ("H323 & 3D: 50%", "h three two three and three d fifty percent"),
        ("“Don’t” … stop…", "don't stop"),
        ("-- ¿?", ""),
    ],
)
def test_words_as_they_are_spoken(text: str, words: str) -> None:
    assert plain(text) == words


def test_marks_stand_on_the_word_before() -> None:
    assert [(t.word, t.mark) for t in tokens("Yes, no; why? Stop!")] == [
        ("yes", ","),
        ("no", ","),
        ("why", "?"),
        ("stop", "."),
    ]
    assert tokens("at 9 a.m.")[-1].mark == "."
    assert tokens("at 9 a.m. sharp")[2].mark == ""


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (90, "ninety"), (100, "one hundred"), (-2, "minus two")],
)
def test_cardinals(number: int, words: str) -> None:
    assert cardinal(number) == words


def test_large_numbers_and_ordinals() -> None:
    assert cardinal(2_000_017) == "two million seventeen"
    assert [ordinal(n) for n in (1, 12, 20, 101)] == ["first", "twelfth", "twentieth", "one hundred first"]


def test_phones_have_pauses_at_both_ends_and_at_marks() -> None:
    spoken = lexicon.phones("Hello world, again?")
    pauses = [(i, mark) for i, (p, mark) in enumerate(zip(spoken.phones, spoken.marks, strict=True)) if p == SILENCE]
    assert [mark for _, mark in pauses] == ["", ",", "?"]
    assert spoken.phones[0] == spoken.phones[-1] == SILENCE
    assert spoken.phones[1:5] == ("HH", "EH", "L", "OW")
    assert sum(spoken.starts()) == sum(spoken.ends()) == 3
    assert spoken.marks[pauses[1][0] - 1] == ","
    assert set(spoken.phones) <= set(PHONES)


def test_context_chooses_the_pronunciation() -> None:
    def said(text: str, word: int) -> tuple[str, ...]:
        spoken = lexicon.phones(text)
        return tuple(p for p, w in zip(spoken.phones, spoken.words, strict=True) if w == word)

    assert said("the apple", 0) == ("DH", "IY")
    assert said("the pear", 0) == ("DH", "AH")
    assert said("press A", 1) == ("EY",)
    assert said("a pear", 0) == ("AH",)
    assert said("nine AM", 1) == ("EY", "EH", "M")
    assert said("use it", 0) == ("Y", "UW", "Z")
    assert said("MGCP", 0) == ("EH", "M", "JH", "IY", "S", "IY", "P", "IY")
    assert said("Allison's", 0)[-1] == "Z"


def test_unknown_words_are_all_named_and_may_be_given() -> None:
    with pytest.raises(UsageError, match=r"words wrold, qwertz .*world.*say\.wrold="):
        lexicon.phones("hello wrold qwertz qwertz")
    given = lexicon.phones("hello qwertz", {"Qwertz": "K W ER1 T S"})
    assert given.phones[-6:-1] == ("K", "W", "ER", "T", "S")
    for wrong in ("K W ÜR", "", "SIL"):
        with pytest.raises(UsageError, match=r"say\.qwertz"):
            lexicon.phones("qwertz", {"qwertz": wrong})
    with pytest.raises(UsageError, match="nothing to say"):
        lexicon.phones("...")


def test_the_record_refuses_other_alphabets_and_lengths() -> None:
    with pytest.raises(XDistillError, match="unknown phones AX"):
        Phones(("AX",), (0,), ("",))
    with pytest.raises(XDistillError, match="differ in length"):
        Phones(("AA",), (0, 1), ("",))
