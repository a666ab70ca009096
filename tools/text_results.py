"""The text results table: objectives side by side on the shipped teacher, 4 to 32 calls, baselines, at equal entropy.

    python tools/text_results.py                                    # whatever docs/text_table.json lacks
    python tools/text_results.py --method idlm --seed 0             # the rows of one student
    python tools/text_results.py --method idlm --seed 0 --calls 8 --check  # make it again, compare

Every student is a run of `xdistill fit` with the same macro-steps and about the same rows an update, one run a method
and seed, sampled at every number of calls: with masks far apart (domain.masking=spread, method=spread), but for the
methods whose name ends in _independent, which train and sample as their papers do (method=ancestral). Each row is a
curve: temperatures are tried until they enclose the entropy of the teacher at as many calls as tokens, where log
judge-perplexity is read (95 % bootstrap intervals over samples). `closed` is the share of the gap between the
teacher's ancestral sampler at 8 calls and at 128 that the row closes.

Runs stay in runs/text_results and are continued when interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_table import Record, Rows, Table, cell, grouped, inside, markdown

from xdistill.config import compose
from xdistill.curves import Curve, Point, gap_closed, plot
from xdistill.domains.text import TextDomain
from xdistill.domains.text.teacher import SHIPPED_TEACHER
from xdistill.evaluation import draw, student_sampler
from xdistill.objectives.mdlm import MDLM
from xdistill.run import fit
from xdistill.sections import build_domain
from xdistill.student import load_student

RECORD, TEXT, RUNS = Path("docs/text_table.json"), Path("docs/text_table.md"), Path("runs/text_results")
CALLS, SEEDS, FULL = (4, 8, 16, 32), (0, 1, 2), 128
NUM, EVAL_SEED, STEP, MOST = {4: 256, 8: 512, 16: 128, 32: 128, FULL: 512}, 7, 0.08, 4
FEWER = 2  # students of the comparison get this fraction of NUM; the teacher and the shipped kind get all
SAMPLERS = ("ancestral", "spread", "entropy")
PICTURE = {
    "teacher, 128 calls": f"teacher: ancestral/-/{FULL}",
    "teacher, 8 calls": "teacher: ancestral/-/8",
    "teacher, 8 calls, masks far apart": "teacher: spread/-/8",
    "student, 8 calls": "idlm/0/8",
    "student, 4 calls": "idlm/0/4",
}
BUDGET = {"train.steps": 150, "data.batch": 16}
ALWAYS = ["domain=text", "train.max_minutes=0", "eval.report=false", "strategy.threads=1", "logger.progress=false"]
COMMON = ["objective.steps=8", "ema.half_life=20", "train.guard=off", *(f"{k}={v}" for k, v in BUDGET.items())]
SHIPPED = "idlm"
INDEPENDENT = ["domain.masking=independent", "sampler.method=ancestral"]
METHODS: dict[str, list[str]] = {
    "sdtt": ["objective=sdtt", *COMMON],
    "dcd": ["objective=dcd", *COMMON],
    "idlm": ["objective=idlm", *COMMON],  # what `xdistill fit domain=text` does; seed 0 is the student that ships
    "didi": ["objective=didi", *COMMON, "data.batch=4"],
    "mmd": ["objective=mmd", *COMMON, "data.batch=8"],
    "sdtt_independent": ["objective=sdtt", *COMMON, *INDEPENDENT],
    "idlm_independent": ["objective=idlm", *COMMON, *INDEPENDENT],
}


@cache
def domain() -> TextDomain:
    """The domain of every row, its judge included."""
    built = build_domain(compose(["domain=text"]))
    assert isinstance(built, TextDomain)
    return built


def train(method: str, seed: int, runs: Path) -> Path:
    """The run folder of one student, trained if it is not there yet."""
    out = runs / f"{method}_s{seed}"
    chosen = {o.partition("=")[0]: o for o in [*ALWAYS, *METHODS[method]]}  # the last of a key counts
    fit(compose([*chosen.values(), f"seed={seed}", f"out={out}", "resume=auto"]))
    return out


def curve(model: torch.nn.Module, calls: int, method: str, target: float | None, num: int) -> Curve:
    """Points at temperatures that enclose the entropy `target`; None: the one point at temperature 1."""
    objective = MDLM(domain().process)
    points: dict[float, Point] = {}
    temperature = 1.0
    while len(points) < MOST:
        sampler = student_sampler(objective, steps=calls, temperature=temperature, method=method)
        drawn = draw(domain(), model, sampler, num, seed=EVAL_SEED, precision="bf16")
        points[temperature] = Point(temperature, domain().curve_rows(drawn.samples), drawn.calls, drawn.seconds)
        found = [p.x for p in points.values()]
        if target is None or min(found) <= target <= max(found):
            break
        temperature = round(max(points) + STEP if max(found) < target else min(points) - STEP, 2)
    return Curve(f"{calls} calls", tuple(points[t] for t in sorted(points)))


def student_rows(method: str, seed: int, record: Record, calls: Sequence[int], runs: Path) -> Rows:
    """Rows of one student."""
    model = load_student(train(method, seed, runs)).model
    order = "ancestral" if method.endswith("_independent") else "spread"
    fewer, level = 1 if method == SHIPPED else FEWER, target(record)
    return {f"{method}/{seed}/{k}": row(curve(model, k, order, level, NUM[k] // fewer), record) for k in calls}


def teacher_rows(record: Record, calls: Sequence[int]) -> Rows:
    """The teacher's own samplers at the students' calls, and its ancestral sampler at as many calls as tokens."""
    model, rows = domain().teacher(), record["rows"]
    full, few = f"teacher: ancestral/-/{FULL}", "teacher: ancestral/-/8"
    if full not in rows:
        rows[full] = row(curve(model, FULL, "ancestral", None, NUM[FULL]), record)
    if few not in rows:
        rows[few] = row(curve(model, 8, "ancestral", target(record), NUM[8]), record)
    rows |= {key: row(stored(rows[key]), record) for key in (full, few)}  # now that both are there
    wanted = {f"teacher: {name}/-/{k}": (name, k) for name in SAMPLERS for k in calls}
    for key, (name, k) in wanted.items():
        if key not in rows:
            rows[key] = row(curve(model, k, name, target(record), NUM[k]), record)
    return {key: r for key, r in rows.items() if key.startswith("teacher: ")}


def target(record: Record) -> float:
    """The entropy that all rows are read at: the teacher's own, at as many calls as tokens."""
    return stored(record["rows"][f"teacher: ancestral/-/{FULL}"]).points[0].x


