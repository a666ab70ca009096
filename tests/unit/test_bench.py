"""What `xdistill bench` says of quality and cost: verdicts, equal diversity, which calls and batches it takes."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from xdistill.bench import Clock, Setting, batches_of, calls_of, cost, verdict
from xdistill.curves import Axes
from xdistill.domain import Metric
from xdistill.domains.toy import ToyDomain
from xdistill.errors import UsageError
from xdistill.evaluation import Drawn
from xdistill.matched import MOST, Swept, enclosing, match

TEACHER = dict(value=0.6, low=0.5, high=0.7, n=32)


@pytest.mark.parametrize(
    ("better", "value", "said"),
    [
        ("high", 0.9, "ok"),
        ("high", 0.5, "ok"),
        ("high", 0.4, "misses by 0.1"),
        ("low", 0.1, "ok"),
        ("low", 0.75, "misses by 0.05"),
        ("none", 0.6, "ok"),
        ("none", 0.8, "misses by 0.1"),
        ("none", 0.4, "misses by 0.1"),
    ],
)
def test_verdict(better, value, said):
    student = Metric(value, value, value, 32, better)
    assert verdict(student, Metric(**TEACHER, better=better)) == said


def test_calls_of_any_step_students():
    assert calls_of("", SimpleNamespace(counts=(1, 4, 8, 16))) == [16, 8]
    assert calls_of("", SimpleNamespace(counts=(8,))) == [0]
    assert calls_of("4,1", SimpleNamespace(counts=(1, 4))) == [4, 1]
    for bad in ("a", "8,-1", "0"):
        with pytest.raises(UsageError, match="numbers of network calls"):
            calls_of(bad, SimpleNamespace(counts=(8,)))


def test_batches_are_those_of_the_domain_unless_given():
    assert batches_of("", SimpleNamespace(bench_batches=(8, 1))) == (8, 1)
    assert batches_of("4, 2", SimpleNamespace(bench_batches=(8, 1))) == [4, 2]
    with pytest.raises(UsageError, match="numbers of samples"):
        batches_of("0", SimpleNamespace(bench_batches=(8, 1)))


class Slow(nn.Module):
    """A network of 20 ms."""

    def forward(self, x):
        time.sleep(0.02)
        return x


def test_overhead_is_what_the_sampler_adds():
    """Two calls of 20 ms and 10 ms beside them are a quarter; a busy machine adds to both."""

    def sampler(model, batch, generators):
        time.sleep(0.01)
        return model(model(batch))

    setting = Setting((4,), 3, 0, 0, "fp32", torch.device("cpu"), {})
    found = cost(ToyDomain({}), Slow(), sampler, setting, 4, cold=True)
    assert found["calls"] == 2
    assert len(found["all_seconds"]) == 3
    assert found["seconds"] >= 0.05 / 4
    assert 0.15 < found["overhead"] < 0.6
    elements = ToyDomain({}).plan(range(4), 0).like.elements.double().mean()
    assert found["elements_per_second"] == pytest.approx(float(elements) / found["seconds"])


def test_a_clock_leaves_no_hooks():
    network = Slow()
    clock = Clock([network], torch.device("cpu"))
    network(torch.zeros(1))
    timed = clock.seconds
    assert timed >= 0.02
    clock.remove()
    network(torch.zeros(1))
    assert clock.seconds == timed


AXES = Axes("temperature", "entropy", "log perplexity")


def rows(samples):
    """Of samples (x, y): 50 tokens each."""
    x, y = np.array(samples).T
    return np.column_stack([x, np.ones(len(x)), 50 * y, np.full(len(x), 50.0)])


def source(name, kind, shift, slope=1.0, few=""):
    """x = 4 + slope (temperature - 1) and y = 2 x + shift, with as much noise in each; asked: temperatures drawn."""
    asked = []

    def draw(setting):
        asked.append(setting)
        noise = np.random.default_rng(1).normal(size=(40, 2)) * 0.01
        noise -= noise.mean(0)
        x = 4 + slope * (setting - 1) + (0 if kind == "teacher" else -0.1)
        return Drawn([(x + a, 2 * x + shift + b) for a, b in noise], 8, 0.1)

    return Swept(name, kind, 1.0, draw(1.0), draw, few), asked


def test_a_source_is_swept_until_it_encloses_the_teacher():
    swept, asked = source("student", "student", 0.5)
    curve = enclosing(swept, rows, 4.0)
    assert asked == [1.0, 1.08, 1.16]
    assert [p.setting for p in curve.points] == asked
    assert curve.at(4.0).value == pytest.approx(8.5)
    assert [p.setting for p in enclosing(swept, rows, 3.85).points] == [0.92, 1.0]
    assert len(enclosing(source("flat", "student", 0, slope=0.0)[0], rows, 4.0).points) == MOST


def test_verdicts_are_read_at_the_entropy_of_the_teacher():
    """There y is 9 for the teacher at 8 calls, 8 for the full one, 8.25 for the student, 8.1 for the rival."""
    sources = [
        source("teacher", "teacher", 0.0),
        source("student, 8 calls", "student", 0.25, few="teacher, 8 calls"),
        source("teacher, 8 calls", "few", 1.0),
        source("autoregressive", "rival", 0.1),
        source("cold", "student", 0.0, slope=0.0, few="teacher, 8 calls"),
    ]
    found, lines = match([s for s, _ in sources], rows, AXES, seed=0)
    assert sources[0][1] == [1.0], "the teacher is what the others are compared with"
    student = found["students"]["student, 8 calls"]
    assert student["gap_closed"]["value"] == pytest.approx(0.75)
    better = student["better_than"]
    assert set(better) == {"teacher, 8 calls", "autoregressive"}
    assert better["teacher, 8 calls"]["value"] == pytest.approx(0.75)
    assert better["autoregressive"]["value"] == pytest.approx(-0.15)
    assert "wins over teacher, 8 calls by 0.750" in lines[0]
    assert "loses to autoregressive by -0.150" in lines[0]
    assert lines[1].startswith("cold")
    assert lines[1].endswith("out of reach of its temperature")
