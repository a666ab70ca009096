"""Networks through torch.compile: fused kernels on CPUs, CUDA graphs on GPUs."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xdistill.errors import UsageError

COMPILERS = ("g++", "clang++")


class Compiled(nn.Module):
    """`network`, compiled for any batch size and length at its first calls; it is itself left as it is.

    Raises UsageError when `device` lacks a compiler.
    """

    def __init__(self, network: nn.Module, device: torch.device | str) -> None:
        super().__init__()
        check_compiler(device)
        self.kind = getattr(network, "kind", None)
        self.discriminator = getattr(network, "discriminator", None)
        self.graphs = torch.device(device).type == "cuda"
        self.network = torch.compile(network, dynamic=True, mode="reduce-overhead" if self.graphs else None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.graphs:
            return self.network(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        out = self.network(*args, **kwargs)
        # The next replay of the graph writes where this one wrote.
        return out.clone() if isinstance(out, torch.Tensor) else replace(out, value=out.value.clone())


def check_compiler(device: torch.device | str) -> None:
    """Raise UsageError when torch.compile has no compiler for `device`."""
    if torch.device(device).type == "cuda":
        if find_spec("triton") is None:
            raise UsageError("compile=true on a GPU needs Triton: pip install triton, or leave compile out")
        return
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else COMPILERS)):
        raise UsageError(f"compile=true needs a C++ compiler ({named or ' or '.join(COMPILERS)}): install one")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        raise UsageError(f"compile=true needs Python's headers, none in {headers}: install them (python3-dev)")
