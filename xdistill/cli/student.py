"""What generate, evaluate and bench share: a loaded student and the options of its sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from xdistill.config import compose
from xdistill.errors import UsageError
from xdistill.sections import build_domain
from xdistill.student import Loaded, load_student, sampler_options


class Sampling(Protocol):
    """The keys of a verb that samples."""

    domain: str
    ckpt: str | None
    steps: Any


def load(cfg: Sampling) -> Loaded:
    """The student of `ckpt`, or the domain's shipped one; raises UsageError when it ships none."""
    if cfg.ckpt:
        return load_student(Path(cfg.ckpt), cfg.domain)
    shipped = build_domain(compose([f"domain={cfg.domain}"])).shipped_student()
    if shipped is None or not shipped.exists():
        raise UsageError(f"domain '{cfg.domain}' ships no student: give ckpt=RUN of a run of xdistill fit")
    return load_student(shipped, cfg.domain)


def options(loaded: Loaded, steps: int, noise_scale: float | None) -> dict[str, Any]:
    """Options of the student's sampler: what the run configured, and what the command line changes."""
    given = {"steps": steps} if steps else {}
    configured = sampler_options(loaded.config, loaded.objective)
    return {**configured, **given, **({} if noise_scale is None else {"noise_scale": noise_scale})}


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
