"""Alignment TM against TM-align, clusters, novelty and hydrogen-bond secondary structure: known answers."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from xdistill import rng
from xdistill.domains.protein import clusters, novelty
from xdistill.domains.protein.alignment import best_alignment, likeness, structural_tm
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.data import random_rotations
from xdistill.domains.protein.dssp import dssp, hydrogen_bonds
from xdistill.domains.protein.dssp import metrics as dssp_metrics
from xdistill.domains.protein.metrics import EXTRA, evaluate_chains

BACKBONES = Path(__file__).parents[2] / "fixtures" / "protein" / "backbones.npz"
# Embedded chains i, j and TM-align's score normalised by the longer (tmtools 0.3.0).
REFERENCE = [(4244, 4198, 0.4879), (1962, 1800, 0.7070), (632, 3824, 0.4166), (118, 3443, 0.5037)]


def chain(i: int) -> np.ndarray:
    return load_embedded("all").coords(i).copy()


def moved(x: np.ndarray, key: str) -> np.ndarray:
    return x @ random_rotations(1, rng.generator(key)).numpy()[0].T + 3


def test_alignment_tm_reaches_tm_align() -> None:
    scores = structural_tm([(chain(i), chain(j)) for i, j, _ in REFERENCE])
    assert scores.numpy() == pytest.approx([s for *_, s in REFERENCE], abs=0.02)


def test_a_fragment_is_found_inside_its_chain() -> None:
    whole = chain(1)[:100]
    part = moved(whole[30:80], "fragment")
    gap = np.concatenate([whole[:35], whole[50:]])  # a deletion of 15 residues
    by_part, by_whole, deleted = structural_tm([(part, whole), (part, whole), (gap, whole)], [50, 100, 85]).tolist()
    assert by_part == pytest.approx(1, abs=1e-3)
    assert by_whole == pytest.approx(0.5, abs=1e-3)
    assert deleted == pytest.approx(1, abs=1e-3)


def test_alignment_tm_of_a_pair_does_not_depend_on_its_batch() -> None:
    pairs = [(chain(i), chain(j)) for i, j, _ in REFERENCE[:3]]
    together, alone = structural_tm(pairs), torch.cat([structural_tm([p]) for p in pairs])
    assert together.numpy() == pytest.approx(alone.numpy(), abs=5e-3)  # padding changes which starts tie


def test_best_alignment_by_enumeration() -> None:
    similarity = torch.rand(20, 4, 5, generator=rng.generator("dp"))

    def best(s: torch.Tensor, gap: float) -> float:
        n, m = s.shape
        top = {(i, j): float(s[i, j]) for i in range(n) for j in range(m)}
        for i in range(n):
            for j in range(m):
                for k in range(i):
                    for l in range(j):
                        cost = 0 if (i - k, j - l) == (1, 1) else gap
                        top[i, j] = max(top[i, j], top[k, l] - cost + float(s[i, j]))
        return max(top.values())

    for gap in (0.0, 0.6):
        partner = best_alignment(similarity, gap)
        for s, p in zip(similarity, partner.tolist(), strict=True):
            used = [(i, j) for i, j in enumerate(p) if j >= 0]
            breaks = sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in pairwise(used))
            assert all(a[1] < b[1] for a, b in pairwise(used))
            assert float(sum(s[i, j] for i, j in used)) - gap * breaks == pytest.approx(best(s, gap), abs=1e-5)


def test_clusters_of_copies_and_of_different_folds() -> None:
    base = [chain(i)[:60] for i in (1, 300, 900)]
    copies = [moved(base[k % 3], f"copy {k}") for k in range(6)]
    found = clusters.metrics(copies)
    assert found["tm_clusters"].value == pytest.approx(0.5)
    assert found["tm_clusters"].n == 6
    assert clusters.metrics([*copies, np.full((50, 3), np.nan)])["tm_clusters"].n == 6
    assert clusters.metrics(copies[:1]) == {}


def test_greedy_clusters_do_not_chain() -> None:
    line = np.array([[1, 0.6, 0.1, 0], [0.6, 1, 0.6, 0.1], [0.1, 0.6, 1, 0.6], [0, 0.1, 0.6, 1]])
    assert clusters.greedy_clusters(line).tolist() == [1, 1, 1, 3]


def test_a_known_chain_is_not_novel() -> None:
    reference = load_embedded("train").select(range(0, 400, 2))
    inside, longer = moved(reference.coords(7), "known"), moved(reference.coords(11)[5:-5], "part")
    walk = np.cumsum(0.22 * np.random.default_rng(0).normal(size=(80, 3)), axis=0)
    best = novelty.max_tm([inside, longer, walk], reference, top=5)
    assert best[:2] == pytest.approx([1, 1], abs=0.01)
    assert best[2] < 0.4
    assert novelty.max_tm([walk], reference, top=5)[0] == best[2], "the batch does not matter"
    found = novelty.metrics([inside, walk], reference=reference)["novelty"]
    assert found.n == 2
    assert found.low < found.value < found.high


def test_likeness_ranks_a_partner_that_shares_a_part() -> None:
    query, others = chain(632), [chain(i) for i in (1, 300, 900, 1962, 4244)]
    partner = np.concatenate([others[0][:40], moved(query[:-20], "likeness")])
    scores = likeness([(query, y) for y in (partner, *others)], [len(query)] * 6).numpy()
    assert scores.argmax() == 0
    turned = likeness([(moved(query, "turn"), partner)], [len(query)])
    assert turned.item() == pytest.approx(scores[0], abs=1e-3)


def test_dssp_of_deposited_backbones() -> None:
    letters = {**dict.fromkeys("HGI", "a"), **dict.fromkeys("EB", "b")}
    with np.load(BACKBONES) as z:
        for k, least in enumerate((0.98, 0.99, 0.92)):
            atoms, stored = z[f"atoms{k}"] / 100, z[f"dssp{k}"].tobytes().decode()
            want = [letters.get(s, "c") for s in stored]
            assert np.mean([a == b for a, b in zip(dssp(atoms), want, strict=True)]) >= least
            assert not hydrogen_bonds(atoms)[:, 0].any()  # the first residue has no hydrogen to give
            turned = atoms * [1, 1, -1]
            assert dssp(turned) == dssp(atoms)  # energies are distances: handedness is for other metrics


def test_dssp_metric_of_traces() -> None:
    with np.load(BACKBONES) as z:
        helical = z["atoms0"][:, 1] / 1000
    found = dssp_metrics([helical, np.full((9, 3), np.nan)])
    assert found["dssp_helix"].value > 0.5
    assert found["dssp_helix"].n == 1
    assert dssp_metrics([]) == {}


def test_compact_and_local_chains_are_told_apart() -> None:
    helix = np.stack(
        [0.23 * np.cos(np.arange(60) * 1.745), 0.23 * np.sin(np.arange(60) * 1.745), 0.15 * np.arange(60)], 1
    )
    long, real = evaluate_chains([helix]), evaluate_chains([chain(i) for i in range(30)], tm_chains=1)
    assert long["rg"].value == pytest.approx(1.5 * np.sqrt((60**2 - 1) / 12), rel=0.02)  # a rod of rise 1.5 A
    assert long["contact_order"].value == pytest.approx(3.5 / 60, abs=0.5 / 60)  # contacts i+3 and i+4 alone
    assert real["contact_order"].low > 2 * long["contact_order"].value
    assert real["clashes"].value < 0.1
    assert EXTRA["clusters"]([], 0) == EXTRA["novelty"]([], 0) == {}
