"""Files of text weights as they are: names, tensors, and what the file says of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xdistill.errors import XDistillError
from xdistill.foreign import read_archive

# Libraries whose objects official Lightning files carry (tokenizer, callbacks); they are not built.
IGNORED = (
    *("transformers", "tokenizers", "omegaconf", "lightning", "lightning_fabric", "pytorch_lightning"),
    *("torchmetrics", "hydra", "numpy", "pathlib", "datasets"),
)
METADATA = "xdistill_text"


@dataclass(frozen=True)
class Stored:
    """state: tensors by name, marks of compilation removed. config: what is said of the network, in official words.

    ema: what a Lightning file keeps of its averages, unchecked.
    """

    path: Path
    state: dict[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    ema: Any = None


def as_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a safetensors file of ours."""
    return {"format": "pt", METADATA: json.dumps(config)}


def read_stored(path: Path, name: str) -> Stored:
    """Read a file of weights, or `name`.safetensors (or pytorch_model.bin of a model) of a folder.

    Raises XDistillError, one line, when it is missing, damaged, holds more than tensors and configuration, or is no
    file of named tensors.
    """
    if path.is_dir():
        names = [f"{name}.safetensors", *(["pytorch_model.bin"] if name == "model" else [])]
        files = [path / n for n in names if (path / n).is_file()]
        if not files:
            raise XDistillError(f"{path} has no {' or '.join(names)}: expected a folder as on the Hugging Face Hub")
        path = files[0]
    config = _sibling(path) if path.suffix in (".safetensors", ".bin") else {}
    if path.suffix == ".safetensors":
        state, own = _safetensors(path)
        return Stored(path, _plain(path, state), {**config, **own})
    content = read_archive(path, ignored=IGNORED)
    if not isinstance(content, Mapping):
        raise XDistillError(f"{path} is no checkpoint: expected named tensors, or a Lightning file with state_dict")
    state = content.get("state_dict", content)
    return Stored(path, _plain(path, state), {**config, **_experiment(content)}, content.get("ema"))


def _plain(path: Path, state: Any) -> dict[str, Tensor]:
    named = isinstance(state, Mapping) and state
    if not named or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise XDistillError(f"{path} is no checkpoint: expected named tensors, or a Lightning file with state_dict")
    return {k.replace("_orig_mod.", ""): v for k, v in state.items()}


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise XDistillError(f"{path} does not exist; expected a checkpoint file")
    try:
        with safe_open(path, "pt") as handle:
            said = (handle.metadata() or {}).get(METADATA, "{}")
            return {k: handle.get_tensor(k) for k in handle.keys()}, json.loads(said)  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, ValueError) as error:
        raise XDistillError(f"{path} is damaged: {str(error).splitlines()[0]}; copy it again") from error


def _sibling(path: Path) -> dict[str, Any]:
    """config.json beside a file of the Hub."""
    file = path.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise XDistillError(f"{file} is not readable JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _experiment(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and time conditioning of a Lightning file's configuration, where it holds one."""
    stored = (content.get("hyper_parameters") or {}).get("config")
    plain: Any = OmegaConf.to_container(stored) if isinstance(stored, DictConfig) else stored
    if not isinstance(plain, Mapping):
        return {}
    model = plain.get("model")
    sizes = {k: v for k, v in model.items() if isinstance(v, int | float)} if isinstance(model, Mapping) else {}
    timed = plain.get("time_conditioning")
    return {**sizes, **({"time_conditioning": timed} if isinstance(timed, bool) else {})}
