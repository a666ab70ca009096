"""What `generate` asks of the text domain: requests, passages, files, filters, likeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xdistill.domain import Domain, FilterFactory
from xdistill.domains.text import codec, filters, passage
from xdistill.domains.text.passage import Passage
from xdistill.domains.text.prompts import parse_length, parse_request, read_prompts
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.models import Batch, NoCond
from xdistill.state import Tokens


class TextServing(Domain):
    """The serving half of the text domain. tokenizer, context: what its networks read, and how much of it."""

    tokenizer: TextTokenizer
    context: int

    request_keys: Mapping[str, str] = MappingProxyType(
        {
            "prompt": "a text that every passage goes on from",
            "suffix": "a text that every passage ends with",
            "infill": "a template whose gaps are filled, each of so many tokens: It is a truth <gap:12> acknowledged",
            "prompts": "a .txt or .jsonl file, or - for the standard input: a text a line, or an object with prompt, "
            "suffix or infill; passage i takes line i, and the first again after the last",
            "length": "tokens of each passage, what is given included (default: the context)",
        }
    )
    text_keys = ("prompt", "suffix", "infill", "prompts")
    formats = codec.FORMATS
    packed_suffix = codec.PACKED_SUFFIX
    packed_lines = True
    blocks = True
    ranking = MappingProxyType(passage.RANKING)
    design_columns = passage.DESIGN_COLUMNS
    watched = ("entropy", "distinct_4grams")

    def open_request(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
        if not isinstance(request.get("prompts"), str):
            return dict(request), None
        prompts = read_prompts(request["prompts"])
        return {**request, "prompts": prompts}, len(prompts)

    def most_steps(self, **request: Any) -> int:
        """A call a token."""
        return parse_length(request.get("length"), self.context, self.any_length)

    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch[Tokens]:
        """Masks where the network writes, and the tokens of what was given; see `prompts.Ask.layout`."""
        asked = parse_request(request, self.context, self.any_length)
        return Batch(asked.tokens(indices, self.tokenizer), NoCond(), real=False)

    def decode(self, sample: Tokens) -> list[Passage]:
        """Passages: ids and texts."""
        return passage.decode(sample, self.tokenizer)

    def partial(self, state: Tokens) -> str:
        """The first text, a shade for every token that is still masked."""
        return passage.partial(state, self.tokenizer)

    def write(self, sample: Any, path: Path) -> Path:
        return codec.write(sample, path)

    def encode(self, sample: Any, format: str) -> bytes:
        return codec.encode(sample, format)

    def read(self, folder: Path) -> list[Passage]:
        """Passages of .txt, .json and .jsonl files; texts without ids are tokenised."""
        return codec.read(folder, self.tokenizer)

    def load(self, path: Path) -> Passage:
        return codec.load(path, self.tokenizer)

    def pack(self, samples: Sequence[Any], indices: Sequence[int]) -> bytes:
        return codec.pack(samples, indices)

    def unpack(self, data: bytes) -> dict[int, Any]:
        return codec.unpack(data, self.tokenizer)

    def filters(self) -> Mapping[str, FilterFactory]:
        return filters.FILTERS

    def design_metrics(self, sample: Any) -> dict[str, float | int | bool]:
        return passage.design_metrics(sample)

    def watch(self, samples: Sequence[Any]) -> dict[str, float]:
        """Means of a text's token entropy, and of the share of its 4-grams that do not repeat an earlier one."""
        numbers = [passage.design_metrics(s) for s in samples]
        entropy, repetition = (sum(n[key] for n in numbers) / len(numbers) for key in ("entropy", "repetition"))
        return {"entropy": entropy, "distinct_4grams": 1 - repetition}

    def similarity(self, a: Any, b: Any) -> float:
        """Jaccard index of the token 3-grams."""
        return passage.similarity(a, b)
