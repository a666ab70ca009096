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

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from results_table import Record, Rows, Table, cell, grouped, inside, markdown

from xdistill.config import compose
from xdistill.domain import Metric
from xdistill.domains.protein import ProteinDomain
from xdistill.domains.protein.metrics import EXTRA
from xdistill.domains.protein.teacher import SHIPPED_TEACHER
from xdistill.evaluation import Draw, draw, student_sampler, teacher_sampler
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


def student_rows(method: str, seed: int, calls: Sequence[int], runs: Path) -> Rows:
    """Rows of one student."""
    loaded = load_student(train(method, seed, runs))

    def sampler(steps: int, noise: float) -> Draw:
        return student_sampler(loaded.objective, steps=steps, noise_scale=noise)

    return {
        f"{method}/{seed}/{k}": best(loaded.domain, loaded.model, lambda n, k=k: sampler(k, n), NOISE) for k in calls
    }


def teacher_rows(calls: Sequence[int]) -> Rows:
    """The teacher's own samplers (protein spec 1.8), and its reference at 400 calls beside all of the students'."""
    rows: Rows = {}
    full = (400,) if set(calls) == set(CALLS) else ()
    for noise in NOISE:
        domain = _domain(noise)
        for name, sampler in domain.teacher_samplers().items():
            kind, _, scale = name.partition(", noise ")
            if noise != NOISE[0] and scale != f"{noise}":
                continue  # neither depends on the noise scale, nor is it the reference at another than its own
            for k in full if kind == "reference" else calls:
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


def check(recorded: Rows, again: Rows) -> bool:
    """Print both; whether every new value lies within the recorded interval."""
    good = True
    for key, row in again.items():
        for name in (name for name in SHOWN if name in row["metrics"]):
            old, new = recorded[key]["metrics"][name], row["metrics"][name]["value"]
            good &= inside(f"{key:28} {name:13}", old, new)
    return good


def text(record: Record) -> str:
    """The table as Markdown: mean over seeds, lowest to highest seed in brackets."""
    lines = []
    for (method, k), rows in grouped(record):
        cells = [cell([r["metrics"][name]["value"] for r in rows if name in r["metrics"]]) for name in SHOWN]
        lines.append((method, k, len(rows), "/".join(f"{r['noise_scale']:g}" for r in rows), *cells))
    return markdown(["method", "calls", "seeds", "noise", *SHOWN], lines)


def _domain(noise: float) -> ProteinDomain:
    return build_domain(compose(["domain=protein", f"domain.reference_noise={noise}"]))  # type: ignore[return-value]


def _request() -> dict[str, str]:
    return {"length": f"{LENGTHS[0]}-{LENGTHS[1]}"}


def settings() -> dict[str, Any]:
    """What all rows of a record have in common."""
    digest = hashlib.sha256(SHIPPED_TEACHER.read_bytes()).hexdigest()
    return {"teacher_sha256": digest, "budget": BUDGET, "lengths": list(LENGTHS), "n": NUM}


def make(method: str, seed: int, calls: Sequence[int], record: Record, runs: Path) -> Rows:
    """Rows of the teacher's samplers, or of one student."""
    return teacher_rows(calls) if method == "teacher" else student_rows(method, seed, calls, runs)


def table() -> Table:
    """What `results_table` needs to know."""
    return Table(
        path=RECORD, runs=RUNS, settings=settings(), methods=(*METHODS, *FLOW_MAPS), seeds=SEEDS, calls=CALLS,
        make=make, check=check, text=text, indent=1,
    )  # fmt: skip


if __name__ == "__main__":
    table().main(__doc__)
