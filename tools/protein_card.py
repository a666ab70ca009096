"""Print the Markdown table of README and card from what `xdistill bench` wrote, with real chains as the last column.

xdistill bench domain=protein json=docs/protein_bench.json
python tools/protein_card.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from xdistill.domain import Metric
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.metrics import EXTRA, calibrate

NAMES = {
    "mpnn_entropy": "MPNN entropy, nats (lower: more confident)",
    "valid": "geometrically valid chains",
    "valid_bonds": "CA-CA bonds within 3.8 ± 0.1 Å",
    "valid_angles": "virtual angles in the real range",
    "no_clash": "chains without a clash",
    "handedness": "handedness (1: all right-handed)",
    "pairwise_tm": "pairwise TM (lower: more diverse)",
}


def real_chains(num: int) -> dict[str, Metric]:
    """What held-out real chains score; MPNN on the first `num`."""
    test = load_embedded("test")
    return {**calibrate(), **EXTRA["mpnn"]([test.coords(i) for i in range(num)], 0)}


def cell(m: dict[str, float] | None) -> str:
    return "-" if m is None else f"{m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, nargs="?", default=Path("docs/protein_bench.json"))
    args = parser.parse_args()
    report = json.loads(args.bench.read_text())
    rows, real = report["rows"], real_chains(report["num"])
    print("| | " + " | ".join(name.replace("teacher", "teacher, 400 calls") for name in rows) + " | real chains |")
    print("|---" * (len(rows) + 2) + "|")
    for name, text in NAMES.items():
        cells = [cell(row["quality"].get(name)) for row in rows.values()]
        print(f"| {text} | " + " | ".join(cells) + f" | {cell(vars(real[name]))} |")
    print("| seconds a chain | " + " | ".join(f"{row['seconds']:.3g}" for row in rows.values()) + " | |")
    print("| speed-up | " + " | ".join(f"{row.get('speedup', 1):.0f}x" for row in rows.values()) + " | |")


if __name__ == "__main__":
    main()
