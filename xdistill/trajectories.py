"""A store of teacher trajectories: safetensors shards, made once, checked to belong to this teacher, used by many runs.

Shard i holds the states of batch i of a data-free source, [S, ...] float32 or float16, and is a function of (seed, i).
Layouts and conditions are not stored: the source gives them again. The manifest says whose trajectories these are.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from xdistill import rng
from xdistill.domain import DataSource
from xdistill.errors import XDistillError
from xdistill.models import Batch
from xdistill.sections import stated
from xdistill.sources import Trajectories
from xdistill.state import Field

if TYPE_CHECKING:
    from xdistill.objectives.base import Setting

SCHEMA = 1
#: Seconds without a new shard after which a rank no longer waits for the one that makes them.
PATIENCE = 1800.0


class TrajectoryStore:
    """`folder/manifest.json` and `folder/shard_*.safetensors`; a file is there in full or not at all.

    Raises XDistillError when the folder holds trajectories of another identity (teacher, times, solver, data).
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, main: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        self.folder, self.manifest, self.dtype = folder, folder / "manifest.json", dtype
        wanted = json.loads(json.dumps({"schema": SCHEMA, **identity}))
        if not self.manifest.exists() and main:
            folder.mkdir(parents=True, exist_ok=True)
            _atomic(self.manifest, lambda path: _write_json(path, wanted))
        _wait(self.manifest.exists)
        found = _read(self.manifest)
        for key in sorted({*wanted, *found}):
            if stated(wanted.get(key)) != stated(found.get(key)):
                raise XDistillError(
                    f"{folder} holds trajectories with {key}={found.get(key)}, this run has {wanted.get(key)}: "
                    f"choose another objective.store, or delete that folder"
                )

    def path(self, index: int) -> Path:
        """The file of shard `index`."""
        return self.folder / f"shard_{index:06d}.safetensors"

    def fill(self, count: int, make: Callable[[int], Sequence[Field]], *, main: bool = True) -> None:
        """Make the missing ones of shards 0 to count - 1; other processes than the main one wait for it."""
        missing = [i for i in range(count) if not self.path(i).exists()]
        if not main:
            for i in missing:
                _wait(self.path(i).exists)
            return
        for i in track(missing, "teacher trajectories", disable=len(missing) < 2):
            states = torch.stack([x.value.to(self.dtype).cpu() for x in make(i)])
            _atomic(self.path(i), lambda path, s=states: save_file({"states": s}, path))  # type: ignore[misc]

    def load(self, index: int, like: Field) -> tuple[Field, ...]:
        """The states of shard `index` in the layout of `like`; raises XDistillError when it is damaged."""
        try:
            states = load_file(self.path(index))["states"]
        except (OSError, SafetensorError, KeyError) as error:
            raise XDistillError(f"{self.path(index)} is damaged ({error}): delete it and start again") from error
        if states.shape[1:] != like.value.shape:
            raise XDistillError(
                f"{self.path(index)} has states of shape {tuple(states.shape[1:])}, expected "
                f"{tuple(like.value.shape)}: choose another objective.store, or delete that folder"
            )
        return tuple(Field(s.to(like.value), like.layout) for s in states)


@dataclass(frozen=True)
class TrajectorySource:
    """Batches of stored trajectories, every shard once a lap, in an order of its own for each lap."""

    store: TrajectoryStore
    source: DataSource
    shards: int
    seed: int

    def batch(self, index: int, rank: int, world: int) -> Batch[Field]:
        """Draw `index` of `rank`: a function of (seed, index, rank, world)."""
        lap, place = divmod(index * world + rank, self.shards)
        order = torch.randperm(self.shards, generator=rng.generator("trajectories", self.seed, lap))
        shard = int(order[place])
        made = self.source.batch(shard, 0, 1)
        return Trajectories(made.like, made.cond, made.real, self.store.load(shard, made.like))


def stored(
    source: DataSource,
    setting: Setting,
    trajectory: Callable[[Any, Batch[Field], torch.Generator], Sequence[Field]],
    *,
    count: int,
    folder: str | None,
    identity: Mapping[str, Any],
    half: bool = False,
) -> TrajectorySource:
    """About `count` trajectories of the setting's teacher, made where the store does not hold them yet: as many batches
    as it takes if all are as large as the first.

    trajectory(teacher, batch, generator): the states of one batch. folder: of the store, None is `trajectories` in the
    run's. identity: what besides teacher and data they depend on. half: keep them as float16.
    """
    size, seed = source.batch(0, 0, 1).like.batch, int(setting.identity["seed"])
    whose = {**setting.identity, "teacher_digest": digest(setting.teacher), "batch": size, **identity}
    whose |= {"dtype": "float16"} if half else {}
    store = TrajectoryStore(
        Path(folder or setting.folder / "trajectories"),
        whose,
        main=setting.main,
        dtype=torch.float16 if half else torch.float32,
    )
    teacher, shards = setting.teacher.to(setting.device).eval(), -(-count // size)

    def make(index: int) -> Sequence[Field]:
        noise = rng.generator("trajectory", seed, index, device=setting.device)
        return trajectory(teacher, source.batch(index, 0, 1).to(setting.device), noise)

    store.fill(shards, make, main=setting.main)
    return TrajectorySource(store, source, shards, seed)


def digest(module: nn.Module) -> str:
    """A short hash of a network's class and of every tensor of its state."""
    h = hashlib.sha256(type(module).__qualname__.encode())
    for name, value in sorted(module.state_dict().items()):
        h.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        h.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def _atomic(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise XDistillError(
            f"could not write {path} ({error}): make room and start again, what is there is kept"
        ) from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise XDistillError(f"{path} is damaged ({error}): delete that folder") from error


def _wait(ready: Callable[[], bool]) -> None:
    """Until another process is done; it may take as long as it takes, but not hang forever."""
    end = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > end:
            raise XDistillError(f"no teacher trajectories for {PATIENCE:g} s: the main process has stopped making them")
        time.sleep(0.2)
