"""Where the speech teacher comes from: the shipped aligned `mini`, a file of ours, or an official F5-TTS checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xdistill.domains.speech.checkpoint import load_network
from xdistill.domains.speech.flow import SpeechFlow
from xdistill.domains.speech.mel import MelSpec
from xdistill.domains.speech.network import F5Config, F5Net
from xdistill.domains.speech.utterances import Scale
from xdistill.errors import XDistillError
from xdistill.student import load_student

ASSETS = Path(__file__).with_name("assets")
SHIPPED_TEACHER = ASSETS / "mini_teacher.safetensors"
SHIPPED_STUDENT = ASSETS / "mini_student"


def fresh(config: F5Config, seed: int = 0) -> SpeechFlow:
    """A network with weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SpeechFlow(F5Net(config))


def load(weights: str, **official: Any) -> tuple[SpeechFlow, tuple[str, ...] | None, str | None]:
    """(network, symbols of its vocabulary, licence that binds its students) of `shipped`, a run or checkpoint folder,
    or a file (`load_network`).

    official: the options of `load_official`. Raises XDistillError when there is no such thing, or it is damaged.
    """
    path = SHIPPED_TEACHER if weights == "shipped" else Path(weights).expanduser()
    if path.is_dir():
        found = load_student(path, "speech")
        assert isinstance(found.model, SpeechFlow)
        said = found.manifest["network"]
        symbols = said.get("vocabulary")
        return found.model, None if symbols is None else tuple(symbols), said.get("licence")
    loaded = load_network(path, **official)
    wanted = MelSpec(loaded.net.config.mel_spec_type)
    if (bands := loaded.net.config.mel_dim) != wanted.bins:
        raise XDistillError(f"{path} is a network of {bands} mel bands, but {wanted.kind} mels have {wanted.bins}")
    return SpeechFlow(loaded.net), loaded.vocabulary, loaded.provenance.get("licence")


def scale(flow: SpeechFlow) -> Scale:
    """The units of a network's mels."""
    return Scale(flow.net.config.mel_mean, flow.net.config.mel_std)


def describe(flow: SpeechFlow) -> dict[str, Any]:
    """Plain JSON values that `from_description` builds the network from."""
    return flow.net.config.to_dict()


def from_description(description: Mapping[str, Any]) -> SpeechFlow:
    """The network of a description, its weights yet to be loaded."""
    return fresh(F5Config.from_dict(description))


def with_second_time(flow: SpeechFlow, kind: str = "added") -> SpeechFlow:
    """A trainable copy of `flow` that also takes the end of a jump, to no effect at first; `flow` itself if it does."""
    return flow if flow.flow_map else _with(flow, second_time=kind)


def with_guidance(flow: SpeechFlow, scale: float) -> SpeechFlow:
    """A trainable copy of `flow` that is also told a guidance scale, to no effect at first; `scale` where it is not."""
    return flow if flow.told == scale else _with(flow, guidance_input=scale)


def _with(flow: SpeechFlow, **inputs: Any) -> SpeechFlow:
    grown = fresh(replace(flow.net.config, **inputs))
    grown.net.load_state_dict({**grown.net.state_dict(), **flow.net.state_dict()})
    weight = next(flow.parameters())
    return grown.to(weight.device, weight.dtype).train(flow.training)
