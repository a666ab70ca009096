"""Turn finished runs into the weights that ship with a domain (float16 on disk, float32 when loaded).

    python tools/export_assets.py protein teacher runs/protein_mini --what "one line of provenance"
    python tools/export_assets.py text student runs/text_student --what "..."

The teacher becomes one safetensors file, the student a checkpoint folder with the averaged weights alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from xdistill import checkpoint
from xdistill.config import compose
from xdistill.sections import build_domain


def protein_teacher(source: checkpoint.Checkpoint, provenance: dict[str, Any]) -> Path:
    """The averaged weights of a flow_matching run."""
    from xdistill.domains.protein.checkpoint import save_network
    from xdistill.domains.protein.teacher import MINI_LENGTHS, SHIPPED_TEACHER, mini_network

    mini = mini_network()
    mini.flow.load_state_dict(source.role("student_ema"))
    provenance = {"lengths": list(MINI_LENGTHS), **provenance}
    return save_network(mini.flow.net.half(), SHIPPED_TEACHER, class_map=mini.classes, provenance=provenance)


def text_teacher(source: checkpoint.Checkpoint, provenance: dict[str, Any]) -> Path:
    """The averaged weights of an mdlm run."""
    from xdistill.domains.text.checkpoint import save_text_model
    from xdistill.domains.text.teacher import SHIPPED_TEACHER, from_description

    model = from_description(source.manifest["network"])
    model.load_state_dict(source.role("student_ema"))
    path = save_text_model(model.half(), SHIPPED_TEACHER)
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")
    return path


def speech_teacher(source: checkpoint.Checkpoint, provenance: dict[str, Any]) -> Path:
    """The averaged weights of a flow_matching run."""
    from xdistill.domains.speech.checkpoint import save_network
    from xdistill.domains.speech.teacher import SHIPPED_TEACHER, from_description

    flow = from_description(source.manifest["network"])
    flow.load_state_dict(source.role("student_ema"))
    return save_network(flow.net, SHIPPED_TEACHER, provenance=provenance, dtype=torch.float16)


def student(domain: str, source: checkpoint.Checkpoint, what: str) -> Path:
    """A checkpoint that holds what `generate` needs and nothing else; the manifest is written last."""
    folder = build_domain(compose([f"domain={domain}"])).shipped_student()
    assert folder is not None, f"domain {domain} names no place for a shipped student"
    shutil.rmtree(folder, ignore_errors=True)
    weights = folder / "roles" / "student_ema.safetensors"
    weights.parent.mkdir(parents=True)
    save_file({k: v.half().contiguous() for k, v in source.role("student_ema").items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest = {**source.manifest, "what": what, "sha256": {"roles/student_ema.safetensors": digest}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


TEACHERS = {"protein": protein_teacher, "speech": speech_teacher, "text": text_teacher}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=sorted(TEACHERS))
    parser.add_argument("which", choices=["teacher", "student"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--what", default="", help="one line of provenance")
    args = parser.parse_args()
    newest = checkpoint.open_checkpoint(checkpoint.latest(args.run / "checkpoints")[0])
    provenance = {"what": args.what, "updates": newest.manifest["macro_step"]}
    teacher = TEACHERS[args.domain]
    out = teacher(newest, provenance) if args.which == "teacher" else student(args.domain, newest, args.what)
    print(f"{out} from macro-step {newest.manifest['macro_step']}")


if __name__ == "__main__":
    main()
