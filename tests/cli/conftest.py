"""Finished toy runs to copy, and the command line called in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import QUICK, Outcome

from xdistill.cli import main


@pytest.fixture
def xdistill(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def run(*args: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run of four macro-steps with checkpoints at 2 and 4."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    assert main(["fit", "domain=toy", *QUICK, "train.steps=4", "train.checkpoint_every=2", f"out={out}"]) == 0
    return out


@pytest.fixture
def toy_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished toy run, free to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
