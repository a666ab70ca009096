"""Train the shipped speech teacher on the embedded recordings with `objective=flow_matching`; run it again to continue.

    python tools/train_speech_teacher.py --out runs/speech_teacher
    python tools/export_assets.py speech teacher runs/speech_teacher --what "one line of provenance"

The recipe is configs/experiment/speech_flow_matching.yaml; one thread, bf16, about 50 minutes on a core of an AMD EPYC
without AMX.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xdistill.config import compose
from xdistill.run import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speech_teacher"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    options = ["domain=speech", "objective=flow_matching", "resume=auto", "strategy.threads=1", f"seed={args.seed}"]
    fit(compose([*options, f"out={args.out}"]))


if __name__ == "__main__":
    main()
