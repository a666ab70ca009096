"""The phone alphabet of the speech domain, and the record that alignment, lexicon, durations and teacher exchange."""

from dataclasses import dataclass

from xdistill.errors import XDistillError

SILENCE = "SIL"
# ARPAbet without stress, the set of the CMU dictionary. The order is part of every checkpoint: never reorder.
PHONES = (
    SILENCE,
    *("AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY"),
    *("F", "G", "HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P"),
    *("R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)
VOWELS = frozenset(("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"))
MARKS = ("", ",", ".", "?")
INDEX = {phone: index for index, phone in enumerate(PHONES)}


@dataclass(frozen=True)
class Phones:
    """A spoken text, one entry a phone: its name, its word's index (-1 for silence) and its punctuation mark.

    A mark stands on the last phone of the word before it and on the silence that follows that word.
    """

    phones: tuple[str, ...]
    words: tuple[int, ...]
    marks: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.phones) == len(self.words) == len(self.marks):
            raise XDistillError("phones, words and marks differ in length: give one of each per phone")
        unknown = sorted({p for p in self.phones if p not in INDEX})
        if unknown:
            raise XDistillError(f"unknown phones {' '.join(unknown)}: expected ARPAbet without stress, or {SILENCE}")

    def __len__(self) -> int:
        return len(self.phones)

    def ids(self) -> list[int]:
        """Indices into PHONES."""
        return [INDEX[phone] for phone in self.phones]

    def mark_ids(self) -> list[int]:
        """Indices into MARKS; 0 is none."""
        return [MARKS.index(mark) for mark in self.marks]

    def starts(self) -> list[bool]:
        """Whether each phone begins a word; false for silences."""
        before = (-1, *self.words[:-1])
        return [word >= 0 and word != other for word, other in zip(self.words, before, strict=True)]

    def ends(self) -> list[bool]:
        """Whether each phone closes a word; false for silences."""
        after = (*self.words[1:], -1)
        return [word >= 0 and word != other for word, other in zip(self.words, after, strict=True)]
