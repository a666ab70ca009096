"""What this machine is: the line that belongs to every timing."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def hardware() -> str:
    """Processor, cores, torch threads and version, and the GPU when there is one."""
    import torch

    line = f"{cpu_name()}, {cores()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{line}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else line


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Instruction-set flags the kernel reports (Linux); empty elsewhere."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    found = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith(key))
    return next(found, "")
