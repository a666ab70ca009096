"""The README's commands: those of the install in their promised form, every xdistill command accepted as written."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from xdistill import registry
from xdistill.cli import VERBS, main
from xdistill.cli.help import SCHEMAS
from xdistill.cli.keys import domain_class, read, split
from xdistill.compat import compatibility
from xdistill.config import compose
from xdistill.errors import UsageError
from xdistill.sections import build_domain, build_objective

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
LINES = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&")]
INLINE = re.findall(r"`(xdistill [^`]+)`", README)
COMMANDS = list(dict.fromkeys(line for line in [*LINES, *INLINE] if line.startswith("xdistill ")))


def test_the_two_commands() -> None:
    """One command distils, one runs the tests; each installs what it needs."""
    installs = [line for block in BLOCKS for line in block.splitlines() if "pip install" in line]
    assert installs == [
        "pip install -c constraints.txt -e . && xdistill fit domain=protein",
        "pip install -c constraints.txt -e '.[test]' && pytest",
    ]
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_accepted(command: str) -> None:
    """Every key, choice and pair of it exists."""
    _, verb, *args = shlex.split(command)
    assert verb in VERBS
    if verb == "fit" and "--help" not in args:
        cfg = compose(args)
        domain = build_domain(cfg)
        compatibility(cfg, domain, build_objective(cfg, domain))
    elif verb == "extract":
        read(SCHEMAS[verb], split(args[1:]))
    elif verb in SCHEMAS:
        pairs = split(args)
        read(SCHEMAS[verb], pairs, domain_class(pairs).request_keys)


@pytest.mark.parametrize("option", re.findall(r"`((?:\w+\.?)+=[^` ]+)`", README))
def test_option_exists(option: str) -> None:
    """`key=value` in running text is something `fit`, or another verb, takes of one of the domains."""
    taken = []
    for domain in ("protein", "speech", "text"):
        pairs = {"domain": domain, **split([option])}
        for verb, schema in SCHEMAS.items():
            with contextlib.suppress(UsageError):
                read(schema, pairs, domain_class(pairs).request_keys)
                taken.append(f"{verb} {domain}")
        with contextlib.suppress(UsageError):
            compose([f"domain={domain}", option])
            taken.append(f"fit {domain}")
    assert taken


def test_everything_registered_is_mentioned() -> None:
    assert [n for n in registry.names("objectives") if f"`{n}`" not in README] == []
    assert [p for p in re.findall(r"\]\(([^)h][^)]*)\)", README) if not (ROOT / p).exists()] == []


def test_sampling_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What needs no training runs as written, in the README's order, but no command makes more than 16 samples."""
    shipped: Callable[[], Path | None] = build_domain(compose(["domain=protein"])).shipped_student
    if not (path := shipped()) or not path.exists():
        pytest.skip("this tree ships no protein student")
    monkeypatch.chdir(tmp_path)
    verbs = tuple(f"xdistill {verb} " for verb in ("generate", "evaluate", "extract"))
    ran = [
        re.sub(r"num=\d{3,}", "num=16", c)
        for c in LINES
        if c.startswith(verbs) and not re.search("ckpt=(?!shipped)", c)
    ]
    for command in ran:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert len(ran) >= 2
