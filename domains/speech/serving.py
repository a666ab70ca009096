"""What `generate` asks of the speech domain: requests, plans, sound files, likeness; and the teacher's samplers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from xdistill.domain import Domain, FilterFactory, Recorder, TeacherSampler
from xdistill.domains.speech import codec, planning, requests, spoken
from xdistill.domains.speech.data import Utterance
from xdistill.domains.speech.filters import FILTERS
from xdistill.domains.speech.flow import SpeechCond, SpeechFlow
from xdistill.domains.speech.grids import f5_plan
from xdistill.domains.speech.network import F5Config
from xdistill.domains.speech.planning import Reader
from xdistill.domains.speech.sound_stream import SoundRecorder
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.tokens import SpeechTokenizer
from xdistill.guidance import Guided
from xdistill.models import Batch
from xdistill.process import GaussianProcess
from xdistill.rng import Generator
from xdistill.samplers import ode
from xdistill.state import Field, Padded


class SpeechServing(Domain):
    """The serving half of the speech domain.

    network_config: of the network in use. vocabulary: of character networks, its symbols by id. vocoder: what makes
    sound of mels. watermark: `module:function` of (samples, rate) that marks it. reference_steps, sway: of the
    teacher's own sampler.
    """

    process: GaussianProcess
    network_config: F5Config
    vocabulary: Sequence[str] | None = None
    vocoder: str = "griffin_lim"
    watermark: str | None = None
    reference_steps: int = 32
    sway: float = -1.0

    request_keys: Mapping[str, str] = MappingProxyType(
        {
            "text": "what all samples say",
            "texts": "a .txt or .jsonl file, or - for the standard input: a text a line, or an object with text, ref, "
            "ref_text, duration or speed; sample i takes line i, and the first again after the last",
            "ref": "a recording of a voice to go on in, 2 to 12 seconds in any sound format",
            "ref_text": "what the recording says (default: what stands in the .txt beside it)",
            "speed": "2 is twice as fast (default 1)",
            "duration": "seconds of each sample (default: as long as its text takes)",
            "say.*": "how a word is said that the dictionary lacks, in ARPAbet: say.xdistill='EH K S D IH S T IH L'",
            "vocoder": "what makes the sound: griffin_lim, mini (for the shipped voice), vocos:PATH or bigvgan:PATH",
            "watermark": "a Python function that marks the sound, module:function of (samples, rate)",
        }
    )
    text_keys = ("text", "texts", "ref", "ref_text", "vocoder", "watermark")
    file_keys = requests.FILE_KEYS
    formats = codec.FORMATS
    packed_suffix = codec.PACKED_SUFFIX
    ranking = MappingProxyType(spoken.RANKING)
    design_columns = spoken.DESIGN_COLUMNS
    watched = ("spread", "contrast")
    watch_fall = 0.15  # the guided teacher's few Euler steps, which students are held against, overshoot by about 9 %
    unit = "frames"

    def sentences(self, split: str) -> Sequence[Utterance]:
        """The utterances of a split; see SpeechDomain."""
        raise NotImplementedError

    @property
    def reader(self) -> Reader:
        """How the network in use reads text."""
        return _reader(self.network_config, None if self.vocabulary is None else tuple(self.vocabulary))

    def open_request(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
        return requests.open_request(request)

    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch[Field]:
        """What is asked for; without a request, held-out sentences with their true durations, no recording shown."""
        asked = requests.parse_request(request)
        if asked is not None:
            items = [planning.item(asked.asks[i % len(asked)], self.reader) for i in indices]
            return planning.batch(items, self.reader)
        known = self.sentences("heldout")
        return planning.batch([planning.again(known[i % len(known)]) for i in indices], self.reader)

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """Text is embedded once for all calls of a sampler; where there are two networks, each embeds it itself."""
        flows = [m for m in model.modules() if isinstance(m, SpeechFlow)]
        if len(flows) != 1 or not isinstance(batch.cond, SpeechCond) or not isinstance(batch.like.layout, Padded):
            return batch
        guided = any(isinstance(m, Guided) for m in model.modules())
        return replace(batch, cond=flows[0].prepare(batch.cond, batch.like.layout, null=guided))

    def decode(self, sample: Field) -> list[Spoken]:
        """Natural-log mels with what they say."""
        return spoken.decode(sample, self.reader.spec, self.reader.scale)

    def for_request(self, **request: Any) -> SpeechServing:
        changed = copy.copy(self)
        changed.vocoder = str(request.get("vocoder", self.vocoder))
        changed.watermark = request.get("watermark", self.watermark)
        codec.vocoder(changed.vocoder, self.reader.spec)
        codec.find_watermark(changed.watermark)
        return changed

    def notice(self, **request: Any) -> str | None:
        asked = requests.parse_request(request)
        if asked is None or all(ask.voice is None for ask in asked.asks):
            return self.licence
        consent = "ref=: imitate a voice only if the person it belongs to agreed; the files say that they are synthetic"
        return consent if self.licence is None else f"{consent}\n{self.licence}"

    def parts(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        asks = requests.parts(requests.parse_request(request), self.reader.config.aligned)
        kept = {key: value for key, value in request.items() if key in requests.FILE_KEYS}
        return {**kept, "texts": asks}, len(asks)

    def recorder(self, out: str) -> Recorder:
        return SoundRecorder(out, self.waveform, codec.find_watermark(self.watermark))

    def waveform(self, sample: Spoken) -> NDArray[np.float32]:
        """[samples] at 24 kHz, as files hold it but for the watermark."""
        return codec.waveform(sample, self.vocoder)

    def write(self, sample: Any, path: Path) -> Path:
        return codec.write(sample, path, self.vocoder, codec.find_watermark(self.watermark))

    def encode(self, sample: Any, format: str) -> bytes:
        return codec.encode(sample, format, self.vocoder, codec.find_watermark(self.watermark))

    def read(self, folder: Path) -> list[Spoken]:
        """Utterances of sound files and mels; see `codec.load` for their texts."""
        return codec.read(folder, self.reader.spec)

    def load(self, path: Path) -> Spoken:
        return codec.load(path, self.reader.spec)

    def pack(self, samples: Sequence[Any], indices: Sequence[int]) -> bytes:
        return codec.pack(samples, indices)

    def unpack(self, data: bytes) -> dict[int, Any]:
        return codec.unpack(data)

    def filters(self) -> Mapping[str, FilterFactory]:
        return FILTERS

    def design_metrics(self, sample: Any) -> dict[str, float | int | bool]:
        return spoken.design_metrics(sample)

    def watch(self, samples: Sequence[Any]) -> dict[str, float]:
        return spoken.watch(samples)

    def similarity(self, a: Any, b: Any) -> float:
        return spoken.similarity(a, b)

    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        """`reference` is F5-TTS's: Euler over sway times; `pruned` takes its empirical times where it has that many."""
        return {
            "reference": self._euler(self.sway),
            "euler": self._euler(None),
            "pruned": self._euler(self.sway, pruned=True),
        }

    def _euler(self, sway: float | None, *, pruned: bool = False) -> TeacherSampler:
        def sample(model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Field:
            plan = f5_plan(steps or self.reference_steps, sway=sway, pruned=pruned)
            return ode(model, self.process, plan, self.process.prior(batch.like, generator), batch.cond)

        return sample


@lru_cache(maxsize=8)
def _reader(config: F5Config, vocabulary: tuple[str, ...] | None) -> Reader:
    if config.aligned or (config.tokenizer != "byte" and vocabulary is None):
        return Reader(config)
    return Reader(config, SpeechTokenizer(config.tokenizer, vocabulary or ()))
