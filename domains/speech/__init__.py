"""Speech: F5-TTS flows over mel spectrograms, distilled into students of one to four network calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from xdistill.domain import DataSource
from xdistill.domains.speech import corpus, teacher
from xdistill.domains.speech.data import Prompting, Utterance, UtteranceSource
from xdistill.domains.speech.flow import SpeechFlow
from xdistill.domains.speech.folders import Limits, scan
from xdistill.domains.speech.measuring import SpeechMeasuring
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.network import F5Config
from xdistill.domains.speech.own_data import OwnData, load_own, spelled, vocabulary
from xdistill.domains.speech.serving import SpeechServing
from xdistill.domains.speech.utterances import Scale, utterances
from xdistill.errors import UsageError
from xdistill.process.schedules import Linear
from xdistill.registry import nearest


@dataclass(frozen=True)
class SpeechDomainConfig:
    """The speech domain's section of a configuration.

    size: of a network to train from nothing, `mini` or a published one. frames: mel frames of a padded batch at most.
    longest: frames to which longer sentences of aligned networks are cropped in training. masked: least and largest
    share of an utterance that training hides. audio_drop: probability that it shows no recording. scored: frames that
    losses count, `all` or the hidden `span` (F5-TTS). reference_steps: network evaluations of the teacher's own
    sampler, each two calls when guided. sway: of its times. vocoder: what makes sound of mels, griffin_lim, mini,
    vocos:PATH, bigvgan:PATH, or auto: mini for the shipped voice, else griffin_lim. watermark: `module:function` of
    (samples, rate) that marks the sound, null: nothing. holdout: share of the sentences of your own recordings kept
    for evaluation.
    """

    size: str = "mini"
    frames: int = 2048
    longest: int = 384
    masked: tuple[float, float] = (0.7, 1.0)
    audio_drop: float = 0.5
    scored: str = "all"
    reference_steps: int = 32
    sway: float = -1.0
    vocoder: str = "auto"
    watermark: str | None = None
    holdout: float = 0.05


class SpeechDomain(SpeechMeasuring, SpeechServing):
    """Mel spectrograms of sentences; see `SpeechDomainConfig` for its keys and the speech spec for the conventions."""

    name = "speech"
    process = Linear()
    vocabulary: Sequence[str] | None = None

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        known = [f.name for f in fields(SpeechDomainConfig)]
        for key in cfg:
            if key not in known:
                raise UsageError(f"unknown key 'domain.{key}' of the speech domain{nearest(key, known)}")
        self.speech = SpeechDomainConfig(**cfg)
        if self.speech.scored not in ("all", "span"):
            raise UsageError(f"domain.scored={self.speech.scored}: expected all or span")
        self.watermark = self.speech.watermark
        self.reference_steps, self.sway = self.speech.reference_steps, self.speech.sway

    @cached_property
    def vocoder(self) -> str:  # type: ignore[override]
        """As configured; `auto` is the network that learned the shipped voice where that speaks, else Griffin-Lim."""
        if self.speech.vocoder != "auto":
            return self.speech.vocoder
        shipped = self.teacher_weights == "shipped" and self.data_path is None and self.spec.kind == "vocos"
        return "mini" if shipped else "griffin_lim"

    @property
    def calls_vary(self) -> bool:  # type: ignore[override]
        """Official networks see their padding, so they are called length by length."""
        return not self.network_config.aligned

    @property
    def spec(self) -> MelSpec:
        """The front-end of the network's mels."""
        return MelSpec(self.network_config.mel_spec_type)

    @property
    def scale(self) -> Scale:
        """The units in which the network takes them."""
        return Scale(self.network_config.mel_mean, self.network_config.mel_std)

    @cached_property
    def network_config(self) -> F5Config:
        """Of the networks in use: the last that was loaded, until then a fresh one's."""
        return F5Config.preset(self.speech.size)

    @cached_property
    def _teacher(self) -> SpeechFlow:
        flow, self.vocabulary, self.licence = teacher.load(self.teacher_weights)
        self.network_config = flow.net.config
        return flow

    def teacher(self) -> nn.Module:
        return self._teacher

    def network(self) -> nn.Module:
        """Of characters, those of the teacher in use, else of the data's texts."""
        config = F5Config.preset(self.speech.size)
        if not config.aligned:
            if self.vocabulary is None:
                self.vocabulary = vocabulary(self._texts(), config.tokenizer)
            config = replace(config, vocab_size=256 if self.vocabulary is None else len(self.vocabulary))
        self.network_config = config
        return teacher.fresh(config)

    def _texts(self) -> list[str]:
        """What is said in the data."""
        if self.data_path is None:
            return [clip.text for clip in corpus.clips()]
        return [r.text for r in scan(self.data_path, Limits(holdout=self.speech.holdout))[0]]

    def flow_map(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, SpeechFlow)
        return teacher.with_second_time(network)

    def told(self, network: nn.Module, scale: float) -> nn.Module:
        assert isinstance(network, SpeechFlow)
        return teacher.with_guidance(network, scale)

    def describe(self, module: nn.Module) -> dict[str, Any]:
        if not isinstance(module, SpeechFlow):
            return {}
        symbols = {} if self.vocabulary is None else {"vocabulary": list(self.vocabulary)}
        bound = {} if self.licence is None else {"licence": self.licence}
        return teacher.describe(module) | symbols | bound

    def from_description(self, description: Mapping[str, Any]) -> nn.Module:
        symbols = description.get("vocabulary", self.vocabulary)
        if self.vocabulary is not None and list(symbols) != list(self.vocabulary):
            raise UsageError("two networks of other vocabularies: give student.init= a run of this teacher")
        self.vocabulary, self.licence = symbols, description.get("licence", self.licence)
        beside = ("vocabulary", "licence")
        flow = teacher.from_description({k: v for k, v in description.items() if k not in beside})
        self.network_config = flow.net.config
        return flow

    def shipped_student(self) -> Path:
        return teacher.SHIPPED_STUDENT

    def sentences(self, split: str) -> Sequence[Utterance]:
        """The `train` or `heldout` utterances of the user's recordings, or of the embedded corpus."""
        if self.own:
            return self.own.split(split)
        found = utterances(split, self.spec, self.scale)
        return found if self.network_config.aligned else [spelled(u, self.reader) for u in found]

    @property
    def own(self) -> OwnData | None:
        """The user's recordings as the network in use takes them, None without `data.path`."""
        if self.data_path is None:
            return None
        found = load_own(str(self.data_path), self.speech.holdout, self.reader)
        self.data_report = found.report
        return found

    def data(self, batch_size: int, seed: int) -> DataSource:
        return self._source(batch_size, seed, real=True)

    def null_data(self, batch_size: int, seed: int) -> DataSource:
        return self._source(batch_size, seed, real=False)

    def _source(self, batch_size: int, seed: int, *, real: bool) -> DataSource:
        c = self.speech
        prompting = Prompting(tuple(c.masked), c.audio_drop, c.scored)
        return UtteranceSource(self.sentences("train"), batch_size, seed, c.frames, c.longest, prompting, real)

    @staticmethod
    def replay(directory: Path) -> list[Any]:
        """Replay recorded fixtures (see xdistill.testing.parity)."""
        from xdistill.domains.speech import parity

        return parity.replay(directory)
