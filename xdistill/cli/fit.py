"""`xdistill fit`: train."""

from __future__ import annotations

import os
from collections.abc import Sequence

from xdistill.config import compose


def run(args: Sequence[str]) -> int:
    """Compose the configuration, then train; the configuration is checked before anything heavy is imported."""
    cfg = compose(args)
    from xdistill.run import fit

    folder = fit(cfg)
    if os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0":
        print(f"run folder: {folder}")
    return 0
