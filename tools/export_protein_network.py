"""Turn the averaged weights of a run into the safetensors + JSON pair that ships with the protein domain.

python tools/export_protein_network.py runs/protein_mini domains/protein/assets/mini_teacher.safetensors --what "..."
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xdistill import checkpoint
from xdistill.domains.protein.checkpoint import save_network
from xdistill.domains.protein.teacher import MINI_LENGTHS, mini_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--what", default="", help="one line of provenance")
    args = parser.parse_args()
    newest = checkpoint.open_checkpoint(checkpoint.latest(args.run / "checkpoints")[0])
    mini = mini_network()
    mini.flow.load_state_dict(newest.role("student_ema"))
    provenance = {
        "lengths": list(MINI_LENGTHS),
        "what": args.what,
        "macro_steps": newest.manifest["macro_step"],
        "run": newest.config.get("args", newest.manifest["config_hash"]),
    }
    path = save_network(mini.flow.net, args.out, class_map=mini.classes, provenance=provenance)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB, macro-step {newest.manifest['macro_step']}")


if __name__ == "__main__":
    main()
