"""What generate, evaluate and bench share: a loaded student and the options of its sampler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch

from xdistill.config import compose
from xdistill.errors import UsageError
from xdistill.samplers.mask import token_sampler
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


def options(
    loaded: Loaded,
    steps: int,
    noise_scale: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    method: str | None = None,
    request: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Options of the student's sampler: what the run configured, and what the command line changes (None: nothing).

    Raises UsageError for an option that this sampler does not take, and for more steps than samples have tokens.
    """
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p={top_p:g}: expected a probability above 0, at most 1")
    changes = {"noise_scale": noise_scale, "temperature": temperature, "top_p": top_p, "method": method}
    most = loaded.domain.most_steps(**request)
    if most is not None and steps > most:
        raise UsageError(f"steps={steps}: {most} tokens are revealed in at most {most} calls: give at most that")
    given = {"steps": steps or None, **changes}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if key not in loaded.objective.sample_keys:
            known = ", ".join(f"{name}=" for name in loaded.objective.sample_keys)
            raise UsageError(f"{key}={value}: this student's sampler takes {known}: leave it out")
    if method is not None:
        token_sampler(method)
    return {**sampler_options(loaded.config, loaded.objective), **given}


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
