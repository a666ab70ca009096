"""How near utterances are to the recordings of their sentences, and to what the teacher says from the same noise.

`score` is a proxy without a listener: minus mel cepstral distortion, minus how far the variance in time is from the
recording's, both in dB. The first alone is won by a blurred average of all ways to say a sentence, the second not.
Distilled students are compared by `paired`, the distance to the teacher's own sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdistill.domain import Metric
from xdistill.domains.speech import corpus, spectra
from xdistill.domains.speech.mel import FLOOR, MelSpec, mel
from xdistill.domains.speech.normalise import plain
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.utterances import waveform
from xdistill.errors import XDistillError
from xdistill.intervals import UNDEFINED, bootstrap_sums, bootstrap_totals
from xdistill.rng import derive_seed

Array = NDArray[np.float64]
RecordingOf = Callable[[Spoken], Spoken | None]
LOUDEST = 8.0  # nats: no waveform in [-1, 1] has a louder band
BETTER: Mapping[str, str] = MappingProxyType(
    {"score": "high", "mcd": "low", "log_f0_rmse": "low", "voicing_error": "low", "paired": "low"}
)


@lru_cache(maxsize=4)
def recordings(kind: str) -> tuple[Spoken, ...]:
    """The held-out recordings as mels of a front-end, sorted by id."""
    spec = MelSpec(kind)
    mels = ((c, mel(waveform(c.audio(), corpus.RATE, spec), spec)) for c in corpus.clips("heldout"))
    return tuple(Spoken(clip.text, value.mT.contiguous().numpy(), kind, id=clip.id) for clip, value in mels)


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recorded sentences that samples are measured against, mels of one front-end."""

    spoken: tuple[Spoken, ...]

    @cached_property
    def _by_name(self) -> dict[str, Spoken]:
        """By id, and by their words."""
        return {name: r for r in self.spoken for name in (f"id {r.id}", plain(r.text))}

    def of(self, sample: Spoken) -> Spoken | None:
        """The recording of the sentence that a sample says, None where there is none."""
        return self._by_name.get(f"id {sample.id}") or self._by_name.get(plain(sample.text))


@lru_cache(maxsize=4)
def _embedded(kind: str) -> Recordings:
    return Recordings(recordings(kind))


def recording_of(sample: Spoken) -> Spoken | None:
    """The recording of the embedded corpus of the sentence that a sample says, None where there is none."""
    return _embedded(sample.kind).of(sample)


def natural(sample: Spoken) -> Array:
    """[N, D] its mel as float64, what no waveform has brought to the nearest that one may have."""
    floor = np.log(FLOOR)
    found = np.asarray(sample.mel, np.float64)
    return np.nan_to_num(found, nan=floor, posinf=LOUDEST, neginf=floor).clip(floor, LOUDEST)


@lru_cache(maxsize=256)
def _pitch(sample: Spoken) -> Array:
    return spectra.pitch(natural(sample), sample.spec)


def evaluate_speech(
    samples: Sequence[Spoken], seed: int = 0, recording_of: RecordingOf = recording_of
) -> dict[str, Metric]:
    """score; mcd: dB, 13 cepstra of the mel, frames matched by dynamic time warping where lengths differ; log_f0_rmse:
    nats, frames voiced in both; voicing_error: share of frames of which one is voiced; duration_ratio; variance_ratio:
    of the bands over time, below 1 where detail is smoothed away; silence: share of frames 40 dB below the loudest.

    All but the last are against the recording of the same sentence, and undefined for samples without one. Intervals
    resample utterances.
    """
    rng = np.random.default_rng(derive_seed("speech metrics", seed))
    pairs = [(s, r) for s in samples for r in [recording_of(s)] if r is not None and len(s) > 1]
    table = np.array([_against(*pair) for pair in pairs]).reshape(-1, 12)
    silence = np.array([[spectra.silent(natural(s)).sum(), len(s)] for s in samples if len(s)]).reshape(-1, 2)
    found = {
        "score": bootstrap_totals(table, _score, rng),
        "mcd": bootstrap_sums(table[:, :2], rng),
        "log_f0_rmse": _root(table[:, 2:4], rng),
        "voicing_error": bootstrap_sums(table[:, 4:6], rng),
        "duration_ratio": bootstrap_sums(table[:, 6:8], rng),
        "variance_ratio": bootstrap_sums(table[:, 8:10], rng),
        "silence": bootstrap_sums(silence, rng),
    }
    return {name: replace(m, better=BETTER.get(name, "none")) for name, m in found.items()}


def paired(samples: Sequence[Spoken], reference: Sequence[Spoken], seed: int = 0) -> Metric:
    """Root mean square difference in nats of the mels, over frames and bands, of samples of the same noise.

    Raises XDistillError where a pair differs in length: these are then no samples of the same noise.
    """
    rows = []
    for i, (a, b) in enumerate(zip(samples, reference, strict=True)):
        if a.mel.shape != b.mel.shape or a.kind != b.kind:
            raise XDistillError(
                f"sample {i}: {len(a)} frames of kind {a.kind} against {len(b)} of kind {b.kind}; paired samples come "
                "from one noise and one request"
            )
        rows.append([((natural(a) - natural(b)) ** 2).sum(), a.mel.size])
    rng = np.random.default_rng(derive_seed("paired speech", seed))
    return replace(_root(np.array(rows, np.float64).reshape(-1, 2), rng), better="low")


def _against(sample: Spoken, recording: Spoken) -> list[float]:
    """Pairs (sum, count): distortion, squared log F0, voicing, frames, variance; then variance in dB, and 1."""
    a, b = natural(sample), natural(recording)
    i, j = spectra.matched(a, b).T
    distances = np.sqrt(((spectra.cepstra(a)[i] - spectra.cepstra(b)[j]) ** 2).sum(1) * 2) * spectra.DECIBEL / 2
    f, g = _pitch(sample)[i], _pitch(recording)[j]
    both = np.isfinite(f) & np.isfinite(g)
    octaves = np.log(f[both] / g[both]) ** 2
    own, real = a.var(0).sum(), b.var(0).sum()
    flat = abs(10 * np.log10(max(own, 1e-9) / real))
    pitch = [octaves.sum(), both.sum(), (np.isfinite(f) != np.isfinite(g)).sum(), len(i)]
    return [distances.sum(), len(i), *pitch, len(a), len(b), own, real, flat, 1.0]


def _score(total: Array) -> Any:
    return -total[..., 0] / total[..., 1] - total[..., 10] / total[..., 11]


def _root(table: Array, rng: np.random.Generator) -> Metric:
    """Square root of a pooled mean of squares; rows without any do not take part."""
    used = table[table[:, 1] > 0]
    return bootstrap_totals(used, lambda total: np.sqrt(total[..., 0] / total[..., 1]), rng) if len(used) else UNDEFINED
