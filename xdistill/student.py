"""A trained student on disk as something that samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from xdistill import checkpoint
from xdistill.domain import Domain
from xdistill.errors import UsageError, XDistillError
from xdistill.folder import RunFolder
from xdistill.objectives import Objective
from xdistill.sections import build_domain, build_objective, plain


@dataclass(frozen=True)
class Loaded:
    """A student ready to sample: everything `generate` and `evaluate` need."""

    domain: Domain
    objective: Objective
    model: nn.Module
    config: dict[str, Any]
    manifest: Mapping[str, Any]
    path: Path


def load_student(
    path: Path, domain: str | None = None, role: str = "student_ema", options: Mapping[str, Any] | None = None
) -> Loaded:
    """The averaged student of a run folder (its best checkpoint, else its newest) or of one checkpoint.

    options: keys of the domain's section that differ from what the run recorded.
    Raises XDistillError when it is missing, damaged, of another schema or of another domain than `domain`.
    """
    found = _open(path, domain)
    built = build_domain({**found.config, "domain": {**found.config["domain"], **(options or {})}})
    model = _network(found, built, role)
    objective = build_objective(found.config, built)
    built.any_length = objective.any_length
    return Loaded(built, objective, model.eval(), found.config, found.manifest, found.path)


def load_network(path: Path, domain: Domain) -> nn.Module:
    """The averaged student's network alone, of which `domain` takes what its data need, such as a vocabulary.

    Raises XDistillError as `load_student` does.
    """
    return _network(_open(path, domain.name), domain, "student_ema")


def _open(path: Path, domain: str | None) -> checkpoint.Checkpoint:
    found = checkpoint.open_checkpoint(_pick(path))
    name = found.config["domain"]["name"]
    if domain is not None and name != domain:
        raise XDistillError(f"{path} is a checkpoint of domain '{name}', not '{domain}': use domain={name}")
    return found


def _network(found: checkpoint.Checkpoint, domain: Domain, role: str) -> nn.Module:
    model = domain.from_description(found.manifest["network"])
    checkpoint.load_strict(model.load_state_dict, found.role(role), found.path, role)
    return model


class Judged(nn.Module):
    """A student as it was, and beside it the discriminator that its run trained, for samplers that ask one.

    teacher: held because the discriminator borrows from it: all three must be on one device.
    """

    def __init__(self, model: nn.Module, discriminator: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.model, self.discriminator, self.teacher = model, discriminator, teacher

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.model(*args, **kwargs)


def judged(loaded: Loaded) -> Loaded:
    """The student with the discriminator of its checkpoint; the run's teacher is loaded for it.

    Raises UsageError when the checkpoint keeps none, XDistillError when it is damaged.
    """
    role = "discriminator"
    found = checkpoint.open_checkpoint(loaded.path)
    if f"roles/{role}.safetensors" not in found.manifest["sha256"]:
        raise UsageError(f"{loaded.path} keeps no discriminator: method=rgas needs ckpt= of a run of objective=didi")
    teacher = loaded.domain.teacher()
    network = loaded.domain.discriminator(teacher)
    checkpoint.load_strict(network.load_state_dict, found.role(role), found.path, role)
    beside = Judged(loaded.model, network, teacher)
    return replace(loaded, model=beside.requires_grad_(False).eval())


def _pick(path: Path) -> Path:
    folder = RunFolder(path)
    if not folder.checkpoints.is_dir():
        return path
    best, found = folder.best(), checkpoint.latest(folder.checkpoints)
    if best and (folder.checkpoints / best).is_dir():
        return folder.checkpoints / best
    if not found:
        raise XDistillError(f"run {path} has no checkpoint yet: wait for its first, or continue it with resume=auto")
    return found[0]


def sampler_options(cfg: DictConfig | Mapping[str, Any], objective: Objective) -> dict[str, Any]:
    """Options of the objective's sampler that the configuration sets; steps=0 and times=null leave it the choice."""
    section = plain(cfg["sampler"])
    left = {key for key in ("steps", "times") if not section.get(key)}
    return {key: section[key] for key in objective.sample_keys if key in section and key not in left}


def steps_file(checkpoint: Path) -> Path:
    """Where `search-steps` keeps the times of a checkpoint: in its run's folder, or in its own where it has no run."""
    folder = checkpoint.resolve()
    return (folder.parents[1] if folder.parent.name == "checkpoints" else folder) / "steps.json"


def configured_times(loaded: Loaded, calls: int) -> list[float] | None:
    """The times of so many calls that the run was configured with, for its sampler or its objective; None: none."""
    for times in (plain(loaded.config["sampler"]).get("times"), getattr(loaded.objective, "times", None)):
        if times is not None and len(times) == calls + 1:
            return [float(t) for t in times]
    return None


def searched_times(loaded: Loaded, calls: int) -> list[float] | None:
    """The times that `search-steps` found for so many calls of this very checkpoint; None: it was not asked.

    Raises XDistillError when the file cannot be read.
    """
    path = steps_file(loaded.path)
    if "times" not in loaded.objective.sample_keys or not path.exists():
        return None
    try:
        kept = json.loads(path.read_text())
        if kept["checkpoint"] != loaded.path.name or str(calls) not in kept["calls"]:
            return None
        return [float(t) for t in kept["calls"][str(calls)]["times"]]
    except (ValueError, KeyError, TypeError) as error:
        raise XDistillError(f"{path} is damaged: delete it, or make it again with xdistill search-steps") from error
