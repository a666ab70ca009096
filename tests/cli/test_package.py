"""The wheel holds every module, group file and asset, and works from its own place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {"xdistill": "xdistill", "domains": "xdistill/domains", "configs": "xdistill/configs"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, so that nothing is left behind in it."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PLACES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_every_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{place}/{p.relative_to(ROOT / name).as_posix()}"
        for name, place in PLACES.items()
        for p in (ROOT / name).rglob("*")
        if p.is_file() and (p.suffix in (".py", ".yaml") or "assets" in p.parts)
    }
    assert expected - held == set()
    assert {name.split("/")[0] for name in held} == {"xdistill", wheel.name.split("-py3")[0] + ".dist-info"}


def test_wheel_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.meta_path = [f for f in sys.meta_path "
        "if 'editable' not in getattr(f, '__module__', '')]; import xdistill; from xdistill.config import compose; "
        "print(xdistill.__file__, compose(['domain=protein']).objective.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == [str(tmp_path / "site" / "xdistill" / "__init__.py"), "sid"], done.stderr
