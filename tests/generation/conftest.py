"""A toy student to generate with, and processes that die on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdistill.cli import main
from xdistill.student import Loaded, load_student


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run of two macro-steps."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    quick = ("eval=none", "logger=none", "data.batch=8", "strategy.accelerator=cpu", "train.steps=2")
    assert main(["fit", "domain=toy", *quick, f"out={out}"]) == 0
    return out


@pytest.fixture(scope="session")
def loaded(toy_checkpoint: Path) -> Loaded:
    """Its student."""
    return load_student(toy_checkpoint)
