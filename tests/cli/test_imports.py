"""What is imported when: the core is light, domains and DeepSpeed wait until they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "deepspeed", "xdistill.domains.protein", "xdistill.domains.toy", "biotite", "matplotlib")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def loaded_after(statement: str) -> set[str]:
    names = run(f"import sys\n{statement}\nprint('loaded', *(m for m in {HEAVY!r} if m in sys.modules))")
    return set(names.split()[1:])


@pytest.mark.parametrize(
    "statement",
    [
        "import xdistill",
        *(f"from xdistill.cli import main; main({args!r})" for args in (["--help"], ["list"], ["fit", "--help"])),
        "from xdistill.config import compose; compose(['domain=protein', 'train.steps=3'])",
    ],
)
def test_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement) == set()


def test_no_domain_and_no_deepspeed_to_train() -> None:
    assert loaded_after("import xdistill.run") <= {"torch", "lightning", "matplotlib"}  # torchmetrics imports the last


def test_import_takes_less_than_two_seconds_beyond_torch() -> None:
    """Processor time, so that a busy machine does not decide; every module of the core that needs no Lightning."""
    code = (
        "import torch, time\nbefore = time.process_time()\n"
        "import xdistill, xdistill.config, xdistill.overrides, xdistill.registry, xdistill.objectives, "
        "xdistill.samplers, xdistill.guidance, xdistill.domain, xdistill.checkpoint, xdistill.cli\n"
        "print(time.process_time() - before)"
    )
    assert float(run(code)) < 2
