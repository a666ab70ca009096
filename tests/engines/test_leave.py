"""The end of a run on several processes."""

from pathlib import Path

import pytest
from engine_launch import launch


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_processes_leave_without_aborting(engine: str, tmp_path: Path) -> None:
    """gloo's threads are done before Python ends. Without that, this fails in more than half of the attempts."""
    launch([engine], tmp_path, devices=2, worker=Path(__file__).with_name("leave_worker.py"))
