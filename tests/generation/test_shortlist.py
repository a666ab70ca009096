"""The shortlist: the best first, no two alike, the same whatever order the manifest has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from xdistill.domains.protein import ProteinDomain, neighbours
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.neighbours import FoldNeighbours
from xdistill.domains.toy import ToyDomain
from xdistill.errors import UsageError
from xdistill.generation import manifest
from xdistill.generation.shards import shard_name, write_shard
from xdistill.generation.shortlist import Choice, check, greedy, ranked, shortlist

Array = np.ndarray
TOY = ToyDomain({})
NUMBER = 300


@pytest.fixture(scope="module")
def points() -> list[Array]:
    return list(np.random.default_rng(0).normal(size=(NUMBER, 1, 2)).astype(np.float32))


def rows_of(points: list[Array], order: Array | None = None) -> pa.Table:
    """A manifest: every seventh design fell, radii are rounded so that many are equal."""
    order = np.arange(NUMBER) if order is None else order
    table = pa.table(
        {
            "index": range(NUMBER),
            "file": ["shard"] * NUMBER,
            "passed": [i % 7 != 0 for i in range(NUMBER)],
            "radius": [round(float(np.linalg.norm(x)), 1) for x in points],
        }
    )
    return table.take(pa.array(order))


def choose(points: list[Array], choice: Choice, order: Array | None = None) -> list[int]:
    ranking = ranked(rows_of(points, order), TOY, choice.by)
    return greedy(ranking, lambda block: {i: points[i] for i in block}, TOY, choice, "csv")[0].kept


def test_ranking_is_best_first_with_ties_by_index(points: list[Array]) -> None:
    rows = rows_of(points)
    order = ranked(rows, TOY, "radius")
    radius = rows["radius"].to_pylist()
    keys = [(radius[i], i) for i in order]
    assert keys == sorted(keys)
    assert sorted(order) == [i for i in range(NUMBER) if i % 7]
    assert len({radius[i] for i in order}) < len(order)  # there are ties


def test_higher_is_better_where_the_domain_says_so(points: list[Array]) -> None:
    rows = rows_of(points).append_column("side", pa.array([float(x[0, 0]) for x in points]))
    side = [points[i][0, 0] for i in ranked(rows, TOY, "side")]
    assert side == sorted(side, reverse=True)


def test_missing_values_and_files_are_no_candidates() -> None:
    rows = pa.table(
        {
            "index": range(5),
            "file": ["a", None, "a", "a", "a"],
            "passed": [True] * 5,
            "radius": [3.0, 1.0, None, float("nan"), 2.0],
        }
    )
    assert ranked(rows, TOY, "radius") == [4, 0]


@pytest.mark.parametrize("diversity", [0.3, 0.5, 0.9, 0.99])
def test_no_two_are_alike_and_nothing_is_left_out_without_reason(points: list[Array], diversity: float) -> None:
    order = ranked(rows_of(points), TOY, "radius")
    kept = choose(points, Choice(NUMBER, "radius", diversity))
    assert 1 < len(kept) < len(order)
    for place, i in enumerate(kept):
        assert all(TOY.similarity(points[i], points[j]) <= diversity for j in kept[:place])
    for place, i in enumerate(order):
        better = [j for j in order[:place] if j in kept]
        assert i in kept or any(TOY.similarity(points[i], points[j]) > diversity for j in better)


def test_a_smaller_list_is_the_head_of_a_larger_one(points: list[Array]) -> None:
    whole = choose(points, Choice(NUMBER, "radius", 0.8))
    assert choose(points, Choice(5, "radius", 0.8)) == whole[:5]
    assert choose(points, Choice(5, "radius")) == ranked(rows_of(points), TOY, "radius")[:5]


def test_the_order_of_the_manifest_does_not_matter(points: list[Array]) -> None:
    shuffled = np.random.default_rng(1).permutation(NUMBER)
    choice = Choice(20, "radius", 0.8)
    assert choose(points, choice) == choose(points, choice, shuffled)


def test_only_as_many_are_read_as_needed(points: list[Array]) -> None:
    order, blocks = [i % NUMBER for i in range(3000)], []

    def among(block: list[int]) -> dict[int, Array]:
        blocks.append(len(block))
        return {i: points[i] for i in block}

    chosen, _ = greedy(order, among, TOY, Choice(10, "radius"), "csv")  # type: ignore[arg-type]
    assert (len(chosen.kept), chosen.examined, len(blocks)) == (10, 10, 1)


@pytest.mark.parametrize(
    ("choice", "columns", "message"),
    [
        (Choice(0, "length"), (), "keep=0: expected at least 1"),
        (Choice(5, "mpn"), (), "did you mean 'mpnn'"),
        (Choice(5, "mpnn"), ("valid_bonds",), "add mpnn to filter="),
        (Choice(5, "max_tm"), (), "add novelty to filter="),
        (Choice(5, "length", 1.5), (), "expected a similarity between 0 and 1"),
    ],
)
def test_bad_choices_are_said_before_anything_runs(choice: Choice, columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(choice, ProteinDomain({}), columns)


def test_every_ranking_is_good_with_the_filter_that_measures_it() -> None:
    domain = ProteinDomain({})

    def good(by: str, *columns: str) -> bool:
        try:
            check(Choice(5, by, 0.5), domain, columns)
        except UsageError:
            return False
        return True

    assert all(good(by, by) for by in domain.ranking)
    without = {by for by in domain.ranking if good(by)}
    assert "helix" in without
    assert not {"mpnn", "max_tm"} & without


def rotated(x: Array, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    return (x @ turn.T + rng.normal(size=3) + 0.03 * rng.normal(size=x.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def folds() -> list[Array]:
    """Real chains of 40 to 50 residues, no two of TM-score above 0.5."""
    chains, found = load_embedded("val"), FoldNeighbours(0.5)
    for i in np.flatnonzero(chains.lengths < 50)[:8]:
        if not found.has_near(chains.coords(int(i)).copy()):
            found.add(chains.coords(int(i)).copy())
    return found.samples[:3]


def test_folds_are_told_apart(folds: list[Array]) -> None:
    domain = ProteinDomain({})
    near = domain.neighbours(0.5)
    assert not near.has_near(folds[0])
    for fold in folds[:2]:
        near.add(fold)
    assert near.has_near(rotated(folds[1], 1))
    assert near.has_near(rotated(folds[0], 2)[2:])
    assert not near.has_near(folds[2])
    assert not near.has_near(folds[0][: len(folds[0]) // 2 - 1])  # TM-scores are at most the ratio of the lengths
    assert domain.similarity(folds[0], folds[2]) == domain.similarity(folds[2], folds[0]) < 0.5
    assert domain.similarity(folds[0], rotated(folds[0], 3)) > 0.5


def test_every_likely_pair_is_aligned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alignments are counted, not made: 150 of them would take seconds."""
    seen: list[int] = []

    def count(pairs: list[tuple[Array, Array]]) -> torch.Tensor:
        seen.extend(id(b) if b is not query else id(a) for a, b in pairs)
        return torch.zeros(len(pairs))

    monkeypatch.setattr(neighbours, "structural_tm", count)
    query = np.cumsum(0.2 * np.ones((30, 3)), axis=0).astype(np.float32)
    for number in (1, 2, 5, 6, 21, 22, 85, 86, 150):
        near = FoldNeighbours(0.5)
        for i in range(number):
            near.add(query + np.float32(1e-3 * i))
        seen.clear()
        assert not near.has_near(query)
        assert sorted(seen) == sorted(map(id, near.samples))


