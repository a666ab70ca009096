"""Train the shipped text teacher on the embedded novels with `objective=mdlm`; run it again to continue.

    python tools/train_text_teacher.py --out runs/text_teacher
    python tools/export_assets.py text teacher runs/text_teacher/full

Two runs of `xdistill fit`: `first` shows few masks, so that attention to neighbours is found soon; `full` continues
from it over all times. One thread, about an hour on a core of an AMD EPYC without AMX.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xdistill.config import compose
from xdistill.run import fit

COMMON = ["domain=text", "objective=mdlm", "eval.report=false", "resume=auto", "strategy.threads=1"]
FIRST = ["objective.times=[0.05,0.35]", "objective.weight_floor=1", "train.steps=300", "optim.student.lr=1e-3"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/text_teacher"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    common = [*COMMON, f"seed={args.seed}"]
    first = fit(compose([*common, *FIRST, f"out={args.out / 'first'}"]))
    fit(compose([*common, f"student.init={first}", f"out={args.out / 'full'}"]))


if __name__ == "__main__":
    main()
