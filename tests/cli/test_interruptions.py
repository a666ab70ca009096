"""A full disk and Ctrl-C: the earlier checkpoint survives, and the user is told how to go on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runs import QUICK, Outcome, snapshot

from xdistill.checkpoint import latest, open_checkpoint


def fit(out: Path, *args: str) -> tuple[str, ...]:
    return "fit", "domain=toy", *QUICK, "train.checkpoint_every=2", f"out={out}", *args


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [20_000, 300_000], ids=["weights", "optimizer state"])
def test_full_disk_keeps_the_previous_checkpoint(toy_run: Path, limit: int, xdistill: Callable[..., Outcome]) -> None:
    """20 kB hold no network of the toy run; 300 kB hold a network, but not its optimizer state."""
    before = snapshot(toy_run / "checkpoints")
    more = fit(toy_run, "train.steps=6", "resume=auto")
    with small_files(limit):
        outcome = xdistill(*more)
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert "could not write checkpoint" in outcome.err
    assert "earlier checkpoints are intact" in outcome.err
    assert snapshot(toy_run / "checkpoints") == before
    assert xdistill(*more).code == 0
    assert open_checkpoint(latest(toy_run / "checkpoints")[0]).manifest["macro_step"] == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB, where a mount is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_real_full_disk(small_disk: Path, xdistill: Callable[..., Outcome]) -> None:
    """One checkpoint fits, a second does not; after the failure the first still resumes elsewhere."""
    run = small_disk / "run"
    assert xdistill(*fit(run, "train.steps=2")).code == 0
    before = snapshot(run / "checkpoints")
    outcome = xdistill(*fit(run, "train.steps=4", "resume=auto"))
    assert outcome.code == 1, outcome.err
    assert "MiB were free" in outcome.err
    assert "make room" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert snapshot(run / "checkpoints") == before


def test_interrupt_saves_and_says_how_to_resume(tmp_path: Path, xdistill: Callable[..., Outcome]) -> None:
    out = tmp_path / "run"
    threading.Thread(target=interrupt_when, args=(lambda: latest(out / "checkpoints"),), daemon=True).start()
    outcome = xdistill(*fit(out, "train.steps=1000000"))
    assert outcome.code == 130, outcome.err
    assert outcome.err.strip().startswith("xdistill: interrupted; continue with: xdistill fit domain=toy")
    assert f"out={out} train.steps=1000000 resume=auto" in outcome.err
    done = open_checkpoint(latest(out / "checkpoints")[0]).manifest["macro_step"]
    assert xdistill(*fit(out, f"train.steps={done + 1}", "resume=auto")).code == 0
    assert open_checkpoint(latest(out / "checkpoints")[0]).manifest["macro_step"] == done + 1


def interrupt_when(condition: Callable[[], object], seconds: float = 120) -> None:
    """Ctrl-C for this process once the condition holds, or much later."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_generate_says_how_to_continue(
    finished: Path, tmp_path: Path, xdistill: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that arrives in the middle of writing."""
    from xdistill.generation import folder

    # A suite started in the background of a shell inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    write = folder.replace_file

    def interrupted(path: Path, data: bytes, *, durable: bool = True) -> None:
        if path.name.startswith("sample_000003"):
            os.kill(os.getpid(), signal.SIGINT)
        write(path, data, durable=durable)

    line = ("generate", "domain=toy", f"ckpt={finished}", "num=6", "batch=2", f"out={tmp_path / 'samples'}")
    monkeypatch.setattr(folder, "replace_file", interrupted)
    try:
        outcome = xdistill(*line)
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.code == 130
    assert f"continue with: xdistill generate domain=toy ckpt={finished}" in outcome.err
    monkeypatch.undo()
    assert xdistill(*line).code == 0
    assert len(list((tmp_path / "samples").glob("*.npz"))) == 6
