"""Guidance of the speech teacher: what each strength does to words, sound and few steps, on held-out sentences.

python tools/speech_guidance.py ckpt=runs/speech_teacher w=0,1,2 steps=32,4 num=32 judges=wer,mos json=guidance.json
w is F5-TTS's strength, V + w (V - V_null): scale 1 + w of `guidance=cfg`. `paired` is against the most steps at this w.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from xdistill.evaluation import draw, teacher_sampler
from xdistill.guidance import Guided
from xdistill.student import load_student

DEFAULTS = {"ckpt": "runs/speech_teacher", "w": "0,0.5,1,2,3", "steps": "32,4", "num": "32", "judges": "wer,mos"}


def main(args: list[str]) -> None:
    """Print a line a setting, the file growing with each."""
    given = {**DEFAULTS, "json": "", "threads": "1", **dict(arg.split("=", 1) for arg in args)}
    torch.set_num_threads(int(given["threads"]))
    loaded = load_student(Path(given["ckpt"]))
    domain, num = loaded.domain, int(given["num"])
    sampler, extra = domain.teacher_samplers()["reference"], domain.extra_metrics()
    counts = sorted(map(int, given["steps"].split(",")), reverse=True)
    rows: list[dict[str, Any]] = []
    for w in map(float, given["w"].split(",")):
        model = Guided(loaded.model, 1 + w) if w else loaded.model
        reference = None
        for steps in counts:
            found = draw(domain, model, teacher_sampler(sampler, steps), num, batch_size=8)
            reference = reference or found.samples
            metrics = {**domain.metrics(found.samples), **domain.paired_metrics(found.samples, reference)}
            for name in filter(None, given["judges"].split(",")):
                metrics |= extra[name](found.samples, 0)
            print(f"w {w:g}, {steps} steps, {found.calls:g} calls:", end=" ")
            print(", ".join(f"{k} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for k, m in metrics.items()), flush=True)
            rows.append({"w": w, "steps": steps, "calls": found.calls, "n": num, "seconds": found.seconds})
            rows[-1]["metrics"] = {name: asdict(m) for name, m in metrics.items()}
            if given["json"]:
                report = {"checkpoint": str(loaded.path), "rows": rows}
                Path(given["json"]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