def row(c: Curve, record: Record) -> dict[str, Any]:
    """A curve with what is read off it."""
    points = [asdict(p) | {"rows": p.rows.round(6).tolist(), "x": p.x, "y": p.y} for p in c.points]
    made: dict[str, Any] = {"name": c.name, "points": points}
    rows = record["rows"]
    full, few = (rows.get(f"teacher: ancestral/-/{k}") for k in (FULL, 8))
    if full:
        made["log_perplexity"] = asdict(c.at(target(record)))
    if full and few:
        made["closed"] = asdict(gap_closed(c, stored(few), stored(full), target(record)))
    return made


def stored(found: dict[str, Any]) -> Curve:
    """The curve of a recorded row."""
    points = [Point(p["setting"], np.array(p["rows"]), p["calls"], p["seconds"]) for p in found["points"]]
    return Curve(found["name"], tuple(points))


def check(recorded: Rows, again: Rows) -> bool:
    """Print both; whether every new value lies within the recorded interval."""
    pairs = [(f"{key:24}", recorded[key]["log_perplexity"], r["log_perplexity"]["value"]) for key, r in again.items()]
    return all([inside(*pair) for pair in pairs])


def text(record: Record) -> str:
    """The table as Markdown: a line a method and number of calls, means over seeds, lowest and highest in brackets."""
    head = ["method", "calls", "seeds", "n", "log judge-perplexity at the teacher's entropy", "share of the gap closed"]
    lines = []
    for (method, k), rows in grouped(record):
        found = [[r[name] for r in rows if name in r] for name in ("log_perplexity", "closed")]
        cells = [cell([m["value"] for m in f], [f[0]["low"], f[0]["high"]] if f else ()) for f in found]
        lines.append((method, k, len(rows), len(rows[0]["points"][0]["rows"]), *cells))
    return markdown(head, lines)


def picture(record: Record) -> None:
    """The curves of PICTURE that are there."""
    axes, shown = domain().curve_axes, {name: key for name, key in PICTURE.items() if key in record["rows"]}
    curves = [replace(stored(record["rows"][key]), name=name) for name, key in shown.items()]
    plot(curves, axes, {"the teacher's entropy": target(record)}, TEXT.with_name("text_curves.png"))


def settings() -> dict[str, Any]:
    """What all rows of a record have in common."""
    digest = hashlib.sha256(SHIPPED_TEACHER.read_bytes()).hexdigest()
    return {"teacher_sha256": digest, "budget": BUDGET, "num": {str(k): n for k, n in NUM.items()}, "seed": EVAL_SEED}


def make(method: str, seed: int, calls: Sequence[int], record: Record, runs: Path) -> Rows:
    """The missing rows of the teacher, or those of one student."""
    return teacher_rows(record, calls) if method == "teacher" else student_rows(method, seed, record, calls, runs)


def table() -> Table:
    """What `results_table` needs to know."""
    return Table(
        path=RECORD, runs=RUNS, settings=settings(), methods=tuple(METHODS), seeds=SEEDS, calls=CALLS, make=make,
        check=check, text=text, saved=picture,
    )  # fmt: skip


if __name__ == "__main__":
    table().main(__doc__)
