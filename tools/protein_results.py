"""The protein results table: objectives side by side on the shipped teacher, 1 to 16 calls, three seeds, baselines.

    python tools/protein_results.py                                  # whatever docs/protein_table.json lacks
    python tools/protein_results.py --method sid_a1 --seed 0         # the rows of one student
    python tools/protein_results.py --method sid_a1 --seed 0 --calls 16 --check  # make a row again, compare

Every student is one any-step network (objective.steps=[1,4,8,16]) of `xdistill fit` with the same budget of macro-steps
and batch; `sid_after_secant` starts from the secant student of its seed. Flow maps are told their jumps instead of
their number of calls; `mcd` has 8 phases, and jumps over them at fewer calls. The noise scale of each row is chosen on
other samples (best `score` of the scales tried). Runs stay in runs/results and are continued when interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from xdistill.config import compose
from xdistill.domain import Metric
from xdistill.domains.protein import ProteinDomain
from xdistill.domains.protein.metrics import EXTRA
from xdistill.domains.protein.teacher import SHIPPED_TEACHER
from xdistill.evaluation import Draw, draw, student_sampler, teacher_sampler
from xdistill.machine import hardware
from xdistill.run import fit
from xdistill.sections import build_domain
from xdistill.student import load_student

RECORD, TEXT, RUNS = Path("docs/protein_table.json"), Path("docs/protein_table.md"), Path("runs/results")
CALLS, SEEDS, NOISE = (1, 4, 8, 16), (0, 1, 2), (0.45, 0.7, 1.0)
LENGTHS, PICK, NUM, EVAL_SEED = (40, 64), 24, 64, 5
BUDGET = {"train.steps": 150, "data.batch": 4}
COMMON = [
    "domain=protein",
    f"domain.min_length={LENGTHS[0]}",
    f"domain.max_length={LENGTHS[1]}",
    *(f"{key}={value}" for key, value in BUDGET.items()),
    *("train.max_minutes=0", "eval=none", "strategy.threads=1", "logger.progress=false", "resume=auto"),
    "optim.student={schedule: cosine_restarts, cycle: 150, lr: 1e-4}",
]
CRITIC = ["objective.critic_warmup=20", "optim.critic={schedule: cosine_restarts, cycle: 150, lr_min: 1e-4}"]
SECANT = ["target=clean", "anchors=log", "trajectories=128", "solver_steps=2", "rotate=false"]
ANY_STEP = "objective.steps=[1,4,8,16]"
METHODS: dict[str, list[str]] = {
    "sid_a05": ["objective=sid", "objective.alpha=0.5", *CRITIC],
    "sid_a1": ["objective=sid", "objective.alpha=1", *CRITIC],
    "sid_a12": ["objective=sid", "objective.alpha=1.2", *CRITIC],
    "dmd": ["objective=dmd", "objective.first_step=3", "optim.critic.lr=1e-3", *CRITIC],
    "tdm": ["objective=tdm", *CRITIC],
    "secant": ["objective=secant", *(f"objective.{option}" for option in SECANT)],
    "sid_after_secant": ["objective=sid", "objective.alpha=1", "student=file", *CRITIC],
}
FLOW_MAPS: dict[str, list[str]] = {
    "splitmeanflow": ["objective=splitmeanflow"],
    "meanflow": ["objective=meanflow", "objective.velocity=teacher"],
    "mcd": ["objective=consistency", "objective.steps=8"],
}
SHOWN = ("score", "valid_bonds", "no_clash", "valid", "handedness", "strand", "mpnn_entropy", "pairwise_tm")


def train(method: str, seed: int, runs: Path) -> Path:
    """The run folder of one student, trained if it is not there yet."""
    out = runs / f"{method}_s{seed}"
    own = FLOW_MAPS[method] if method in FLOW_MAPS else [*METHODS[method], ANY_STEP]
    chosen = [*own, *COMMON, f"seed={seed}", f"out={out}"]
    if method == "sid_after_secant":
        chosen.append(f"student.init={train('secant', seed, runs)}")
    fit(compose(chosen))
    return out


def student_rows(method: str, seed: int, runs: Path) -> dict[str, dict[str, Any]]:
    """Rows of one student at every number of calls."""
    loaded = load_student(train(method, seed, runs))

    def sampler(calls: int, noise: float) -> Draw:
        return student_sampler(loaded.objective, steps=calls, noise_scale=noise)

    return {
        f"{method}/{seed}/{k}": best(loaded.domain, loaded.model, lambda n, k=k: sampler(k, n), NOISE) for k in CALLS
    }


def teacher_rows() -> dict[str, dict[str, Any]]:
    """The teacher's own samplers (protein spec 1.8) at the students' calls, and its reference at 400."""
    rows: dict[str, dict[str, Any]] = {}
    for noise in NOISE:
        domain = _domain(noise)
        for name, sampler in domain.teacher_samplers().items():
            kind, _, scale = name.partition(", noise ")
            if noise != NOISE[0] and scale != f"{noise}":
                continue  # neither depends on the noise scale, nor is it the reference at another than its own
            for k in (400,) if kind == "reference" else CALLS:
                row = measure(domain, domain.teacher(), teacher_sampler(sampler, k), float(scale or noise))
                key = f"teacher: {kind}/-/{k}"
                if key not in rows or row["metrics"]["score"]["value"] > rows[key]["metrics"]["score"]["value"]:
                    rows[key] = row
    return rows


def best(domain: Any, model: Any, sampler: Any, scales: Sequence[float]) -> dict[str, Any]:
    """The row of the noise scale that does best on other samples."""
    picks = {
        n: draw(domain, model, sampler(n), PICK, seed=EVAL_SEED + 1, precision="bf16", request=_request())
        for n in scales
    }
    chosen = max(scales, key=lambda n: domain.metrics(picks[n].samples)["score"].value)
    return measure(domain, model, sampler(chosen), chosen)


def measure(domain: Any, model: Any, sampler: Draw, noise: float) -> dict[str, Any]:
    """Metrics of NUM samples."""
    drawn = draw(domain, model, sampler, NUM, seed=EVAL_SEED, precision="bf16", request=_request())
    found: dict[str, Metric] = {**domain.metrics(drawn.samples), **EXTRA["mpnn"](drawn.samples, 0)}
    metrics = {k: asdict(m) for k, m in found.items()}
    return {"noise_scale": noise, "calls": drawn.calls, "seconds": drawn.seconds, "n": NUM, "metrics": metrics}


def check(recorded: dict[str, Any], again: dict[str, Any]) -> bool:
    """Print both; whether every new value lies within the recorded interval."""
    good = True
    for key, row in again.items():
        for name in SHOWN:
            if name not in row["metrics"]:
                continue
            old, new = recorded[key]["metrics"][name], row["metrics"][name]["value"]
            inside = old["low"] - 1e-9 <= new <= old["high"] + 1e-9
            good &= inside
            print(
                f"{key:28} {name:13} {new:8.4f}  recorded {old['value']:.4f} [{old['low']:.4f}, {old['high']:.4f}]",
                "" if inside else "  OUTSIDE",
            )
    return good


def text(record: dict[str, Any]) -> str:
    """The table as Markdown: mean over seeds, lowest to highest seed in brackets."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for key, row in record["rows"].items():
        method, _, k = key.rsplit("/", 2)
        groups.setdefault((method, int(k)), []).append(row)
    lines = ["| method | calls | seeds | noise | " + " | ".join(SHOWN) + " |", "|---" * (4 + len(SHOWN)) + "|"]
    for (method, k), rows in sorted(groups.items(), key=lambda g: (not g[0][0].startswith("teacher"), g[0])):
        cells = [_cell([r["metrics"][name]["value"] for r in rows if name in r["metrics"]]) for name in SHOWN]
        noise = "/".join(f"{r['noise_scale']:g}" for r in rows)
        lines.append(f"| {method} | {k} | {len(rows)} | {noise} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.3f}, {max(values):.3f}]"


def _domain(noise: float) -> ProteinDomain:
    return build_domain(compose(["domain=protein", f"domain.reference_noise={noise}"]))  # type: ignore[return-value]


def _request() -> dict[str, str]:
    return {"length": f"{LENGTHS[0]}-{LENGTHS[1]}"}


def _save(record: dict[str, Any]) -> None:
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.rename(RECORD)
    TEXT.write_text(text(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=[*METHODS, *FLOW_MAPS, "teacher"], help="only this one")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this one")
    parser.add_argument("--calls", type=int, choices=CALLS, help="only this one, with --check")
    parser.add_argument("--check", action="store_true", help="train and measure again in a fresh folder and compare")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "teacher_sha256": hashlib.sha256(SHIPPED_TEACHER.read_bytes()).hexdigest(),
        "budget": BUDGET,
        "lengths": list(LENGTHS),
        "n": NUM,
    }
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"settings": settings, "rows": {}}
    if record["settings"] != settings:
        raise SystemExit(f"{RECORD} was made with other settings: move it away to start a new table")
    for method in [args.method] if args.method else ["teacher", *METHODS, *FLOW_MAPS]:
        for seed in SEEDS[:1] if method == "teacher" else SEEDS if args.seed is None else [args.seed]:
            done = any(
                key.startswith(f"{method}: " if method == "teacher" else f"{method}/{seed}/") for key in record["rows"]
            )
            if args.check:
                runs = RUNS.with_name("results_check")
                again = teacher_rows() if method == "teacher" else student_rows(method, seed, runs)
                again = {k: row for k, row in again.items() if args.calls in (None, int(k.rsplit("/", 1)[1]))}
                if not check(record["rows"], again):
                    raise SystemExit(1)
            elif not done:
                rows = teacher_rows() if method == "teacher" else student_rows(method, seed, RUNS)
                # Another process may have added its rows meanwhile.
                record = json.loads(RECORD.read_text()) if RECORD.exists() else record
                record["rows"] |= rows
                record["hardware"] = hardware()
                _save(record)
    print(text(record))


if __name__ == "__main__":
    main()
