"""Generate candidates with SIGKILLs at random times, and compare with a run that nothing interrupted.

    python tools/kill_generation.py work=/tmp/kill num=20000 engine=local victims=driver,worker,driver
    python tools/kill_generation.py work=/tmp/kill num=20000 engine=ray

work: holds `whole`, the uninterrupted run (engine local, made once for all engines), and one folder an engine. victims:
who is killed, in this order, each at a random moment of its share of the run. chance: seed of the moments. Every other
key goes to `xdistill generate`. Prints the facts as JSON; exits with 1 when anything differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from xdistill.cli.keys import split

DEFAULTS = {"domain": "protein", "num": "20000", "length": "60-128", "format": "packed", "workers": "2"}
WORKERS = (b"spawn_main", b"ray::Worker")


def main() -> int:
    pairs = split(sys.argv[1:])
    work, engine = Path(pairs.pop("work", "kill_generation")), pairs.pop("engine", "local")
    victims, chance = pairs.pop("victims", "driver,worker,driver").split(","), pairs.pop("chance", "0")
    pairs = (DEFAULTS if pairs.get("domain", "protein") == "protein" else {}) | pairs
    request = [f"{k}={v}" for k, v in pairs.items()]
    whole, out, began = work / "whole", work / engine, time.monotonic()
    if made := not (whole / "manifest.parquet").exists():
        finish(start(request, whole, "local"))
    seconds, began = round(time.monotonic() - began, 1) if made else None, time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    kills = kill_on_the_way(request, out, engine, victims, random.Random(chance), shards(whole))
    finish(start(request, out, engine))
    facts = {
        "engine": engine,
        "kills": kills,
        "seconds_uninterrupted": seconds,
        "seconds_killed": round(time.monotonic() - began, 1),
        **compared(whole, out),
    }
    print(json.dumps(facts, indent=1))
    return 0 if facts["manifest_equal"] and facts["designs_equal"] and len(kills) == len(victims) else 1


def kill_on_the_way(
    request: list[str], out: Path, engine: str, victims: list[str], chance: random.Random, total: int
) -> list[dict[str, Any]]:
    """Kill the k-th victim when a random number of the shards in the k-th part of the run are recorded."""
    running, kills = start(request, out, engine), []
    for k, victim in enumerate(victims):
        at, delay = int(total * (k + chance.random()) / len(victims)), chance.random()
        while recorded(out) < at:
            if running.poll() is not None:
                raise SystemExit(f"generate ended with {running.returncode} before kill {k + 1}")
            time.sleep(0.02)
        time.sleep(delay)
        target = victim_of(running.pid, victim)
        os.kill(target, signal.SIGKILL)
        kills.append({"victim": victim, "shards_recorded": recorded(out), "of": total})
        if target == running.pid:
            running.wait()
            running = start(request, out, engine)
    running.kill()  # and once more, so that the last command starts from what a dead one left
    running.wait()
    return kills


def start(request: list[str], out: Path, engine: str) -> subprocess.Popen[bytes]:
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "xdistill", "generate", *request, f"out={out}", f"engine={engine}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(out.parent / "generate.log", "ab"))


def finish(process: subprocess.Popen[bytes]) -> None:
    if code := process.wait():
        raise SystemExit(f"generate ended with {code}: see generate.log")


def recorded(out: Path) -> int:
    """Shards whose rows are written."""
    return len(list((out / "parts").glob("[!.]*.parquet")))


def shards(out: Path) -> int:
    return len(set(pq.read_table(out / "manifest.parquet", columns=["shard"])["shard"].to_pylist()))


def victim_of(driver: int, victim: str) -> int:
    """The driver, or one of its workers, waited for until there is one."""
    while victim == "worker":
        for pid in descendants(driver):
            line = Path(f"/proc/{pid}/cmdline")
            if line.exists() and any(word in line.read_bytes() for word in WORKERS):
                return pid
        time.sleep(0.02)
    return driver


def descendants(pid: int) -> list[int]:
    children = [int(p) for f in Path(f"/proc/{pid}/task").glob("*/children") for p in f.read_text().split()]
    return [*children, *(d for child in children for d in descendants(child))]


def compared(whole: Path, out: Path) -> dict[str, Any]:
    """Are manifests and designs the same bytes; how many designs, and how many were made more than once."""
    a, b = (pq.read_table(folder / "manifest.parquet") for folder in (whole, out))
    files = sorted(set(a["file"].to_pylist()) - {None})
    made = sum(json.loads(line)["designs"] for line in (out / "timings.jsonl").read_text().splitlines())
    return {
        "designs": b.num_rows,
        "distinct": len(set(b["index"].to_pylist())),
        "manifest_equal": digest(whole, ["manifest.parquet"]) == digest(out, ["manifest.parquet"]),
        "designs_equal": digest(whole, files) == digest(out, files),
        "designs_sha256": digest(out, files),
        "manifest_sha256": digest(out, ["manifest.parquet"]),
        "written_twice": made - b.num_rows,
    }


def digest(folder: Path, files: list[str]) -> str:
    total = hashlib.sha256()
    for name in files:
        total.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
