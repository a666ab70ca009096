"""Starts worker processes for the engine tests: one launcher for all of them, one thread a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("engine_worker.py")


def launch(
    cases: Sequence[str],
    out: Path,
    *,
    devices: int,
    torchrun: bool = True,
    timeout: float = 400,
    worker: Path = WORKER,
) -> Path:
    """Run `cases` one after the other on `devices` processes; each leaves `<case>.pt` in `out`.

    torchrun=False leaves it to Lightning to start the other processes. Raises AssertionError with the end of the
    worker's output when it fails or hangs.
    """
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable]
    if torchrun and devices > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={devices}", f"--master-port={free_port()}"]
    command += [str(worker), str(out), *cases]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "ENGINE_DEVICES": str(devices), "MASTER_PORT": str(free_port())}
    run(command, environment, timeout)
    return out


def run(command: Sequence[str], environment: dict[str, str], timeout: float) -> None:
    """A command that must succeed; when it hangs, it and all its descendants are killed."""
    with tempfile.TemporaryFile("w+") as log:
        # A file, because workers left behind would hold a pipe open; they have sessions of their own under torchrun.
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            for pid in reversed(descendants(process.pid)):
                os.kill(pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        output = log.read()[-3000:]
    assert code is not None, f"hung after {timeout} s: {output}"
    assert code == 0, output


def descendants(pid: int) -> list[int]:
    """A process and everything it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in descendants(int(child)))]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
