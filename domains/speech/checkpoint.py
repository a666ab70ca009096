"""F5 networks on disk: official checkpoints in all their forms (speech spec 1.4), and safetensors of our own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xdistill.domains.speech.network import PRESETS, F5Config, F5Net
from xdistill.domains.speech.shapes import deduce
from xdistill.errors import UsageError, XDistillError
from xdistill.foreign import check_fit, read_archive

FORMAT = "xdistill-f5-1"
_METADATA = "xdistill_speech"
BIGVGAN = "_bigvgan"  # ends the names of official folders of that mel kind
VERSIONS = {"v0": "F5TTS_Base", "v1": "F5TTS_v1_Base"}  # of which networks of other sizes have the switches
_EMA, _NET = "ema_model.", "transformer."
_EMA_STATE, _RAW_STATE = "ema_model_state_dict", "model_state_dict"
#: What official files keep beside the network.
_BESIDE = ("initted", "step", "update", "mel_spec.mel_stft.mel_scale.fb", "mel_spec.mel_stft.spectrogram.window")
_LICENCE = "official F5-TTS weights are CC-BY-NC-4.0; what is distilled from them inherits it"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in evaluation mode, float32, on the CPU.

    vocabulary: symbols by id, or None if unknown (then text cannot be encoded). provenance: where weights come from.
    """

    net: F5Net
    vocabulary: tuple[str, ...] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def load_network(path: str | Path, *, mel_spec_type: str | None = None, **official: Any) -> LoadedNetwork:
    """What `save_network` wrote, or an official file (`official`: options of `load_official`).

    mel_spec_type: the mel kind that is expected. Raises XDistillError, one line, when the file is missing, damaged,
    of another format or of another mel kind; UsageError for options that a file of ours does not need.
    """
    path = Path(path)
    said = _description(path) if path.suffix == ".safetensors" else None
    if said is None:
        return load_official(path, mel_spec_type=mel_spec_type, **official)
    if any(v is not None for v in official.values()):
        raise UsageError(f"{path} says how it is built: leave out {', '.join(official)}")
    if said.get("format") != FORMAT:
        raise XDistillError(f"{path} is of format {said.get('format')}, expected {FORMAT}")
    config = F5Config.from_dict(said["config"])
    if mel_spec_type not in (None, config.mel_spec_type):
        raise XDistillError(f"{path} was trained on {config.mel_spec_type} mels, {mel_spec_type} ones are asked for")
    vocabulary = None if said["vocabulary"] is None else tuple(said["vocabulary"])
    return LoadedNetwork(_build(config, _safetensors(path), path), vocabulary, said["provenance"])


def load_official(
    path: str | Path,
    *,
    name: str | None = None,
    mel_spec_type: str | None = None,
    tokenizer: str | None = None,
    vocabulary: str | Path | None = None,
    ema: bool = True,
) -> LoadedNetwork:
    """An official `.safetensors` or `.pt` file, read weights-only; sizes are those of its tensors.

    Args:
        name: the official configuration (F5TTS_Base, ...), or `v0`, `v1` for another network with its switches, which
            no tensor tells; default the name of the file's folder, less `_bigvgan`.
        mel_spec_type: the mel kind, which no tensor tells either: vocos, or bigvgan; default bigvgan for a folder whose
            name ends with it, as the official ones do.
        tokenizer: char, pinyin or byte; default that of the configuration.
        vocabulary: vocab.txt; default the one beside the file, if any.
        ema: the averaged weights; False reads the raw ones of a full training checkpoint.

    Raises XDistillError for a missing, damaged, foreign or hostile file, or weights that do not fit; UsageError for an
    unknown name.
    """
    path = Path(path)
    state = _official_state(path, ema)
    kind = mel_spec_type or ("bigvgan" if path.resolve().parent.name.endswith(BIGVGAN) else "vocos")
    config = replace(deduce(state, _switches(path, name), path), mel_spec_type=kind)
    config = config if tokenizer is None else replace(config, tokenizer=tokenizer)
    net = _build(config, state, path)
    beside = path.with_name("vocab.txt")
    found = vocabulary or (beside if beside.is_file() else None)
    symbols = None if found is None else _checked(read_vocabulary(found), config, Path(found))
    provenance = {
        "source": path.name,
        "sha256": _sha256(path),
        "weights": "EMA" if ema else "raw",
        "licence": _LICENCE,
    }
    return LoadedNetwork(net, symbols, provenance)


