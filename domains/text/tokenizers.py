"""Text to ids and back: one class for all tokenizers, with the ids of masked diffusion explicit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from xdistill.errors import UsageError, XDistillError

END = "<|endoftext|>"
PADDING = 128  # networks may round their vocabulary up to a multiple of this


@dataclass(frozen=True)
class TextTokenizer:
    """A `tokenizers` tokenizer, as JSON so that it travels, with the ids masked diffusion needs.

    end_id: ends every document and every training sequence. mask_id: the absorbing id, anywhere in the vocabulary.
    vocabulary: number of ids, mask included, as networks count them. begin: begins a sequence, None: the end id does.
    """

    json: str
    end_id: int
    mask_id: int
    vocabulary: int
    begin: int | None = None

    @property
    def begin_id(self) -> int:
        """The id that begins every training sequence (BOS)."""
        return self.end_id if self.begin is None else self.begin

    @cached_property
    def fast(self) -> Any:
        """The `tokenizers.Tokenizer`; what a text says is never read as a special token."""
        from tokenizers import Tokenizer

        fast = Tokenizer.from_str(self.json)
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = True
        return fast

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("fast", "fingerprint")}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids of a text."""
        return sha256(repr(sorted(self.to_dict().items())).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without specials; uses all cores."""
        return [e.ids for e in self.fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; specials, masks and ids beyond the vocabulary are left out."""
        specials = (self.begin_id, self.end_id, self.mask_id)
        return self.fast.decode([int(i) for i in ids if i not in specials])

    def decode_visible(self, ids: Sequence[int], gap: Callable[[int], str] = "<gap:{}>".format) -> str:
        """Text of ids with `gap(n)` for a run of n masks; by default the template that `infill=` reads."""
        runs = ((masked, list(run)) for masked, run in groupby(ids, lambda i: i == self.mask_id))
        return "".join(gap(len(run)) if masked else self.decode(run) for masked, run in runs)

    def fits(self, vocabulary: int, mask_id: int) -> bool:
        """Whether a network with this vocabulary (which it may have padded to a multiple of 128) speaks these ids."""
        padded = -(-self.vocabulary // PADDING) * PADDING
        return mask_id == self.mask_id and vocabulary in range(self.vocabulary, padded + 1)

    def check_fit(self, vocabulary: int, mask_id: int, network: str = "the checkpoint") -> None:
        """Raise UsageError unless `fits`."""
        if self.fits(vocabulary, mask_id):
            return
        if vocabulary == self.vocabulary - 1 == self.mask_id:
            raise UsageError(
                f"{network} has {vocabulary} ids and no mask among them: expected a masked diffusion network, "
                f"of {self.vocabulary} ids with this tokenizer"
            )
        raise UsageError(
            f"the tokenizer has {self.vocabulary} ids with mask {self.mask_id}, {network} {vocabulary} with mask "
            f"{mask_id}: choose the tokenizer it was trained with (domain.tokenizer=)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores the tokenizer."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextTokenizer:
        """The tokenizer that `to_dict` described."""
        return cls(**values)


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE: itself, or one from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def byte_level(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> TextTokenizer:
    """A byte-level BPE of a given vocabulary that includes END; the mask is appended."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    size = len(vocabulary)
    return TextTokenizer(tokenizer.to_str(), vocabulary[END], size, size + 1)


def byte_tokenizer() -> TextTokenizer:
    """258 ids: a byte is its own id, 256 is END, 257 the mask."""
    return byte_level({token: i for i, token in enumerate([*byte_alphabet(), END])}, [])


def train_bpe(texts: Iterable[str], vocabulary: int) -> TextTokenizer:
    """A byte-level BPE of `vocabulary` ids: END first, the mask appended last; a function of the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()  # smaller than asked for when the texts have too few different words
    return TextTokenizer(tokenizer.to_str(), 0, size, size + 1)


def read_tokenizer(path: Path) -> TextTokenizer:
    """A tokenizer.json that `train_bpe` made: END is one of its ids, the mask is appended."""
    from tokenizers import Tokenizer

    text = path.read_text(encoding="utf-8")
    found = Tokenizer.from_str(text)
    end, size = found.token_to_id(END), found.get_vocab_size()
    if end is None:
        raise XDistillError(f"{path} has no token {END}: expected a tokenizer made by xdistill")
    return TextTokenizer(text, end, size, size + 1)
