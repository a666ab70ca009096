"""Training and validation data by name: what a domain asks for, sequences of ids, from where they are kept."""

from __future__ import annotations

from pathlib import Path

from xdistill.domains.text.corpus import Austen
from xdistill.domains.text.documents import Documents, Files
from xdistill.domains.text.packing import Packed
from xdistill.domains.text.text_report import TextReport
from xdistill.domains.text.token_cache import token_stream
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.errors import UsageError, XDistillError

SPLITS = ("train", "validation")


def documents_of(data_path: str | Path | None, key: str = "text", holdout: float = 0.02) -> Documents:
    """The documents of a user's file or folder, None: of the embedded corpus. See `Files` for the options."""
    return Austen() if data_path is None else Files(Path(data_path).expanduser(), key, holdout)


def corpus(
    documents: Documents, tokenizer: TextTokenizer, split: str, context: int, *, ends: bool = True, wrap: bool = True
) -> tuple[Packed, TextReport]:
    """The sequences of `context` ids of a split, memory-mapped, and what was kept of the documents and left out.

    ends: END after each document; zero-shot validation goes without. wrap: sequences are [BEGIN] context - 2 ids [END].

    Raises:
        UsageError: no such split, or nothing held out for it; a context without room for text.
        XDistillError: no usable document, or too few of them for one sequence.
    """
    if split not in SPLITS:
        raise UsageError(f"split={split}: expected {' or '.join(SPLITS)}")
    if context < (3 if wrap else 1):
        raise UsageError(f"context={context}: expected 3 or more tokens, the first and the last mark the ends")
    stream = token_stream(documents, tokenizer, ends=ends)
    packed = Packed(stream.ids(split), context, tokenizer.end_id, tokenizer.begin, wrap)
    if len(packed):
        return packed, stream.report
    if split == "validation" and documents.holdout == 0:
        raise UsageError(f"{documents.name} has no validation split with holdout=0: set a share, such as 0.02")
    raise XDistillError(
        f"the {split} split of {documents.name} has {len(packed.ids)} tokens, less than one context needs "
        f"({packed.body}): give more text or lower the context ({context})"
    )