def save_network(
    net: F5Net,
    path: str | Path,
    *,
    vocabulary: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write one safetensors file whose metadata says what `load_network` needs, the mel kind included; atomic.

    dtype: of the stored weights; they are loaded as float32. Returns the path, with its suffix.
    """
    path = Path(path).with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {
        "format": FORMAT,
        "config": net.config.to_dict(),
        "vocabulary": None if vocabulary is None else list(vocabulary),
        "provenance": dict(provenance or {}),
    }
    temporary = path.with_suffix(".tmp")
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in net.state_dict().items()}
    weights["rotary_embed.inv_freq"] = net.rotary_embed.inv_freq.detach().cpu().float()  # positions need its digits
    save_file(weights, temporary, metadata={"format": "pt", _METADATA: json.dumps(said, ensure_ascii=False)})
    os.replace(temporary, path)
    return path


def read_vocabulary(path: str | Path) -> tuple[str, ...]:
    """Symbols of a vocab.txt, one a line, by id; raises XDistillError when it is missing or no UTF-8 text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise XDistillError(f"{path} is no readable vocab.txt ({error}): expected one symbol a line, UTF-8") from error
    return tuple(text.removesuffix("\n").split("\n"))


def _official_state(path: Path, ema: bool) -> dict[str, Tensor]:
    """The network's tensors by their names below `transformer.`."""
    content: Any = _safetensors(path) if path.suffix == ".safetensors" else read_archive(path, ignored=("numpy",))
    if isinstance(content, Mapping) and (_EMA_STATE in content or _RAW_STATE in content):
        key = _EMA_STATE if ema else _RAW_STATE
        if key not in content:
            raise XDistillError(f"{path} has no {key}: use ema={not ema}")
        content = content[key]
    if not isinstance(content, Mapping) or not all(_named(*item) for item in content.items()):
        raise XDistillError(f"{path} is no F5-TTS checkpoint: expected named tensors or {_EMA_STATE}")
    state = {k.removeprefix(_EMA): v for k, v in content.items() if k.removeprefix(_EMA) not in _BESIDE}
    strange = [k for k in state if not k.startswith(_NET)]
    if strange or not state:
        raise XDistillError(f"{path} is no F5-TTS checkpoint: {strange[0] if strange else 'no tensor'} in it")
    return {k.removeprefix(_NET): v for k, v in state.items()}


def _named(key: Any, value: Any) -> bool:
    return isinstance(key, str) and (isinstance(value, Tensor) or key == "update")


def _switches(path: Path, name: str | None) -> F5Config:
    """The configuration whose switches the file has."""
    folder = path.resolve().parent.name.removesuffix(BIGVGAN)
    name = name or (folder if folder in [*PRESETS, *VERSIONS] else None)
    if name is None:
        raise UsageError(
            f"{path} does not say its version: put it into a folder F5TTS_v1_Base, F5TTS_Base, F5TTS_v1_Small, "
            f"F5TTS_Small, or v1 or v0 for another network ({BIGVGAN} behind the name where its mels are BigVGAN's)"
        )
    return F5Config.preset(VERSIONS.get(name, name))


def _build(config: F5Config, state: Mapping[str, Tensor], path: Path) -> F5Net:
    """The network with these weights, checked name by name and shape by shape."""
    with torch.device("meta"):
        net = F5Net(config)
    check_fit(path, net.state_dict(), state)
    net.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return net.eval()


def _checked(symbols: tuple[str, ...], config: F5Config, path: Path) -> tuple[str, ...]:
    if len(symbols) != config.vocab_size:
        raise XDistillError(
            f"{path} has {len(symbols)} symbols, the network {config.vocab_size}: give its own vocab.txt"
        )
    return symbols


def _description(path: Path) -> dict[str, Any] | None:
    """What the file's metadata says, None for a file that is not ours."""
    if not path.is_file():
        raise XDistillError(f"{path} does not exist; expected a checkpoint file")
    try:
        with safe_open(path, "pt") as handle:
            said = (handle.metadata() or {}).get(_METADATA)
            return None if said is None else json.loads(said)
    except (SafetensorError, OSError, ValueError) as error:
        raise XDistillError(f"{path} is damaged: {str(error).splitlines()[0]}; copy it again") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    _description(path)
    with safe_open(path, "pt") as handle:
        return {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118 (no iterator)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
