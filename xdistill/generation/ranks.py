"""Which share of the shards this process does under torchrun or Slurm; ranks need not talk to each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Rank:
    """Process `number` of `world`, the `local`-th on its machine."""

    number: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Rank:
        """From the variables that torchrun (or srun) sets; alone without them."""
        for number, world, local in VARIABLES:
            if number in environment and world in environment:
                return cls(int(environment[number]), int(environment[world]), int(environment.get(local, 0)))
        return cls()

    def share(self, shards: int) -> range:
        """The numbers of its shards: every world-th."""
        return range(self.number, shards, self.world)
