"""Utterances in files: sound (16-bit WAV or FLAC), mels with their text (.npz), and packed shards of mels."""

from __future__ import annotations

import importlib
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from xdistill.domains.speech.audio import SUFFIXES
from xdistill.domains.speech.mel import MelSpec, mel
from xdistill.domains.speech.spoken import Spoken
from xdistill.domains.speech.vocoder import Vocoder, load_vocoder
from xdistill.domains.speech.voices import read_audio
from xdistill.errors import UsageError, XDistillError
from xdistill.generation.shards import replace_file
from xdistill.registry import nearest

FORMATS = ("wav", "flac", "npz")
PACKED_SUFFIX = ".mels.npz"
#: What reading an altered archive raises.
DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)
COMMENT = "synthetic speech, xdistill"

#: ([samples], samples a second) -> [samples]; see `domain.watermark`.
Watermark = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


@lru_cache(maxsize=4)
def vocoder(choice: str, spec: MelSpec) -> Vocoder:
    """`load_vocoder`, once."""
    return load_vocoder(choice, spec)


def find_watermark(entry: str | None) -> Watermark | None:
    """The function that `module:function` names; raises UsageError when there is none."""
    if entry is None:
        return None
    module, _, name = entry.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"watermark={entry}: {error}: expected module:function of (samples, rate)") from None
    if not callable(found):
        raise UsageError(f"watermark={entry} is no function: expected module:function of (samples, rate)")
    return found


def waveform(sample: Spoken, choice: str) -> NDArray[np.float32]:
    """[samples] at 24 kHz: what was recorded, else the mel through the vocoder `choice`.

    Raises XDistillError for a mel that is not finite.
    """
    if sample.audio is not None:
        return sample.audio
    if not np.isfinite(sample.mel).all():
        raise XDistillError("the mel has NaN or infinite values: nothing to vocode")
    found = vocoder(choice, sample.spec)(torch.from_numpy(sample.mel.T.copy())) / sample.gain
    return found.float().cpu().numpy()


def encode(sample: Spoken, format: str, choice: str, watermark: Watermark | None = None) -> bytes:
    """The file of one utterance; raises UsageError for an unknown format."""
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}'{nearest(format, FORMATS)}")
    if format == "npz":
        return _arrays(mel=sample.mel, about=_text(_about(sample)))
    wave, rate = waveform(sample, choice), sample.spec.sample_rate
    if watermark is not None:
        wave = np.asarray(watermark(wave, rate), np.float32)
    return sound(wave, rate, format, sample.text)


def sound(wave: NDArray[np.float32], rate: int, format: str, text: str = "") -> bytes:
    """16-bit sound of [samples] in [-1, 1], which says in its tags what it is and what it says."""
    out = BytesIO()
    with soundfile.SoundFile(out, "w", rate, 1, "PCM_16", format=format.upper()) as file:
        tag(file, text)
        file.write(whole(wave))
    return out.getvalue()


def whole(wave: NDArray[np.float32]) -> NDArray[np.int16]:
    """16-bit samples, as `audio.encode` rounds them; what is beyond full scale is cut."""
    return np.round(np.clip(wave.astype(np.float64), -1, 1) * 32767).astype(np.int16)


def tag(file: soundfile.SoundFile, text: str) -> None:
    """Say in the file that a machine spoke, and what; before its first sample."""
    file.comment = COMMENT
    if text:
        file.title = text


def write(sample: Spoken, path: Path, choice: str, watermark: Watermark | None = None) -> Path:
    """Write one utterance atomically, `.wav` unless the path names another format; returns the final path."""
    if path.suffix[1:].lower() not in FORMATS:
        path = path.with_name(f"{path.name}.{FORMATS[0]}")
    replace_file(path, encode(sample, path.suffix[1:].lower(), choice, watermark), durable=False)
    return path


def load(path: Path, spec: MelSpec) -> Spoken:
    """The utterance of one file; of a sound, what is heard in it, with the mel of `spec` and the text of a .txt or
    .json ("text") beside it, else of its title. Raises XDistillError for a file that is none.
    """
    if path.suffix.lower() == ".npz":
        try:
            found, about = _read_arrays(path.read_bytes(), "mel", "about")
            return _spoken(found, json.loads(bytes(about)))
        except DAMAGE as error:
            raise XDistillError(f"{path}: expected a mel that generate wrote ({error})") from error
    wave = read_audio(path, spec.sample_rate)
    heard = mel(torch.from_numpy(wave), spec).mT.contiguous().numpy()
    return Spoken(_words(path), heard, spec.kind, audio=wave)


def _words(path: Path) -> str:
    """What a sound file says."""
    for suffix in (".txt", ".json"):
        beside = path.with_suffix(suffix)
        if not beside.is_file():
            continue
        text = beside.read_text(encoding="utf-8-sig", errors="replace").strip()
        if suffix == ".txt":
            return text
        try:
            return str(json.loads(text)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise XDistillError(f'{beside}: expected a JSON object with "text" ({error})') from error
    with soundfile.SoundFile(str(path)) as file:
        return str(file.title)


def read(folder: Path, spec: MelSpec) -> list[Spoken]:
    """Utterances of a folder's sounds and mels, in the order of their names."""
    known = (p for p in folder.iterdir() if p.suffix.lower() in (*SUFFIXES, ".npz"))
    found = sorted(p for p in known if not p.name.startswith(".") and not p.name.lower().endswith(PACKED_SUFFIX))
    if not found:
        raise XDistillError(f"{folder}: no {', '.join((*SUFFIXES, '.npz'))} files to read")
    return [load(path, spec) for path in found]


def pack(samples: Sequence[Spoken], indices: Sequence[int]) -> bytes:
    """Mels with their texts as one compressed npz; equal input gives equal bytes."""
    about = [{"index": int(i), "frames": len(s), **_about(s)} for i, s in zip(indices, samples, strict=True)]
    return _arrays(mels=np.concatenate([s.mel for s in samples]), about=_text(about))


def unpack(data: bytes) -> dict[int, Spoken]:
    """Index -> utterance of `pack`; raises XDistillError for anything else."""
    try:
        mels, text = _read_arrays(data, "mels", "about")
        about = json.loads(bytes(text))
        ends = np.cumsum([row["frames"] for row in about])
        if len(mels) != ends[-1]:
            raise ValueError(f"{len(mels)} frames, expected {ends[-1]}")
        parts = np.split(mels, ends[:-1])
        return {int(row["index"]): _spoken(part, row) for row, part in zip(about, parts, strict=True)}
    except DAMAGE as error:
        raise XDistillError(f"damaged packed mels ({error})") from error


def _about(sample: Spoken) -> dict[str, Any]:
    return {"text": sample.text, "kind": sample.kind, "gain": sample.gain, "id": sample.id}


def _spoken(found: NDArray[Any], about: dict[str, Any]) -> Spoken:
    if found.ndim != 2:
        raise ValueError(f"a mel of shape {found.shape}")
    kind, gain = str(about["kind"]), float(about["gain"])
    return Spoken(str(about["text"]), found.astype(np.float32), kind, gain, str(about.get("id", "")))


def _text(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)


def _arrays(**arrays: NDArray[Any]) -> bytes:
    out = BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _read_arrays(data: bytes, *names: str) -> list[NDArray[Any]]:
    """Arrays of `_arrays`; checksums come first, because numpy reads altered headers as Python."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        if (altered := archive.testzip()) is not None:
            raise ValueError(f"{altered} is altered")
    with np.load(BytesIO(data), allow_pickle=False) as arrays:
        return [arrays[name] for name in names]
