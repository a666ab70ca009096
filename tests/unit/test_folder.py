"""A run's folder: who may use it, what it continues from, what it keeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xdistill.checkpoint import SCHEMA
from xdistill.errors import UsageError, XDistillError
from xdistill.folder import RunFolder


def checkpoint_at(folder: RunFolder, step: int) -> Path:
    path = folder.checkpoints / f"step_{step}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "sha256": {}, "macro_step": step}))
    return path


def test_a_used_folder_is_refused_without_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.resume_from("never") is None
    checkpoint_at(folder, 10)
    with pytest.raises(UsageError, match="resume=auto"):
        folder.resume_from("never")
    assert folder.resume_from("auto").manifest["macro_step"] == 10  # type: ignore[union-attr]


def test_a_damaged_newest_checkpoint_is_reported_and_replaced_only_on_request(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    checkpoint_at(folder, 10)
    (checkpoint_at(folder, 20) / "manifest.json").write_text("{")
    with pytest.raises(XDistillError, match=r"damaged.*resume=previous.*step_10"):
        folder.resume_from("auto")
    assert folder.resume_from("previous").manifest["macro_step"] == 10  # type: ignore[union-attr]


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, score in ((10, 0.2), (20, 0.9), (30, 0.5), (40, 0.6), (50, 0.1)):
        checkpoint_at(folder, step)
        folder.record_score(f"step_{step}", score)
        folder.prune(2)
    assert sorted(p.name for p in folder.checkpoints.glob("step_*")) == ["step_20", "step_40", "step_50"]
    assert folder.best() == "step_20"


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock()
    code = "import sys, pathlib; from xdistill.folder import RunFolder as R; R(pathlib.Path(sys.argv[1])).lock()"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert other.returncode != 0
    assert f"process {os.getpid()}" in other.stderr
    folder.release()
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0
