"""Starts worker processes for the engine tests: one launcher for all of them, one thread a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("engine_worker.py")


def launch(cases: Sequence[str], out: Path, *, devices: int, torchrun: bool = True, timeout: float = 400) -> Path:
    """Run `cases` one after the other on `devices` processes; each leaves `<case>.pt` in `out`.

    torchrun=False leaves it to Lightning to start the other processes. Raises AssertionError with the end of the
    worker's output when it fails or hangs.
    """
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable]
    if torchrun and devices > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={devices}", f"--master-port={free_port()}"]
    command += [str(WORKER), str(out), *cases]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "ENGINE_DEVICES": str(devices), "MASTER_PORT": str(free_port())}
    run(command, environment, timeout)
    return out


def run(command: Sequence[str], environment: dict[str, str], timeout: float) -> str:
    """Output of a command that must succeed; its whole process group is killed when it hangs."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise AssertionError(f"hung after {timeout} s: {process.communicate()[0][-3000:]}") from None
    assert process.returncode == 0, output[-3000:]
    return output


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
