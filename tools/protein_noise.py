"""Sweep the noise scale of the shipped protein student: the frontier of confidence against diversity, and the default.

    python tools/protein_noise.py            # docs/protein_noise.json and .png
    python tools/protein_noise.py --ckpt runs/protein_sid --calls 8

`noise_scale` multiplies the fresh noise of every step at inference only (protein spec 2.4). MPNN confidence and
geometric validity stand in for designability, the mean pairwise TM-score for diversity. Merit is the product of valid
chains and diversity (1 - TM), summed over the numbers of calls; the default is the largest scale within 10 % of the
best merit: among equals the more diverse.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from xdistill.domains.protein.metrics import EXTRA
from xdistill.domains.protein.teacher import SHIPPED_STUDENT
from xdistill.evaluation import draw, student_sampler
from xdistill.machine import hardware
from xdistill.student import load_student

SCALES = (0.3, 0.45, 0.6, 0.8, 1.0)
SHOWN = ("mpnn_entropy", "score", "valid", "no_clash", "handedness", "helix", "strand", "pairwise_tm")


def sweep(ckpt: Path, calls: list[int], num: int, seed: int, length: str) -> list[dict[str, Any]]:
    """A row for every number of calls and scale."""
    loaded, rows = load_student(ckpt), []
    for k in calls:
        for scale in SCALES:
            sampler = student_sampler(loaded.objective, steps=k, noise_scale=scale)
            samples = draw(
                loaded.domain, loaded.model, sampler, num, seed=seed, precision="bf16", request={"length": length}
            ).samples
            found = {**loaded.domain.metrics(samples, seed), **EXTRA["mpnn"](samples, seed)}
            rows.append(
                {"calls": k, "noise_scale": scale, "metrics": {m: asdict(found[m]) for m in SHOWN if m in found}}
            )
            print(k, scale, {m: round(found[m].value, 3) for m in SHOWN if m in found}, flush=True)
    return rows


def value(row: dict[str, Any], name: str) -> float:
    return float(row["metrics"][name]["value"])


def default_scale(rows: list[dict[str, Any]]) -> float:
    """The largest scale whose merit, valid x (1 - TM) summed over the numbers of calls, is within 10 % of the best."""
    merit = {s: 0.0 for s in SCALES}
    for row in rows:
        merit[row["noise_scale"]] += value(row, "valid") * (1 - value(row, "pairwise_tm"))
    return max(s for s in SCALES if merit[s] >= 0.9 * max(merit.values()))


def figure(rows: list[dict[str, Any]], chosen: float, out: Path) -> None:
    """MPNN confidence and valid chains against diversity; each point a scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for ax, name, label in zip(
        axes, ("mpnn_entropy", "valid"), ("MPNN entropy, nats (lower: more confident)", "valid chains"), strict=True
    ):
        for k in sorted({r["calls"] for r in rows}):
            mine = [r for r in rows if r["calls"] == k]
            x, y = [value(r, "pairwise_tm") for r in mine], [value(r, name) for r in mine]
            line = ax.plot(x, y, "o-", label=f"{k} calls", ms=4)[0]
            for r, px, py in zip(mine, x, y, strict=True):
                bold = "bold" if r["noise_scale"] == chosen else "normal"
                ax.annotate(f"{r['noise_scale']:g}", (px, py), fontsize=7, weight=bold, xytext=(3, 3),
                            textcoords="offset points", color=line.get_color())  # fmt: skip
        ax.set_xlabel("mean pairwise TM (lower: more diverse)")
        ax.set_ylabel(label)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    fig.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, default=SHIPPED_STUDENT)
    parser.add_argument("--calls", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--length", default="40-128")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("docs/protein_noise.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = sweep(args.ckpt, args.calls, args.num, args.seed, args.length)
    chosen = default_scale(rows)
    settings = {k: str(v) for k, v in vars(args).items()}
    report = {"settings": settings, "hardware": hardware(), "default": chosen, "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    figure(rows, chosen, args.out.with_suffix(".png"))
    print(f"default noise_scale {chosen:g}; {args.out} and {args.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
