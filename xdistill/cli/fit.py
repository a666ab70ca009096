"""`xdistill fit`: train."""

from __future__ import annotations

from collections.abc import Sequence

from xdistill.config import compose


def run(args: Sequence[str]) -> int:
    """Compose the configuration, then train; the configuration is checked before anything heavy is imported."""
    cfg = compose(args)
    from xdistill.run import fit

    print(f"run folder: {fit(cfg)}")
    return 0
