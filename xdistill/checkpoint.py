"""Checkpoints: a directory readable without xdistill, written atomically, loaded strictly.

manifest.json (schema, versions, counters, time convention, sha256 of each file) is written last, and the whole
directory appears under its name by one rename: a run killed at any moment leaves a complete checkpoint or none.
`roles/` alone is enough to generate; the rest serves to resume. There are no RNG files: every draw is a
function of (seed, macro_step, rank).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdistill import __version__
from xdistill.errors import XDistillError

if TYPE_CHECKING:
    from xdistill.module import DistillModule

SCHEMA = 1
TIME_CONVENTION = "t in [0,1], 0 = clean, 1 = prior"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its manifest has been read and every file it lists has been verified."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run that wrote it."""
        return self.manifest["config"]

    def role(self, name: str) -> dict[str, Tensor]:
        """Weights of a role; raises XDistillError naming the roles there are."""
        file = self.path / "roles" / f"{name}.safetensors"
        if not file.exists():
            have = ", ".join(sorted(p.stem for p in (self.path / "roles").glob("*.safetensors")))
            raise XDistillError(f"{self.path} has no weights of role '{name}': it has {have}")
        return load_file(file)


def save(module: DistillModule, path: Path, config: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint of `module` at `path` (a collective call); an existing one at `path` is kept until the new
    one is complete. Raises XDistillError when the disk is full; whatever was there before is then untouched.
    """
    rank, distributed = module.global_rank, dist.is_available() and dist.is_initialized()
    part = path.with_name(path.name + ".part")
    weights = {role: engine.weights() for role, engine in module.engines.items()}
    if rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        (part / "roles").mkdir(parents=True)
    if distributed:
        dist.barrier()
    try:
        for role, engine in module.engines.items():
            folder = part / "engines" / role
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(engine.state_dict(), folder / f"rank{rank}.pt")
        if distributed:
            dist.barrier()
        if rank == 0:
            weights |= {role: module.weights(role) for role in kept_roles(module)}
            for role, state in weights.items():
                save_file({k: v.cpu().contiguous() for k, v in state.items()}, part / "roles" / f"{role}.safetensors")
            _publish(part, path, _manifest(module, part, config, extra or {}))
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free / 2**20
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise XDistillError(
            f"could not write checkpoint {path} ({error}; {free:.1f} MiB were free): earlier checkpoints are intact, "
            f"make room and continue with resume=auto"
        ) from error
    if distributed:
        dist.barrier()
    return path


def _manifest(module: DistillModule, part: Path, config: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    files = sorted(p for p in part.rglob("*") if p.is_file())
    return {
        "schema": SCHEMA,
        "versions": {"xdistill": __version__, "torch": torch.__version__},
        "time_convention": TIME_CONVENTION,
        "config": dict(config),
        "config_hash": config_hash(config),
        "macro_step": module.macro_step,
        "updates": dict(module.updates),
        "health": module.health.state_dict(),
        "world": module.trainer.world_size,
        "engine": next(iter(module.engines.values())).__class__.__name__,
        **extra,
        "sha256": {str(p.relative_to(part)): _sha256(p) for p in files},
    }


def _publish(part: Path, path: Path, manifest: Mapping[str, Any]) -> None:
    temporary = part / "manifest.json.part"
    with open(temporary, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(part / "manifest.json")
    for p in part.rglob("*.*"):
        if p.is_file():
            with open(p, "rb") as synced:
                os.fsync(synced.fileno())
    if path.exists():
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        part.rename(path)
        shutil.rmtree(old)
    else:
        part.rename(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open and verify; raises XDistillError when missing, truncated, changed, or of another schema."""
    if not path.is_dir():
        raise XDistillError(f"no checkpoint at {path}: give a run folder or a step_* folder inside its checkpoints/")
    if not (path / "manifest.json").exists():
        raise XDistillError(f"{path} has no manifest.json: it is not an xdistill checkpoint, or it is incomplete")
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise XDistillError(f"{path}/manifest.json is damaged ({error}): use another checkpoint of the run") from error
    if manifest.get("schema") != SCHEMA:
        raise XDistillError(
            f"{path} has checkpoint schema {manifest.get('schema')}, this xdistill {__version__} reads {SCHEMA}: "
            f"use the version that wrote it ({manifest.get('versions', {}).get('xdistill', 'unknown')})"
        )
    for name, digest in manifest["sha256"].items():
        file = path / name
        if not file.exists() or _sha256(file) != digest:
            state = "differs from what was written" if file.exists() else "is missing"
            raise XDistillError(f"checkpoint {path} is damaged: {name} {state}")
    return Checkpoint(path, manifest)


def restore(module: DistillModule, checkpoint: Checkpoint) -> None:
    """Continue a run: weights, EMA, optimizer states and counters; engines must have been set up."""
    manifest = checkpoint.manifest
    if manifest["world"] != module.trainer.world_size:
        raise XDistillError(
            f"{checkpoint.path} was written by {manifest['world']} processes, this run has "
            f"{module.trainer.world_size}: resume with the same number"
        )
    for role, engine in module.engines.items():
        load_strict(engine.load_weights, checkpoint.role(role), checkpoint.path, role)
        state = checkpoint.path / "engines" / role / f"rank{module.global_rank}.pt"
        engine.load_state_dict(_load_state(state))
    for role in kept_roles(module):
        load_strict(module.networks[role].load_state_dict, checkpoint.role(role), checkpoint.path, role)
    module.macro_step = manifest["macro_step"]
    module.updates.update(manifest["updates"])
    module.health.load_state_dict(manifest["health"])


def kept_roles(module: DistillModule) -> tuple[str, ...]:
    """Roles that no engine trains and that change nevertheless."""
    return "student_ema", *module.objective.promoted


def _load_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise XDistillError(
            f"{path} is no optimizer state of plain tensors and was not unpickled: use another checkpoint of the run"
        ) from error


def load_strict(load: Any, weights: Mapping[str, Tensor], path: Path, role: str) -> None:
    """Call `load(weights)`; a mismatch becomes one line that says which network does not fit."""
    try:
        load(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise XDistillError(f"weights of '{role}' in {path} do not fit the configured network: {detail}") from error


def latest(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, newest first (names are step_<macro_step>)."""
    found = [p for p in folder.glob("step_*") if p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def remove(path: Path) -> None:
    """Delete a checkpoint; killed half-way, it leaves a `.old` folder and never a damaged checkpoint."""
    old = path.with_name(path.name + ".old")
    path.rename(old)
    for leftover in path.parent.glob("step_*.old"):
        shutil.rmtree(leftover)


def config_hash(config: Mapping[str, Any]) -> str:
    """Short hash of a resolved configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
