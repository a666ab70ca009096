"""A decoded sample of speech, the layout that remembers what each sample says, and cheap numbers of a mel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.utterances import Scale
from xdistill.state import Field, Padded

SILENT = -40.0  # dB below the loudest frame
ALIKE = 2.0  # nats of mel distance at which `similarity` is 1 / e


@dataclass(frozen=True)
class Line:
    """What one sample says. id: the clip of the corpus whose sentence and durations these are, or nothing.

    prompt: natural-log mel [P, D] of the voice that the sample begins with (none: it has none), of which decoding cuts
    off `cut` frames; gain: by which the prompt was raised, undone in the waveform.
    """

    text: str
    id: str = ""
    prompt: Tensor | None = None
    cut: int = 0
    gain: float = 1.0


@dataclass(frozen=True)
class Script(Padded):
    """Padded mels that know what they say; samplers keep it as they keep any layout."""

    lines: tuple[Line, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Of each sample."""
        return tuple(line.text for line in self.lines)


@dataclass(frozen=True, eq=False)
class Spoken:
    """One utterance: natural-log mel [N, D] float32 of the front-end `kind`, and what it says; an array is its mel.

    gain: the waveform of the mel is divided by it. id: see `Line`. audio: [samples] at the front-end's rate, of what
    was read from a sound file.
    """

    text: str
    mel: NDArray[np.float32]
    kind: str = "vocos"
    gain: float = 1.0
    id: str = ""
    audio: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.mel)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.mel, self.mel.dtype if dtype is None else dtype)

    @property
    def spec(self) -> MelSpec:
        """The front-end."""
        return MelSpec(self.kind)

    @property
    def seconds(self) -> float:
        """Of its waveform."""
        return self.spec.samples(len(self.mel)) / self.spec.sample_rate

    @property
    def levels(self) -> NDArray[np.float64]:
        """[N] energy of each frame, dB, the gain undone."""
        mel = np.nan_to_num(self.mel.astype(np.float64), nan=-100.0, posinf=100.0, neginf=-100.0)
        return 10 * np.log10(np.exp(2 * mel.clip(-100, 100)).mean(1) / self.gain**2)


def decode(state: Field, spec: MelSpec, scale: Scale) -> list[Spoken]:
    """One utterance a sample, in nats: prompt frames are the prompt's own, and what decoding cuts off is gone.

    state: [B, N, D] in the network's units. A layout without lines gives utterances without texts.
    """
    layout = state.layout
    assert isinstance(layout, Padded)
    lines = layout.lines if isinstance(layout, Script) and layout.lines else (Line(""),) * layout.batch
    values = scale.natural(state.value.float()).cpu()
    pairs = zip(values, layout.lengths.tolist(), lines, strict=True)
    return [_spoken(value[:n], line, spec.kind) for value, n, line in pairs]


def _spoken(mel: Tensor, line: Line, kind: str) -> Spoken:
    if line.prompt is not None:
        mel = torch.cat([line.prompt, mel[len(line.prompt) :]])
    return Spoken(line.text, mel[line.cut :].numpy(), kind, line.gain, line.id)


def similarity(a: Spoken, b: Spoken) -> float:
    """exp(-d / 2), d the root mean square distance in nats of the mels, both brought to the shorter one's frames."""
    n = min(len(a), len(b))
    x, y = (_resized(s.mel - np.float32(np.log(s.gain)), n) for s in (a, b))
    distance = float(np.sqrt(((x - y) ** 2).mean()))
    return float(np.exp(-distance / ALIKE)) if np.isfinite(distance) else 0.0


def _resized(mel: NDArray[np.float32], n: int) -> NDArray[np.float64]:
    """[n, D] by linear interpolation in time."""
    where = np.linspace(0, len(mel) - 1, n)
    low = np.floor(where).astype(int)
    high, part = np.minimum(low + 1, len(mel) - 1), (where - low)[:, None]
    wide = mel.astype(np.float64)
    return wide[low] * (1 - part) + wide[high] * part


#: Numbers of an utterance in the manifest.
DESIGN_COLUMNS = ("seconds", "level_db", "silence", "characters")
RANKING = {"silence": "low", "level_db": "high"}


def design_metrics(sample: Spoken) -> dict[str, float | int | bool]:
    """seconds of sound; level_db: of all band magnitudes (speech: 20 to 30 with vocos mels); silence: share of frames
    40 dB below the loudest.
    """
    levels = sample.levels
    if not len(levels):
        return {"seconds": 0.0, "level_db": -100.0, "silence": 1.0, "characters": len(sample.text)}
    mean = float(10 * np.log10(np.mean(10 ** (levels / 10))))
    return {
        "seconds": sample.seconds,
        "level_db": mean,
        "silence": float((levels < levels.max() + SILENT).mean()),
        "characters": len(sample.text),
    }


def watch(samples: Sequence[Spoken]) -> dict[str, float]:
    """spread: standard deviation over an utterance's frames, mean of the bands; contrast: over a frame's bands."""
    mels = [s.mel.astype(np.float64) for s in samples]
    spread = float(np.mean([mel.std(0).mean() for mel in mels]))
    return {"spread": spread, "contrast": float(np.mean([mel.std(1).mean() for mel in mels]))}


def with_text(sample: Spoken, text: str) -> Spoken:
    """The same sound with what it says."""
    return replace(sample, text=text)
