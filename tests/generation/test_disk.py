"""A full disk ends generation with one line, and the same command goes on where room has been made."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from generation_runs import content

from xdistill.errors import XDistillError
from xdistill.generation import Job, generate
from xdistill.student import Loaded


@pytest.mark.parametrize("limit", [3_000, 12_000], ids=["designs", "rows"])
def test_full_disk(loaded: Loaded, tmp_path: Path, limit: int) -> None:
    """3 kB hold no packed shard of 800 points; 12 kB hold a shard, but not its rows."""
    job = Job(loaded, 1600, batch=800, shard=800, format="packed")
    generate(job, tmp_path / "whole")
    whole = content(tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(XDistillError, match=r"disk full: could not write to .* same command again"):
            generate(job, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert len(list((tmp_path / "out").rglob("shard_*"))) == (limit > 3_000)
    generate(job, tmp_path / "out")
    assert content(tmp_path / "out") == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB, where a mount is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_real_full_disk(loaded: Loaded, tmp_path: Path, small_disk: Path) -> None:
    job = Job(loaded, 1600, batch=100, shard=100, format="packed")
    generate(job, tmp_path / "whole")
    with pytest.raises(XDistillError, match="disk full"):
        generate(job, small_disk / "out")
    recorded = len(list((small_disk / "out" / "parts").glob("[!.]*.parquet")))
    assert 0 < recorded < 16
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert generate(job, small_disk / "out").made == 1600 - 100 * recorded
    assert content(small_disk / "out") == content(tmp_path / "whole")
