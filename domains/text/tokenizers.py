"""Text to ids and back: byte level, BPE trained here, files of the `tokenizers` library; the mask id is explicit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from xdistill.errors import XDistillError

END = "<|endoftext|>"


@dataclass(frozen=True)
class TextTokenizer:
    """A `tokenizers` tokenizer, as JSON so that it travels, with the ids masked diffusion needs.

    end_id: begins and ends every training sequence (BOS = EOS). mask_id: the absorbing id. vocabulary: number of ids,
    mask included, as networks count them.
    """

    json: str
    end_id: int
    mask_id: int
    vocabulary: int

    @cached_property
    def fast(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.json)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "fast"}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; specials and masks are left out."""
        return self.fast.decode([i for i in ids if i not in (self.end_id, self.mask_id)])


def train_bpe(texts: Iterable[str], vocabulary: int) -> TextTokenizer:
    """A byte-level BPE of `vocabulary` ids: END first, the mask appended last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer.to_str(), 0, vocabulary - 1, vocabulary)


def read_tokenizer(path: Path) -> TextTokenizer:
    """A tokenizer.json that `train_bpe` made: END is one of its ids, the mask is appended."""
    from tokenizers import Tokenizer

    text = path.read_text()
    found = Tokenizer.from_str(text)
    end, size = found.token_to_id(END), found.get_vocab_size()
    if end is None:
        raise XDistillError(f"{path} has no token {END}: expected a tokenizer made by xdistill")
    return TextTokenizer(text, end, size, size + 1)