def test_written_shortlist(folds: list[Array], tmp_path: Path) -> None:
    """Designs 0-2 are three folds, 3-5 noisy copies that rank better: they win, and their originals are left out."""
    domain, samples = ProteinDomain({}), [*folds, *[rotated(x, 7) for x in folds], np.full((44, 3), np.nan)]
    for number in (0, 1):
        mine = range(number, 7, 2)
        write_shard(tmp_path / shard_name(domain, number), domain, [samples[i] for i in mine], mine)
    rows = pa.table(
        {
            "index": range(7),
            "file": [shard_name(domain, i % 2) for i in range(7)],
            "passed": [True] * 7,
            "mpnn": [2.4, 2.3, 2.2, 2.1, 1.9, 2.0, 1.0],
            "sha256": ["-"] * 7,
        }
    )
    for _ in range(2):
        chosen = shortlist(tmp_path, rows, domain, Choice(5, "mpnn", 0.5))
        assert chosen.kept == [4, 5, 3]
        assert (chosen.examined, chosen.alike, chosen.unusable) == (7, 3, 1)
        written = manifest.read(tmp_path / "shortlist.parquet").to_pydict()
        assert written["rank"] == [1, 2, 3]
        assert written["index"] == [4, 5, 3]
        assert written["mpnn"] == [1.9, 2.0, 2.1]
        for index, file in zip(written["index"], written["file"], strict=True):
            assert (tmp_path / file).read_bytes() == domain.encode(samples[index], "pdb")
        (tmp_path / "shortlist" / "stale.pdb").write_text("of an earlier shortlist")
    smaller = shortlist(tmp_path, rows, domain, Choice(1, "mpnn", 0.5), "cif")
    assert "1 of 7 samples by mpnn" in smaller.line(Choice(1, "mpnn", 0.5))
    assert [p.name for p in (tmp_path / "shortlist").iterdir()] == ["sample_000004.cif"]
