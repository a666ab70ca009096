"""Placing the calls of a sampler: against brute force where Euler is the student, and from search to sampler."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xdistill.cli import main
from xdistill.cli.student import options
from xdistill.config import compose
from xdistill.domains.toy import ToyDomain
from xdistill.domains.toy.teacher import MixtureTeacher
from xdistill.errors import UsageError, XDistillError
from xdistill.models import Cond
from xdistill.objectives.interval import Interval
from xdistill.process import Linear
from xdistill.run import fit
from xdistill.state import Field
from xdistill.step_search import DevSet, Found, domain_metric, paired_error, search, store
from xdistill.student import Loaded, load_student, searched_times, steps_file

DOMAIN = ToyDomain({"task": "gaussian"})
TEACHER = MixtureTeacher(Linear(), torch.tensor([[1.5, -0.5]]), 0.3)


class Euler(nn.Module):
    """A flow taken for a flow map: its jumps are exact nowhere but where the velocity does not change."""

    kind, flow_map, time_scale = TEACHER.kind, True, 1.0

    def forward(self, x_t: Field, t: Tensor, cond: Cond, *, r: Tensor | None = None) -> Field:
        return TEACHER(x_t, t, cond)


def euler(path: Path = Path("none")) -> Loaded:
    return Loaded(DOMAIN, Interval(Linear()), Euler(), {"sampler": {}}, {}, path)


def metric() -> Any:
    return paired_error(euler(), TEACHER, DevSet.plan(DOMAIN, 24, batch=10), calls=400)


def test_two_calls_are_placed_as_brute_force_does() -> None:
    score = metric()
    grid = torch.linspace(0.01, 0.99, 99).tolist()
    best = min(grid, key=lambda t: score([1.0, t, 0.0]))
    found = search(score, 2, tolerance=0.005)
    assert abs(found.times[1] - best) < 0.015
    assert found.value == score(found.times)
    assert found.value < 0.9 * found.equal
    assert found.equal == score([1.0, 0.5, 0.0])


def test_three_calls_come_near_the_best_of_a_grid() -> None:
    score = metric()
    grid = [round(0.05 * k, 2) for k in range(1, 20)]
    pairs = [(a, b) for a, b in itertools.product(grid, grid) if a > b]
    best = min(score([1.0, a, b, 0.0]) for a, b in pairs)
    found = search(score, 3, sweeps=6)
    assert found.value <= 1.02 * best
    assert list(found.times) == sorted(found.times, reverse=True)


def test_the_error_is_paired_and_vanishes_with_many_calls() -> None:
    score = metric()
    few, many = (score(torch.linspace(1, 0, n + 1).tolist()) for n in (4, 64))
    assert many < 0.1 * few
    dev = DevSet.plan(DOMAIN, 24, batch=7)
    again = paired_error(euler(), TEACHER, dev, calls=400)([1.0, 0.4, 0.0])
    assert again == pytest.approx(score([1.0, 0.4, 0.0]), rel=1e-5), "sample i starts from the noise of (seed, i)"


def test_the_best_that_was_tried_is_kept() -> None:
    """Of a score with several minima, and of one that ends in no number."""
    calls = []

    def bumpy(times: Any) -> float:
        calls.append(tuple(times))
        return float("nan") if times[1] < 0.2 else abs(times[1] - 0.5) + 0.3 * (abs(times[1] - 0.8) > 0.01)

    found = search(bumpy, 2)
    values = [bumpy(t) for t in set(calls)]
    assert found.value == min(v for v in values if v == v)
    assert found.value <= found.equal
    assert found.tried == len(set(calls))
    assert search(lambda times: 1.0, 3).times == (1.0, 0.6667, 0.3333, 0.0), "nothing to gain moves nothing"


def test_a_search_finer_than_its_digits_ends() -> None:
    found = search(lambda times: (times[1] - 0.432) ** 2, 2, tolerance=1e-6)
    assert found.times[1] == pytest.approx(0.432, abs=1e-4)


def test_what_cannot_be_searched() -> None:
    with pytest.raises(UsageError, match="no time to place"):
        search(lambda times: 1.0, 1)
    with pytest.raises(XDistillError, match="no samples to judge"):
        search(lambda times: float("nan"), 2)
    with pytest.raises(UsageError, match="did you mean 'mmd2'"):
        domain_metric(euler(), "mmd3", DevSet.plan(DOMAIN, 8))([1.0, 0.5, 0.0])


def test_a_metric_of_the_domain() -> None:
    score = domain_metric(euler(), "mmd2", DevSet.plan(DOMAIN, 64))
    assert score(torch.linspace(1, 0, 33).tolist()) < score([1.0, 0.02, 0.0])


def test_times_are_of_one_checkpoint_and_one_number_of_calls(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = run / "checkpoints" / "step_10"
    path.mkdir(parents=True)
    loaded = euler(path)
    assert store(loaded, Found((1.0, 0.3, 0.0), 0.1, 0.2, 9), {"seed": 0}) == run / "steps.json"
    store(loaded, Found((1.0, 0.7, 0.2, 0.0), 0.1, 0.2, 9), {})
    assert searched_times(loaded, 2) == [1.0, 0.3, 0.0]
    assert searched_times(loaded, 3) == [1.0, 0.7, 0.2, 0.0]
    assert searched_times(loaded, 4) is None
    other = euler(run / "checkpoints" / "step_20")
    assert searched_times(other, 2) is None
    store(other, Found((1.0, 0.4, 0.0), 0.1, 0.2, 9), {})
    assert set(json.loads(steps_file(path).read_text())["calls"]) == {"2"}
    steps_file(path).write_text("{")
    with pytest.raises(XDistillError, match="damaged"):
        searched_times(loaded, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steps") / "run"
    small = ["train.steps=2", "data.batch=8", "eval=none", "strategy.threads=1", "logger.progress=false"]
    return fit(compose(["domain=toy", "objective=splitmeanflow", "objective.steps=3", *small, f"out={out}"]))


def test_the_verb_places_and_the_sampler_follows(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = options(load_student(run), 3)
    assert before["times"] is None
    assert main(["search-steps", "domain=toy", f"ckpt={run}", "num=8", "teacher_steps=15", "tolerance=0.1"]) == 0
    said, kept = capsys.readouterr().out, json.loads((run / "steps.json").read_text())
    times = kept["calls"]["3"]["times"]
    assert str(run / "steps.json") in said
    assert "sampler.times=[1, " in said
    assert kept["calls"]["3"]["value"] <= kept["calls"]["3"]["equal"]
    loaded = load_student(run)
    assert options(loaded, 0)["times"] == options(loaded, 3)["times"] == times
    assert options(loaded, 2)["times"] is None, "of another number of calls"
    loaded.config["sampler"]["times"] = [1.0, 0.9, 0.1, 0.0]
    assert options(loaded, 3)["times"] == [1.0, 0.9, 0.1, 0.0], "what a run configured wins"
    assert main(["generate", "domain=toy", f"ckpt={run}", "num=2", f"out={tmp_path / 'made'}"]) == 0


def test_requests_that_cannot_be_met(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, said in (
        (["steps=1"], "no time to place"),
        (["metric=nothing"], "unknown metric 'nothing'"),
        (["tolerance=0"], "expected 0 to 1"),
    ):
        assert main(["search-steps", "domain=toy", f"ckpt={run}", "num=4", *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(["search-steps", "domain=toy"]) == 2


def test_configured_times_are_checked_before_training() -> None:
    args = ["domain=toy", "objective=splitmeanflow", "eval=none", "train.steps=1", "out=never"]
    with pytest.raises(UsageError, match="expected 3 falling numbers"):
        fit(compose([*args, "sampler.times=[1,0.2,0.5]"]))
    with pytest.raises(UsageError, match="expected 5 falling numbers"):
        fit(compose([*args, "sampler.times=[1,0.5,0]", "sampler.steps=4"]))
    with pytest.raises(UsageError, match=r"sampler\.times is of flow maps"):
        fit(compose(["domain=toy", "objective=sid", "sampler.times=[1,0]", "out=never"]))
