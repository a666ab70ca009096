"""What `xdistill bench` says of quality: verdicts, and which numbers of calls it takes by itself."""

from types import SimpleNamespace

import pytest

from xdistill.bench import calls_of, verdict
from xdistill.domain import Metric
from xdistill.errors import UsageError

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
