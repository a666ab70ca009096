"""Files of other programs: torch archives read weights-only, and weights that must fit name by name."""

from __future__ import annotations

import collections
import pickle
import struct
import typing
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode
from safetensors import SafetensorError
from torch import Tensor

from xdistill.errors import XDistillError

# What training programs store beside tensors: their configuration. None of these runs code when built.
CONFIGURATION: tuple[Any, ...] = (
    *(DictConfig, ListConfig, ContainerMetadata, Metadata, AnyNode, typing.Any),
    *(collections.defaultdict, collections.OrderedDict, dict, list, int),
)

#: What reading a damaged file raises: torch takes whatever is no zip archive for a pickle, and each of its bytes for an
#: instruction.
DAMAGE = (
    *(OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError, struct.error, ValueError, LookupError),
    *(AttributeError, TypeError, AssertionError, OverflowError, zipfile.BadZipFile),
)


class Inert:
    """Stands for an object of an ignored library: takes any arguments and state, keeps and does nothing."""

    def __init__(self, *args: Any) -> None:
        """Ignore what the object would be built with."""

    def __setstate__(self, state: Any) -> None:
        """Ignore what the object held."""


def read_archive(path: Path, allowed: Sequence[Any] = CONFIGURATION, ignored: Sequence[str] = ()) -> Any:
    """The content of a torch zip file, tensors and `allowed` classes only; nothing in it is executed.

    ignored: top-level packages whose objects are replaced by `Inert` ones instead of refusing the file.
    Raises XDistillError for a missing, damaged or truncated file, or one that holds anything else.
    """
    if not path.is_file():
        raise XDistillError(f"{path} does not exist; expected a checkpoint file")
    if not zipfile.is_zipfile(path):
        raise XDistillError(f"{path} is not a torch checkpoint (a zip archive), or it is truncated; copy it again")
    try:
        with torch.serialization.safe_globals([*allowed]):
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) if ignored else []
        inert = [(Inert, name) for name in unknown if name.partition(".")[0] in ignored]
        with torch.serialization.safe_globals([*allowed, *inert]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        detail = next((line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line), "")
        raise XDistillError(
            f"{path} was refused: it holds more than tensors and configuration. {detail.strip()}".rstrip()
        ) from error
    except DAMAGE as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise XDistillError(f"{path} is damaged: {said}; copy it again") from error


def check_fit(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises XDistillError, one line, unless names and shapes of both are the same."""
    shapes = {k: tuple(v.shape) for k, v in found.items()}
    problems = [f"missing {k}" for k in expected if k not in shapes]
    problems += [f"unexpected {k}" for k in shapes if k not in expected]
    problems += [
        f"{k} is {shapes[k]}, expected {tuple(v.shape)}"
        for k, v in expected.items()
        if k in shapes and shapes[k] != v.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise XDistillError(f"{path}: weights do not fit the configuration: {'; '.join(problems[:3])}{more}")
