"""Tokenizers by name or from files: shipped, bytes, bpe-N, gpt2, and any folder of the transformers library."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from xdistill.cache import cache_folder
from xdistill.domains.text.corpus import ASSETS, Austen
from xdistill.domains.text.documents import Documents
from xdistill.domains.text.text_report import TextReport
from xdistill.domains.text.tokenizers import (
    END,
    TextTokenizer,
    byte_alphabet,
    byte_level,
    byte_tokenizer,
    read_tokenizer,
    train_bpe,
)
from xdistill.errors import UsageError, XDistillError
from xdistill.registry import nearest

SHIPPED = ASSETS / "austen_bpe1024.json"
GPT2_MERGES = ASSETS / "gpt2_merges.txt.xz"
NAMES = ("shipped", "bytes", "gpt2")
BPE_SIZES = range(512, 32769)
BPE_CHARACTERS = 64_000_000  # of the training documents that a BPE is trained on, at most

#: What tokenizers without a tokenizer_config.json call their special tokens, likeliest first.
USUAL = {
    "mask_token": ("[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>"),
    "eos_token": (END, "</s>", "[SEP]", "<eos>"),
    "bos_token": ("<s>", "[CLS]", "<bos>"),
}
#: BERT's family has no token of these names: the ones that stand in for them.
STANDS_FOR = {"mask_token": (), "eos_token": ("sep_token",), "bos_token": ("cls_token",)}


def load_tokenizer(name: str, documents: Documents | None = None) -> TextTokenizer:
    """`shipped`, `bytes`, `gpt2`, `bpe-N` (trained on `documents`, None: the embedded corpus), a folder or a file.

    Files are read, never run: no remote code. A mask token that the files name keeps its id; else the mask is appended.

    Raises:
        UsageError: no such tokenizer, or transformers is missing and needed.
        XDistillError: the files hold none that can be used.
    """
    if name == "shipped":
        return read_tokenizer(SHIPPED)
    if name == "bytes":
        return byte_tokenizer()
    if name == "gpt2":
        return gpt2()
    if name.startswith("bpe-") and not Path(name).exists():
        return _trained(name, documents or Austen())
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_json(path, _read_text(path), {})
    hint = nearest(name, NAMES)
    raise UsageError(f"tokenizer={name}: expected {', '.join(NAMES)}, bpe-N, or a folder with tokenizer.json{hint}")


def gpt2() -> TextTokenizer:
    """GPT-2's own ids (50256 = END), the mask appended as 50257."""
    return byte_level(*gpt2_parts(lzma.decompress(GPT2_MERGES.read_bytes()).decode("utf-8")))


def gpt2_parts(vocab_bpe: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the official vocab.bpe: 256 bytes (printable ones first), one id a merge, END."""
    merges = [tuple(line.split(" ")) for line in vocab_bpe.splitlines()[1:] if line]
    letters = sorted(byte_alphabet())  # printable bytes stand for themselves and so come before U+0100 and on
    tokens = [*letters, *("".join(pair) for pair in merges), END]
    return {token: i for i, token in enumerate(tokens)}, merges  # type: ignore[return-value]


def _trained(name: str, documents: Documents) -> TextTokenizer:
    """A BPE of the documents' train split, made once and kept in the cache folder."""
    size = name.removeprefix("bpe-")
    if not size.isascii() or not size.isdigit() or int(size) not in BPE_SIZES:
        raise UsageError(f"tokenizer={name}: expected bpe-N with N from {BPE_SIZES[0]} to {BPE_SIZES[-1]}")
    key = sha256(json.dumps([size, BPE_CHARACTERS, documents.identity()]).encode()).hexdigest()[:24]
    path = cache_folder("tokenizers") / f"{key}.json"
    if path.exists():
        return read_tokenizer(path)

    def texts() -> Any:
        left = BPE_CHARACTERS
        for piece in documents.pieces(TextReport()):
            if piece.split == "train":
                yield piece.text
                left -= len(piece.text)
            if left <= 0:
                return

    made = train_bpe(texts(), int(size))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(made.json, encoding="utf-8")
    os.replace(partial, path)
    return made


def _from_folder(folder: Path) -> TextTokenizer:
    """The tokenizer of a transformers folder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _from_slow_files(folder)
    named: dict[str, Any] = {}
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if file.is_file():
            try:
                named |= json.loads(_read_text(file))
            except (ValueError, TypeError) as error:
                raise XDistillError(f"{file} is no JSON object ({error}): restore it") from error
    return _from_json(path, _read_text(path), named)


def _from_slow_files(folder: Path) -> TextTokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError(
            f"{folder} has no tokenizer.json, and other files need transformers: pip install transformers"
        ) from None
    try:
        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        text, named = slow.backend_tokenizer.to_str(), dict(slow.special_tokens_map)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise XDistillError(f"no tokenizer in {folder} ({why}): expected a folder with tokenizer.json") from error
    return _from_json(folder, text, named)


def _from_json(path: Path, text: str, named: Mapping[str, Any]) -> TextTokenizer:
    """`named`: special tokens as tokenizer_config.json names them (a string, or an object with `content`)."""
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise XDistillError(f"{path} is not a file of the tokenizers library ({error})") from error

    def token(kind: str) -> int | None:
        values = [named.get(key) for key in (kind, *STANDS_FOR[kind])]
        contents = [v.get("content") if isinstance(v, dict) else v for v in values]
        ids = [found.token_to_id(c) for c in [*contents, *USUAL[kind]] if isinstance(c, str)]
        return next((i for i in ids if i is not None), None)

    size = max(found.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    end, begin, mask = token("eos_token"), token("bos_token"), token("mask_token")
    if end is None:
        raise XDistillError(f"the tokenizer of {path} has no end token: name one as eos_token in tokenizer_config.json")
    return TextTokenizer(text, end, size if mask is None else mask, size + (mask is None), begin)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise XDistillError(f"cannot read {path} ({error})") from error
