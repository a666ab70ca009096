"""`python -m xdistill.testing.parity DOMAIN DIR`: replay every recorded fixture of DIR, one line a case.

Exits 0 when all are within their tolerance, 1 when one is not, 2 on wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from xdistill import registry
from xdistill.errors import UsageError, XDistillError


def main(argv: Sequence[str]) -> int:
    """Replay and print; the domain offers `replay(directory)` of results with name, max_error, tolerance, ok."""
    try:
        if len(argv) != 2:
            raise UsageError("usage: python -m xdistill.testing.parity DOMAIN DIR")
        replay = getattr(registry.load("domains", argv[0]), "replay", None)
        if replay is None:
            raise UsageError(f"domain '{argv[0]}' has no recorded fixtures to replay")
        directory = Path(argv[1])
        if not directory.is_dir():
            raise UsageError(f"no folder {directory}: give a folder of recorded fixtures")
        results = replay(directory)
        if not results:
            raise XDistillError(f"no fixture found in {directory}: expected the layout of tests/fixtures/{argv[0]}")
    except XDistillError as error:
        print(f"parity: {error}", file=sys.stderr)
        return error.exit_code
    for r in results:
        print(f"{'ok  ' if r.ok else 'FAIL'} {r.name}: max error {r.max_error:.2e} (atol {r.tolerance:g})")
    failed = sum(not r.ok for r in results)
    print(f"{len(results) - failed} within tolerance, {failed} out of tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
