"""Weights of vocoders on disk: found beside their configuration, read without executing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xdistill.errors import XDistillError
from xdistill.foreign import DAMAGE


def weights_file(path: Path, names: Sequence[str], config: str) -> Path:
    """The weights at `path`, a file or a folder that has one of `names`, with `config` beside; or XDistillError."""
    folder = path if path.is_dir() else path.parent
    found = [f for f in (folder / name for name in names) if f.is_file()] if path.is_dir() else [path]
    if not found or not found[0].is_file() or not (folder / config).is_file():
        raise XDistillError(f"no vocoder at {path}: expected a folder with {config} and one of {', '.join(names)}")
    return found[0]


def read_weights(file: Path, inside: str | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors or a torch file (weights only), in float32; `inside`: the entry that holds them.

    Raises XDistillError when the file is damaged, or holds more than tensors (it is then not unpickled).
    """
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except DAMAGE as error:
        raise XDistillError(f"{file} is no file of plain weights ({type(error).__name__}): fetch it again") from error
    if inside is not None and isinstance(state, Mapping):
        state = state.get(inside, state)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise XDistillError(f"{file} holds no flat table of weights: use the generator's or vocoder's own file")
    return {name: tensor.float() for name, tensor in state.items()}
