"""Write the section "Checksums (sha256)" of a domain's card, its last, which `xdistill doctor` reads.

    python tools/asset_checksums.py speech

Files that a SHA256SUMS of their folder lists are left to it; texts (.md) have none.
"""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

from xdistill.cli.doctor import listed

DOMAINS = Path(__file__).parents[1] / "domains"
HEADING = "## Checksums (sha256)"


def section(assets: Path) -> str:
    """The heading and the lines of all files that need one, as `sha256sum` prints them."""
    known = {sums.with_name(name) for sums in assets.rglob("SHA256SUMS") for name in [sums.name, *listed(sums)]}
    found = [p for p in sorted(assets.rglob("*")) if p.is_file() and p.suffix != ".md" and p not in known]
    lines = [f"{sha256(p.read_bytes()).hexdigest()}  {p.relative_to(assets)}" for p in found]
    return "\n".join([HEADING, "```", *lines, "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=sorted(p.parent.name for p in DOMAINS.glob("*/assets")))
    assets = DOMAINS / parser.parse_args().domain / "assets"
    card = assets / "README.md"
    before = card.read_text().partition(HEADING)[0].rstrip()
    card.write_text(f"{before}\n\n{section(assets)}")


if __name__ == "__main__":
    main()
