"""A run on several processes that ends while gloo's threads still hold tensors: the worst moment to leave Python."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist
from engine_cases import fit, module


class Slow:
    """Keeps a dying interpreter alive, so that a thread left behind meets it."""

    def __del__(self, sleep: object = time.sleep) -> None:
        sleep(1)  # type: ignore[operator]


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(module("flow"), sys.argv[2], steps=1)
    sys.setswitchinterval(1000)  # no thread gets Python's lock unless the main one gives it up
    sys.slow = Slow()  # type: ignore[attr-defined]
    for _ in range(20):
        dist.all_gather([torch.empty(1_000_000) for _ in range(2)], torch.ones(1_000_000))
