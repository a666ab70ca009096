"""What `evaluate`, `fit` and `bench` ask of the speech domain: metrics, judges, references, pictures and players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from xdistill.domain import Domain, ExtraMetrics, Metric
from xdistill.domains.speech import codec, html_players
from xdistill.domains.speech.judges import JUDGES, speaker
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.metrics import RecordingOf, evaluate_speech, paired, recording_of, recordings
from xdistill.domains.speech.network import F5Config
from xdistill.domains.speech.own_data import OwnData
from xdistill.domains.speech.picture import draw_mel
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.vocoder import Vocoder
from xdistill.evaluation import Row
from xdistill.html_report import Panel


class SpeechMeasuring(Domain):
    """The measuring half of the speech domain. vocoder: the name of what makes sound for judges and players."""

    network_config: F5Config
    vocoder: str

    unit = "seconds of speech"
    unit_elements = MelSpec("vocos").frame_rate  # of both kinds
    bench_batches = (1, 8)
    compared: Sequence[str] = ("score", "paired", "mcd", "log_f0_rmse", "variance_ratio", "wer", "cer")
    compared_extra: Sequence[str] = ("wer",)
    examples = "audio"

    @property
    def own(self) -> OwnData | None:
        """The user's own recordings, None where the embedded corpus is in use; see SpeechDomain."""
        raise NotImplementedError

    @property
    def _recordings(self) -> Sequence[Spoken]:
        """Held-out, as mels."""
        return self.own.recordings.spoken if self.own else recordings(self.network_config.mel_spec_type)

    @property
    def _recording_of(self) -> RecordingOf:
        return self.own.recordings.of if self.own else recording_of

    @property
    def _vocoder(self) -> Vocoder:
        return codec.vocoder(self.vocoder, MelSpec(self.network_config.mel_spec_type))

    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return evaluate_speech(samples, seed, self._recording_of)

    def paired_metrics(self, samples: Sequence[Any], reference: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return {"paired": paired(samples, reference, seed)}

    def extra_metrics(self) -> Mapping[str, ExtraMetrics]:
        def heard(judge: Any, samples: Sequence[Any], seed: int) -> dict[str, Metric]:
            own = {"recorded": self._recording_of} if judge is speaker and self.own else {}
            return judge(samples, self._vocoder, seed, **own)

        return {name: partial(heard, judge) for name, judge in JUDGES.items()}

    def reference_samples(self, num: int, seed: int) -> list[Any]:
        """Held-out recordings as mels: heard through the vocoder they are the ceiling of what it lets through."""
        return list(self._recordings[:num])

    @cached_property
    def _reference(self) -> dict[str, Metric]:
        return evaluate_speech(self._recordings, recording_of=self._recording_of)

    def reference_metrics(self) -> dict[str, Metric]:
        return self._reference

    def headline(self) -> Sequence[str]:
        return ("score", "paired", "mcd", "log_f0_rmse", "variance_ratio")

    def render(self, sample: Any) -> Any:
        return codec.waveform(sample, self.vocoder)

    def draw(self, ax: Any, sample: Any) -> None:
        draw_mel(ax, sample)

    def html_panels(self, rows: Sequence[Row]) -> list[Panel]:
        return html_players.panels(rows, self._vocoder, recording_of=self._recording_of)
