"""The speech results table: objectives side by side on the shipped teacher at 1, 2 and 4 calls, and its own samplers.

    python tools/speech_results.py                               # whatever docs/speech_table.json lacks
    python tools/speech_results.py --method cmt --seed 0         # the rows of one student
    python tools/speech_results.py --method cmt --seed 0 --calls 2 --check  # train and measure again, compare

`cmt` is the recipe of `xdistill fit domain=speech`, the shipped student, with three seeds (data order, noise and
trajectories); the other objectives have `SHORT` macro-steps each and one seed. `paired` is the root mean square
difference, in nats of mel, to the teacher's guided 32-step sample from the same noise; words are those of Whisper
tiny.en, opinion scores of distillMOS, both through Griffin-Lim, on held-out sentences with their recorded durations.
Runs stay in runs/speech_results and are continued when interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from results_table import Record, Rows, Table, cell, grouped, inside, markdown

from xdistill.config import compose
from xdistill.domain import Domain
from xdistill.domains.speech.teacher import SHIPPED_TEACHER
from xdistill.evaluation import Draw, Drawn, draw, student_sampler, teacher_sampler
from xdistill.guidance import Guided
from xdistill.run import fit
from xdistill.sections import build_domain
from xdistill.student import load_student

RECORD, RUNS = Path("docs/speech_table.json"), Path("runs/speech_results")
CALLS, SEEDS, NUM, EVAL_SEED = (1, 2, 4), (0, 1, 2), 32, 5
SHIPPED, SHORT = "cmt", 300
JUDGES = ("wer", "mos")
SHOWN = ("paired", "mcd", "variance_ratio", "cer", "wer", "mos")
SPEECH = ["domain=speech", "domain.vocoder=griffin_lim"]
COMMON = [
    *SPEECH,
    "train.max_minutes=0",
    "eval=none",
    "strategy.threads=1",
    "logger.progress=false",
    "resume=auto",
]
BUDGET = [f"train.steps={SHORT}", f"optim.student.cycle={SHORT}"]
METHODS: dict[str, list[str]] = {
    SHIPPED: ["objective=cmt"],
    "splitmeanflow": ["objective=splitmeanflow", *BUDGET],
    "intmeanflow": ["objective=intmeanflow", *BUDGET],
    "mcd": ["objective=consistency", *BUDGET],
    "meanflow": ["objective=meanflow", *BUDGET],
    "cmt_short": ["objective=cmt", "objective.trajectories=200", *BUDGET],
    "shortcut": ["objective=shortcut", *BUDGET],
    "alphaflow": ["objective=alphaflow", f"objective.lam.end={SHORT}", *BUDGET],
    "improved_meanflow": ["objective=improved_meanflow", *BUDGET],
}


def train(method: str, seed: int, runs: Path) -> Path:
    """The run folder of one student, trained if it is not there yet."""
    out = runs / f"{method}_s{seed}"
    fit(compose([*METHODS[method], *COMMON, f"seed={seed}", f"out={out}"]))
    return out


@cache
def _domain() -> Domain:
    return build_domain(compose(SPEECH))


@cache
def _teacher(guided: bool) -> Any:
    scale = compose(["domain=speech"]).guidance.scale
    return Guided(_domain().teacher(), scale) if guided else _domain().teacher()


@cache
def _reference() -> Drawn:
    """The guided teacher's samples of 32 steps; drawn once, kept beside the runs."""
    domain, known = _domain(), json.dumps(settings())
    path = RUNS / f"reference_{hashlib.sha256(known.encode()).hexdigest()[:12]}{domain.packed_suffix}"
    if not path.exists():
        drawn = _draw(domain, _teacher(True), teacher_sampler(domain.teacher_samplers()["reference"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(domain.pack(drawn.samples, range(NUM)))
        path.with_suffix(".json").write_text(json.dumps({"calls": drawn.calls, "seconds": drawn.seconds}))
    cost = json.loads(path.with_suffix(".json").read_text())
    return Drawn(list(domain.unpack(path.read_bytes()).values()), cost["calls"], cost["seconds"])


def _draw(domain: Domain, model: Any, sampler: Draw) -> Drawn:
    return draw(domain, model, sampler, NUM, seed=EVAL_SEED, batch_size=8)


def row(domain: Domain, drawn: Drawn, *, judged: bool) -> dict[str, Any]:
    """What is measured of one source's samples; `judged` by those that listen, too, which takes a minute."""
    found = {**domain.metrics(drawn.samples), **domain.paired_metrics(drawn.samples, _reference().samples)}
    for name in JUDGES if judged else ():
        found |= domain.extra_metrics()[name](drawn.samples, 0)
    metrics = {k: asdict(m) for k, m in found.items()}
    return {"calls": drawn.calls, "seconds": drawn.seconds, "n": NUM, "metrics": metrics}


def student_rows(method: str, seed: int, calls: Sequence[int], runs: Path) -> Rows:
    """Rows of one student."""
    loaded = load_student(train(method, seed, runs))
    rows = {}
    for k in calls:
        sampler = student_sampler(loaded.objective, steps=k)
        drawn = _draw(loaded.domain, loaded.model, sampler)
        rows[f"{method}/{seed}/{k}"] = row(loaded.domain, drawn, judged=method == SHIPPED or k == 2)
    return rows


def teacher_rows(calls: Sequence[int]) -> Rows:
    """The teacher's samplers with guidance (two network calls a step) and without; recordings are the ceiling."""
    domain, rows = _domain(), {}
    samplers = domain.teacher_samplers()
    for guided in (True, False):
        said = "guided" if guided else "unguided"
        for k in calls:
            for name, sampler in {"sway": samplers["reference"], "equal": samplers["euler"]}.items():
                if k > 1 or name == "equal":  # one step is one step
                    drawn = _draw(domain, _teacher(guided), teacher_sampler(sampler, k))
                    rows[f"teacher: {said}, {name}/-/{k}"] = row(domain, drawn, judged=guided and name == "equal")
        if set(calls) == set(CALLS):
            full = _reference() if guided else _draw(domain, _teacher(False), teacher_sampler(samplers["reference"]))
            rows[f"teacher: {said}, sway/-/32"] = row(domain, full, judged=True)
    if set(calls) == set(CALLS):
        real = domain.reference_samples(NUM, EVAL_SEED)
        rows["teacher: none, the recordings/-/0"] = row(domain, Drawn(real, 0, 0.0), judged=True)
    return rows


def make(method: str, seed: int, calls: Sequence[int], record: Record, runs: Path) -> Rows:
    """Rows of the teacher's samplers, or of one student."""
    return teacher_rows(calls) if method == "teacher" else student_rows(method, seed, calls, runs)


def check(recorded: Rows, again: Rows) -> bool:
    """Print both; whether every new value lies within the recorded interval."""
    good = True
    for key, found in again.items():
        for name in (name for name in SHOWN if name in found["metrics"]):
            good &= inside(f"{key:28} {name:14}", recorded[key]["metrics"][name], found["metrics"][name]["value"])
    return good


def ratio(record: Record, rows: Sequence[dict[str, Any]], calls: int) -> list[float]:
    """Paired error over that of the guided teacher's better sampler at as many steps."""
    own = [r for key, r in record["rows"].items() if key.startswith("teacher: guided") and key.endswith(f"/{calls}")]
    best = min((r["metrics"]["paired"]["value"] for r in own), default=float("nan"))
    return [r["metrics"]["paired"]["value"] / best for r in rows] if best else []


def text(record: Record) -> str:
    """The table as Markdown: mean over seeds with their range, of one seed the bootstrap interval over sentences."""
    lines = []
    for (method, k), rows in grouped(record):
        cells = []
        for name in SHOWN:
            found = [r["metrics"][name] for r in rows if name in r["metrics"]]
            cells.append(cell([m["value"] for m in found], (found[0]["low"], found[0]["high"]) if found else ()))
        lines.append((method, k, f"{rows[0]['calls']:g}", len(rows), cell(ratio(record, rows, k)), *cells))
    return markdown(["method", "steps", "network calls", "seeds", "paired / teacher's", *SHOWN], lines)


def settings() -> dict[str, Any]:
    """What all rows of a record have in common."""
    digest = hashlib.sha256(SHIPPED_TEACHER.read_bytes()).hexdigest()
    return {"teacher_sha256": digest, "guidance": compose(["domain=speech"]).guidance.scale, "short": SHORT, "n": NUM}


def table() -> Table:
    """What `results_table` needs to know."""
    return Table(
        path=RECORD, runs=RUNS, settings=settings(), methods=tuple(METHODS), seeds=SEEDS, calls=CALLS, make=make,
        check=check, text=text, indent=1,
    )  # fmt: skip


if __name__ == "__main__":
    table().main(__doc__)
