"""Turn finished runs into the weights that ship with the protein domain (float16 on disk, float32 when loaded).

    python tools/export_protein_assets.py teacher runs/protein_mini --what "one line of provenance"
    python tools/export_protein_assets.py student runs/protein_student --what "..."

The teacher becomes safetensors + JSON, the student a checkpoint folder with the averaged weights alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from xdistill import checkpoint
from xdistill.domains.protein.checkpoint import save_network
from xdistill.domains.protein.teacher import MINI_LENGTHS, SHIPPED_STUDENT, SHIPPED_TEACHER, mini_network


def export_teacher(source: checkpoint.Checkpoint, what: str) -> Path:
    """The averaged weights of a flow_matching run."""
    mini = mini_network()
    mini.flow.load_state_dict(source.role("student_ema"))
    provenance = {"lengths": list(MINI_LENGTHS), "what": what, "updates": source.manifest["macro_step"]}
    return save_network(mini.flow.net.half(), SHIPPED_TEACHER, class_map=mini.classes, provenance=provenance)


def export_student(source: checkpoint.Checkpoint, what: str) -> Path:
    """A checkpoint that holds what `generate` needs and nothing else; the manifest is written last."""
    shutil.rmtree(SHIPPED_STUDENT, ignore_errors=True)
    weights = SHIPPED_STUDENT / "roles" / "student_ema.safetensors"
    weights.parent.mkdir(parents=True)
    save_file({k: v.half().contiguous() for k, v in source.role("student_ema").items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest = {**source.manifest, "what": what, "sha256": {"roles/student_ema.safetensors": digest}}
    (SHIPPED_STUDENT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return SHIPPED_STUDENT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["teacher", "student"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--what", default="", help="one line of provenance")
    args = parser.parse_args()
    newest = checkpoint.open_checkpoint(checkpoint.latest(args.run / "checkpoints")[0])
    out = (export_teacher if args.which == "teacher" else export_student)(newest, args.what)
    print(f"{out} from macro-step {newest.manifest['macro_step']}")


if __name__ == "__main__":
    main()
