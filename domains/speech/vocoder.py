"""Vocoders behind one call: a log-mel in, a waveform out; and the refusal of one that hears another kind of mel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from xdistill.domains.speech.bigvgan import load_bigvgan
from xdistill.domains.speech.griffin_lim import GriffinLim
from xdistill.domains.speech.mel import MelSpec, same_mel
from xdistill.domains.speech.vocos import load_vocos
from xdistill.errors import UsageError, XDistillError
from xdistill.registry import nearest

CHOICES = ("griffin_lim", "mini", "vocos:PATH", "bigvgan:PATH")
MINI = Path(__file__).with_name("assets") / "vocoder_mini"


class Vocoder(Protocol):
    """Waveform [samples] in float of one log-mel [bins, frames]; deterministic, and the mel has no padding."""

    @property
    def name(self) -> str: ...

    @property
    def mel_kind(self) -> str: ...

    def __call__(self, mel: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NeuralVocoder:
    """A network [B, bins, frames] -> [B, samples] as a `Vocoder`; computes in float32 on the network's device."""

    name: str
    spec: MelSpec
    network: nn.Module

    @property
    def mel_kind(self) -> str:
        return self.spec.kind

    @torch.no_grad()
    def __call__(self, mel: Tensor) -> Tensor:
        """Waveform [samples] on the mel's device; raises XDistillError for another shape than [bins, frames]."""
        self.spec.check(mel)
        like = next(self.network.parameters())
        return self.network(mel.to(like)[None])[0].to(mel.device)


def load_vocoder(choice: str, spec: MelSpec) -> Vocoder:
    """The vocoder that `choice` names, for mels of `spec`.

    `griffin_lim` needs no weights; `mini` is the small Vocos shipped with this package; `vocos:PATH` and `bigvgan:PATH`
    read official weights, PATH a folder as downloaded (config and weights) or the weights file in it.

    Raises:
        UsageError: no such choice.
        XDistillError: the files are missing or damaged, or the vocoder hears another mel than `spec`.
    """
    kind, _, path = choice.partition(":")
    if kind == "griffin_lim" and not path:
        return GriffinLim(spec)
    if kind == "mini" and not path:
        network: nn.Module = load_mini()
    elif kind == "vocos" and path:
        network = load_vocos(Path(path))
    elif kind == "bigvgan" and path:
        network = load_bigvgan(Path(path))
    else:
        raise UsageError(f"unknown vocoder '{choice}'{nearest(choice, CHOICES)}")
    found = NeuralVocoder(choice, network.config.mel, network)  # type: ignore[arg-type, union-attr]
    same_mel(spec, found.spec, f"mel and vocoder '{choice}'")
    return found


def vocode(vocoder: Vocoder, mels: Tensor, lengths: Sequence[int] | Tensor) -> list[Tensor]:
    """Waveforms of mels [B, bins, frames] with true `lengths`, one by one: neighbours and padding are never heard."""
    return [vocoder(mel[:, : int(length)]) for mel, length in zip(mels, lengths, strict=True)]


def load_mini() -> nn.Module:
    """The shipped small Vocos; raises XDistillError where the package came without it."""
    if not MINI.is_dir():
        raise XDistillError("vocoder 'mini' is not in this package: use griffin_lim, or train it with its tool")
    return load_vocos(MINI)
