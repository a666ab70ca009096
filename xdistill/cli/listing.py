"""`xdistill list`: domains and objectives, without importing any of them."""

from __future__ import annotations

from collections.abc import Sequence

from xdistill import registry
from xdistill.cli.help import group_line
from xdistill.errors import UsageError


def run(args: Sequence[str]) -> int:
    """Print names and one line each."""
    if args:
        raise UsageError(f"list takes no arguments, got '{args[0]}'")
    for kind in ("domains", "objectives"):
        names = registry.names(kind)
        width = max(map(len, names), default=0)
        print(f"{kind}:")
        for name in names:
            print(f"  {name:{width}}  {group_line(kind[:-1], name)}")
    return 0
