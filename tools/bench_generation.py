"""Where the time of `generate` goes: seconds in the network against the whole, and two processes against one.

    OMP_NUM_THREADS=1 python tools/bench_generation.py num=512 batch=32 format=packed [steps=16] [json=FILE]

Everything is counted, from the plan to the manifest, in a warm process; the network's seconds are those inside its
forward calls, by the clock and in processor time, which a busy machine distorts less. Two processes count from start
to end, their start (importing torch, a few seconds) included and also given by itself. The speed-up means something on
an idle machine only: the load is printed with it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from xdistill.cli.keys import split
from xdistill.cli.student import load, options
from xdistill.config import GenerateConfig
from xdistill.generation import Engine, Job, generate
from xdistill.machine import hardware


class Stopwatch:
    """Seconds inside a module's forward calls, by a clock."""

    def __init__(self, module: Any, clock: Callable[[], float]) -> None:
        self.seconds, self._began, self._clock = 0.0, 0.0, clock
        self._hooks = [module.register_forward_pre_hook(self._start), module.register_forward_hook(self._stop)]

    def _start(self, *_: Any) -> None:
        self._began = self._clock()

    def _stop(self, *_: Any) -> None:
        self.seconds += self._clock() - self._began

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def main() -> None:
    pairs = split(sys.argv[1:])
    num, batch, steps = (int(pairs.get(k, d)) for k, d in (("num", 512), ("batch", 32), ("steps", 0)))
    loaded = load(GenerateConfig("protein", pairs.get("ckpt")))
    job = Job(
        loaded,
        num,
        batch=batch,
        shard=int(pairs.get("shard", max(batch, num // 8))),
        format=pairs.get("format", "packed"),
        options=options(loaded, steps),
        request={"length": pairs.get("length", "60-128")},
    )
    with tempfile.TemporaryDirectory() as folder:
        report = measured(job, Path(folder))
    print(json.dumps(report, indent=1))
    if "json" in pairs:
        Path(pairs["json"]).write_text(json.dumps(report, indent=1) + "\n")


def measured(job: Job, folder: Path) -> dict[str, Any]:
    generate(replace(job, num=job.batch), folder / "warm")
    watch, work = Stopwatch(job.loaded.model, time.perf_counter), Stopwatch(job.loaded.model, time.process_time)
    began = time.process_time()
    one = timed(job, folder / "one", Engine())
    processor = time.process_time() - began
    for stopwatch in (watch, work):
        stopwatch.remove()  # hooks do not travel to other processes
    two = timed(job, folder / "two", Engine(workers=2))
    first = timed(replace(job, num=2, shard=1), folder / "start", Engine(workers=2))
    return {
        "hardware": hardware(),
        "load": os.getloadavg()[0],
        "designs": job.num,
        "batch": job.batch,
        "format": job.file_format,
        "padding": round(job.plan.padding(), 4),
        "seconds": round(one, 2),
        "network_seconds": round(watch.seconds, 2),
        "overhead": round(1 - watch.seconds / one, 4),
        "overhead_processor_time": round(1 - work.seconds / processor, 4),
        "seconds_two_processes": round(two, 2),
        "start_of_processes": round(first, 2),
        "speed_up_of_two": round(one / two, 2),
        "speed_up_of_two_without_start": round(one / max(two - first, 1e-9), 2),
    }


def timed(job: Job, out: Path, engine: Engine) -> float:
    began = time.perf_counter()
    generate(job, out, engine)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
