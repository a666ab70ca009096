"""What generate, evaluate and bench share: a loaded student and the options of its sampler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch

from xdistill import rng
from xdistill.compat import check_steps
from xdistill.config import SHIPPED, compose
from xdistill.errors import UsageError
from xdistill.models import NoCond
from xdistill.registry import nearest
from xdistill.samplers.mask import GUIDED, method_options, token_sampler
from xdistill.sections import build_domain, plain
from xdistill.state import Tokens
from xdistill.student import Loaded, configured_times, judged, load_student, sampler_options, searched_times


class Sampling(Protocol):
    """The keys of a verb that samples."""

    domain: str
    ckpt: str | None
    steps: Any
    method: str | None


def load(cfg: Sampling, changes: Mapping[str, Any] = MappingProxyType({})) -> Loaded:
    """The student of `ckpt`, or the domain's shipped one, with what its method asks for; raises UsageError when there
    is none. changes: keys of the domain's section.
    """
    return beside(load_student(checkpoint_path(cfg.domain, cfg.ckpt), cfg.domain, options=changes), cfg.method)


def domain_changes(domain: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Values of `domain.KEY=VALUE` arguments, read as `fit` reads them."""
    config = compose([f"domain={domain}", *(f"domain.{key}={value}" for key, value in given.items())])
    return {key: plain(config.domain)[key] for key in (path.partition(".")[0] for path in given)}


def beside(loaded: Loaded, method: str | None) -> Loaded:
    """The student with what a method needs beside it; raises UsageError when its checkpoint has not got it."""
    chosen = method or sampler_options(loaded.config, loaded.objective).get("method")
    return judged(loaded) if chosen in GUIDED else loaded


def checkpoint_path(domain: str, ckpt: str | None) -> Path:
    """Where the weights of `ckpt=` are; none or `shipped`: the domain's own. Raises UsageError when there are none."""
    if ckpt and ckpt != SHIPPED:
        return Path(ckpt)
    shipped = build_domain(compose([f"domain={domain}"])).shipped_student()
    if shipped is None or not shipped.exists():
        raise UsageError(f"domain '{domain}' ships no student: give ckpt=RUN of a run of xdistill fit")
    return shipped


def asked(cfg: Any) -> dict[str, Any]:
    """What the keys of a verb say about the student's sampler, its steps aside."""
    given = {key: getattr(cfg, key, None) for key in ("noise_scale", "guidance", "temperature", "top_p", "method")}
    return {key: value for key, value in given.items() if value is not None}


def options(
    loaded: Loaded,
    steps: int | None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    request: Mapping[str, Any] = MappingProxyType({}),
    own: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Options of the student's sampler: what the run configured, and what the command line changes (see `asked`).

    own: options of the method itself. Raises UsageError for an option that this sampler does not take, and for more
    steps than samples have tokens.
    """
    if not 0 < changes.get("top_p", 1) <= 1:
        raise UsageError(f"top_p={changes['top_p']:g}: expected a probability above 0, at most 1")
    check_steps("steps", steps, loaded.domain.most_steps(**request))
    given = {**({"steps": steps} if steps else {}), **changes}
    for key, value in given.items():
        if key not in loaded.objective.sample_keys:
            known = ", ".join(f"{name}=" for name in loaded.objective.sample_keys)
            raise UsageError(f"{key}={value}: this student's sampler takes {known}: leave it out")
    if "method" in given:
        token_sampler(given["method"])
    if "guidance" in given:
        _guidance(loaded, given["guidance"])
    usual = {**sampler_options(loaded.config, loaded.objective), **given}
    if "times" in loaded.objective.sample_keys:
        usual |= _times(loaded, usual)
    if own:
        check_method_options(loaded, usual.get("method"), own)
        usual["method_options"] = dict(own)
        try_options(loaded, usual)
    return usual


def _guidance(loaded: Loaded, scale: float) -> None:
    """Raise UsageError for a scale that this student was never told."""
    span = plain(loaded.config["guidance"]).get("range")
    if not span:
        raise UsageError(f"guidance={scale:g}: this student knows one scale: leave it out, or fit guidance.range=[1,4]")
    if not span[0] <= scale <= span[1]:
        raise UsageError(f"guidance={scale:g}: this student learned scales from {span[0]:g} to {span[1]:g}")


def _times(loaded: Loaded, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Where the sampler's calls are: as configured, else as `search-steps` found, else left to the objective."""
    configured = usual.get("times")
    trained = len(configured) - 1 if configured else getattr(loaded.objective, "steps", 0)
    calls = int(usual.get("steps", trained))
    return {"times": configured_times(loaded, calls) or searched_times(loaded, calls)}


def check_method_options(loaded: Loaded, method: str | None, own: Mapping[str, Any]) -> None:
    """Raise UsageError for options that the student's method does not have, and for values of another kind."""
    if "method_options" not in inspect.signature(loaded.objective.sample).parameters:
        raise UsageError(f"method.{next(iter(own))}: this student's sampler takes no options of a method: leave it out")
    name = method or "ancestral"
    known = method_options(name)
    for key, value in own.items():
        if key not in known:
            raise UsageError(f"unknown option 'method.{key}' of method={name}{nearest(key, known)}")
        usual = known[key]
        kinds = (float, int) if type(usual) is float else (type(usual),)
        if type(value) not in kinds:
            raise UsageError(f"method.{key}={value}: expected a value such as {str(usual).lower()}")


@torch.no_grad()
def try_options(loaded: Loaded, usual: Mapping[str, Any]) -> None:
    """Sample where nothing is to be written: the method checks its options before any file is, and calls no network."""
    given = torch.ones(1, 1, dtype=torch.bool)
    like = Tokens(torch.zeros(1, 1, dtype=torch.long), given, given)
    loaded.objective.sample(loaded.model, like, NoCond(), rng.generator("try"), **usual)


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
