"""A user's own folder of recordings as the training and held-out utterances of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.util import find_spec

import torch

from xdistill.domains.speech.data import Utterance
from xdistill.domains.speech.folder_report import FolderReport
from xdistill.domains.speech.folders import Limits, divided, scan
from xdistill.domains.speech.metrics import Recordings
from xdistill.domains.speech.planning import Reader
from xdistill.domains.speech.prepared import ALIGNERS, LeftOut, Preparation
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.tokens import SpeechTokenizer


@dataclass(frozen=True, eq=False)
class OwnData:
    """Utterances of `train` and `heldout`, and what was kept and left out; `reader` is the network's."""

    utterances: Mapping[str, Sequence[Utterance]]
    report: FolderReport
    reader: Reader

    def split(self, name: str) -> Sequence[Utterance]:
        """`train` or `heldout`; the same where nothing is held out."""
        return self.utterances[name] or self.utterances["train"]

    @cached_property
    def recordings(self) -> Recordings:
        """What samples of held-out sentences are measured against."""
        natural, kind = self.reader.scale.natural, self.reader.spec.kind
        return Recordings(tuple(Spoken(u.text, natural(u.mel).numpy(), kind, id=u.id) for u in self.split("heldout")))


@lru_cache(maxsize=4)
def load_own(source: str, holdout: float, reader: Reader) -> OwnData:
    """The recordings of a folder, metadata.csv or .jsonl file (see `folders.scan`) as `reader`'s network takes them.

    Aligned networks get phones by pocketsphinx, or without it at the pace of the predicted durations (speech spec 1.7);
    others get characters, all of which the vocabulary has. Raises as `scan` and `Reader.ids`.
    """
    found, report = scan(source, Limits(tokenizer=reader.tokenizer, holdout=holdout))
    aligner = "" if not reader.config.aligned else "pocketsphinx" if find_spec("pocketsphinx") else "durations"
    report.text = ALIGNERS[aligner] if aligner else f"{ALIGNERS['']} ({reader.config.tokenizer})"
    made: dict[str, Utterance] = {}
    prepared = Preparation(reader.spec, reader.scale, aligner).of(found)
    for recording, utterance in zip(found, prepared, strict=True):
        if isinstance(utterance, LeftOut):
            report.skip(utterance.reason, utterance.example)
        else:
            made[recording.id] = utterance if aligner else spelled(utterance, reader)
    splits: dict[str, list[Utterance]] = {"train": [], "heldout": []}
    for recording in divided([r for r in found if r.id in made], holdout, report, source):
        splits[recording.split].append(made[recording.id])
    return OwnData(splits, report, reader)


def spelled(utterance: Utterance, reader: Reader) -> Utterance:
    """For a network of characters: their ids, not aligned; raises UsageError for those that its vocabulary lacks."""
    ids = torch.tensor(reader.ids(utterance.text, f"sentence {utterance.id}"))
    return replace(utterance, ids=ids, frames=None)


def vocabulary(texts: Sequence[str], kind: str) -> tuple[str, ...] | None:
    """Symbols of a new network that is to read these texts, the space first; None for bytes, which need none."""
    if kind == "byte":
        return None
    tokenizer = SpeechTokenizer(kind, (" ",))
    return (" ", *sorted({symbol for text in texts for symbol in tokenizer.symbols(text)} - {" "}))
