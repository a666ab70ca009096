"""Metrics: the known statistics of real chains, exact cases, invariances, and bad input."""

import time

import numpy as np
import pytest
import torch

from xdistill import rng
from xdistill.domains.protein import geometry
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.data import random_rotations
from xdistill.domains.protein.metrics import (
    CHAIN_METRICS,
    calibrate,
    descriptor_frechet,
    evaluate_chains,
    frechet_distance,
)
from xdistill.domains.protein.similarity import kabsch_rmsd, pairwise_tm, tm_scale, tm_scores
from xdistill.errors import XDistillError
from xdistill.intervals import bootstrap_pairs, bootstrap_sums


def traces(split: str, n: int | None = None) -> list[np.ndarray]:
    chains = load_embedded(split)  # type: ignore[arg-type]
    return [chains.coords(i) for i in range(n or len(chains))]


def turns(n: int, key: str) -> np.ndarray:
    return random_rotations(n, rng.generator(key)).numpy()


def random_walks(n: int, length: int, seed: int) -> list[np.ndarray]:
    steps = np.random.default_rng(seed).normal(size=(n, length, 3))
    return list(np.cumsum(0.38 * steps / np.linalg.norm(steps, axis=-1, keepdims=True), axis=1))


def helix(n: int) -> np.ndarray:
    """An ideal right-handed alpha helix: 2.3 A radius, 100 degrees and 1.5 A a residue; nm."""
    t = np.arange(n)
    angle = np.radians(100) * t
    return np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * t], axis=1) / 10


@pytest.fixture(scope="module")
def real() -> dict:
    return evaluate_chains(traces("all", None)[::3], tm_chains=2)


def test_calibration_of_section_3_3_is_reproduced() -> None:
    chains = [10 * x.astype(np.float64) for x in traces("all")]
    bonds = np.concatenate([geometry.bond_lengths(x) for x in chains])
    assert bonds.mean() == pytest.approx(3.803, abs=0.002)
    assert bonds.std() == pytest.approx(0.055, abs=0.002)
    assert (abs(bonds - 3.8) > 0.1).mean() == pytest.approx(0.007, abs=0.001)
    angles = np.concatenate([geometry.virtual_angles(x) for x in chains])
    assert np.percentile(angles, [1, 50, 99]) == pytest.approx([85, 101, 146], abs=0.7)
    dihedrals = np.concatenate([geometry.virtual_dihedrals(x) for x in chains])
    assert ((dihedrals >= 30) & (dihedrals <= 80)).mean() == pytest.approx(0.386, abs=0.002)
    assert ((dihedrals >= -80) & (dihedrals <= -30)).mean() == pytest.approx(0.029, abs=0.001)
    closest = np.array([geometry.pair_distances(x)[0].min() for x in chains])
    assert np.percentile(closest, 1) == pytest.approx(3.57, abs=0.03)
    assert (closest < 3.5).mean() == pytest.approx(0.006, abs=0.002)
    assert np.mean([geometry.compactness(x) for x in chains]) == pytest.approx(1.09, abs=0.005)


def test_at_least_95_percent_of_held_out_chains_are_valid() -> None:
    held_out = evaluate_chains(traces("val") + traces("test"), tm_chains=1)
    assert held_out["valid"].value >= 0.95
    assert held_out["valid"].n == 470
    assert held_out["no_clash"].value >= 0.99


def test_calibrate_covers_every_metric_with_an_interval() -> None:
    metrics = calibrate()
    assert set(metrics) == {"finite", *CHAIN_METRICS, "pairwise_tm", "descriptor_frechet"}
    for name, m in metrics.items():
        assert m.low <= m.value <= m.high, name
        assert m.n > 200, name
    assert metrics["handedness"].value > 0.9
    assert metrics["score"].value > 0.95
    assert (metrics["score"].better, metrics["pairwise_tm"].better, metrics["helix"].better) == ("high", "low", "none")
    assert 0.15 < metrics["pairwise_tm"].value < 0.25  # unrelated chains: about 0.17
    assert metrics["descriptor_frechet"].value < 2
    assert calibrate() is metrics  # kept: it takes seconds
    assert metrics["helix"].low != calibrate(seed=1)["helix"].low


def test_broken_chains_are_told_from_real_ones(real) -> None:
    noise = np.random.default_rng(0)
    noisy = evaluate_chains([x + noise.normal(size=x.shape) * 0.03 for x in traces("test", 40)])
    assert noisy["valid"].value == 0
    assert noisy["valid_bonds"].value < 0.3 < 0.98 < real["valid_bonds"].value
    assert noisy["bond_std"].value > 5 * real["bond_std"].value
    assert 0 < noisy["score"].value < 0.3
    slight = evaluate_chains([x + noise.normal(size=x.shape) * 0.01 for x in traces("test", 40)])
    assert noisy["score"].high < slight["score"].low
    assert slight["score"].high < real["score"].low
    walk = evaluate_chains(random_walks(40, 80, seed=1))
    assert walk["valid_bonds"].value == 1.0
    assert walk["valid"].value == walk["no_clash"].value == 0
    assert walk["handedness"].low < 0.5 < walk["handedness"].high
    assert walk["helix"].value < 0.01 < real["helix"].low


def test_mirror_images_swap_handedness() -> None:
    chains = traces("test", 60)
    straight, mirrored = (evaluate_chains([x * s for x in chains]) for s in ([1, 1, 1], [1, 1, -1]))
    assert mirrored["right_handed"].value == pytest.approx(straight["left_handed"].value, abs=1e-6)
    assert mirrored["left_handed"].value == pytest.approx(straight["right_handed"].value, abs=1e-6)
    assert mirrored["handedness"].value == pytest.approx(1 - straight["handedness"].value, abs=1e-6)
    for name in ("valid", "bond_mean", "bond_std", "valid_angles", "compactness"):
        assert mirrored[name].value == pytest.approx(straight[name].value, abs=1e-5)
    gap = [descriptor_frechet([10.0 * x * s for x in chains], [10.0 * x for x in traces("val")], _rng(), 2).value
           for s in ([1, 1, 1], [1, 1, -1])]  # fmt: skip
    assert gap[1] > 10 * gap[0]


def test_ideal_helix() -> None:
    m = evaluate_chains([helix(40)])
    assert m["right_handed"].value == m["handedness"].value == 1.0
    assert m["bond_mean"].value == pytest.approx(3.83, abs=0.02)
    assert m["bond_std"].value == pytest.approx(0, abs=1e-4)
    assert m["helix"].value > 0.9
    assert geometry.virtual_dihedrals(10 * helix(8)) == pytest.approx(np.full(5, 49.7), abs=1)


def test_metrics_ignore_rotation_translation_and_order() -> None:
    chains, reference = traces("test", 40), traces("val", 60)
    moved = [x @ r.T + shift for x, r, shift in zip(chains, turns(40, "move"), range(40), strict=True)]
    order = np.random.default_rng(3).permutation(40)
    before = evaluate_chains(chains, reference)
    after = evaluate_chains([moved[i] for i in order], reference)
    for name, m in before.items():
        assert after[name].n == m.n, name
        assert after[name].value == pytest.approx(m.value, abs=2e-3 if name == "pairwise_tm" else 1e-3), name


def test_non_finite_chains_count_as_invalid_and_nothing_else() -> None:
    chains = traces("test", 5)
    m = evaluate_chains([*chains, np.full((50, 3), np.nan), np.full((50, 3), np.inf)])
    alone = evaluate_chains(chains)
    assert m["finite"].value == pytest.approx(5 / 7)
    assert m["valid"].value == pytest.approx(alone["valid"].value * 5 / 7)
    assert m["no_clash"].n == 7
    assert m["bond_mean"].value == alone["bond_mean"].value
    nothing = evaluate_chains([np.full((50, 3), np.nan)], chains)
    assert nothing["valid"].value == nothing["finite"].value == 0
    assert set(nothing) == {"score", "finite", "valid", "no_clash"}
    assert all(metric.value == 0 for metric in nothing.values())


@pytest.mark.parametrize("bad", [[], [np.zeros((3, 3))], [np.zeros((10, 2))], [np.zeros(30)]])
def test_wrong_shapes_are_one_line_errors(bad: list) -> None:
    with pytest.raises(XDistillError, match=r"\[n, 3\]"):
        evaluate_chains(bad)


def test_kabsch_rmsd_known_answers() -> None:
    x = torch.tensor(traces("test", 1)[0])
    turn = torch.from_numpy(turns(1, "rmsd")[0])
    assert kabsch_rmsd(x, x @ turn.mT + 5) < 1e-5
    # six rigid degrees of freedom cannot absorb independent noise on 400 atoms
    generator = rng.generator("rmsd noise")
    noise = 0.01 * torch.randn(400, 3, generator=generator)
    y = torch.randn(400, 3, generator=generator)
    assert kabsch_rmsd(y, (y + noise) @ turn.mT) == pytest.approx(0.01 * 3**0.5, rel=0.08)
    mirror = x * torch.tensor([1, 1, -1])
    assert kabsch_rmsd(x, mirror) > 0.3  # no reflection
    u, s, v = torch.linalg.svd((x - x.mean(0)).double().mT @ (mirror - mirror.mean(0)).double())
    s[-1] *= torch.det(u @ v)
    energy = (x - x.mean(0)).double().square().sum() + (mirror - mirror.mean(0)).double().square().sum()
    expected = ((energy - 2 * s.sum()) / len(x)).sqrt()
    assert kabsch_rmsd(x, mirror).item() == pytest.approx(expected.item(), abs=1e-6)


def test_tm_score_known_answers() -> None:
    assert tm_scale(120) == pytest.approx((1.24 * 105 ** (1 / 3) - 1.8) / 10)
    assert tm_scale(10) == pytest.approx(0.05)
    x = torch.tensor(load_embedded("all").coords(1))[None]  # 125 residues
    turn = torch.from_numpy(turns(1, "tm")[0])
    assert tm_scores(x, x @ turn.mT - 3).item() == pytest.approx(1, abs=1e-4)
    # two rigid halves turned against each other: at least one half fits exactly
    hinged = x.clone()
    hinged[:, 60:] = (x[:, 60:] - x[:, 60:61]) @ turn.mT + x[:, 60:61]
    assert 65 / 125 <= tm_scores(x, hinged).item() < 0.9
    far = torch.cat([x[:, :30], x[:, 30:] * 40], dim=1)  # only the first 30 residues can be superposed
    assert tm_scores(x, far).item() == pytest.approx(30 / 125, abs=0.04)


# The TMscore program (Zhang & Skolnick, 20190822) on residues 1..120 of embedded chains: four unrelated pairs, and
# each first chain against itself under a slow wave of 0.6 nm, then of 2 nm.
REFERENCE_TM = [0.1611, 0.1798, 0.1732, 0.1393, 0.6157, 0.6427, 0.6217, 0.641, 0.3273, 0.3357, 0.3469, 0.3412]


def reference_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    chains = load_embedded("all")
    x = torch.stack([torch.tensor(chains.coords(i)[:120].copy()) for i in np.flatnonzero(chains.lengths >= 120)[:8]])
    wave = torch.sin(torch.arange(120) / 15)[:, None] * torch.tensor([0.0, 0.6, 0.0])
    return torch.cat([x[0::2]] * 3), torch.cat([x[1::2], x[0::2] + wave, x[0::2] + wave * (2 / 0.6)])


def test_tm_score_reaches_the_reference_program() -> None:
    np.testing.assert_allclose(tm_scores(*reference_pairs()).numpy(), REFERENCE_TM, atol=0.01)


def test_pairwise_tm_is_symmetric_batched_and_fast() -> None:
    chains = load_embedded("all")
    long = np.flatnonzero(chains.lengths == 128)[:24]
    x = torch.stack([torch.tensor(chains.coords(i)) for i in long])
    start = time.perf_counter()
    matrix = pairwise_tm(x)
    assert time.perf_counter() - start < 10  # 276 pairs; 64 chains (2 016 pairs) take about 4 s on a free core
    assert torch.equal(matrix, matrix.mT)
    assert torch.equal(matrix.diagonal(), torch.ones(len(x)))
    assert matrix[3, 7].item() == pytest.approx(tm_scores(x[3:4], x[7:8]).item(), abs=1e-5)
    assert matrix[7, 3].item() == pytest.approx(tm_scores(x[7:8], x[3:4]).item(), abs=0.01)


def test_diversity_sees_copies() -> None:
    chain = traces("test", 1)[0]
    copies = [chain @ r.T for r in turns(4, "copies")]
    assert evaluate_chains(copies)["pairwise_tm"].value == pytest.approx(1, abs=1e-3)
    assert "pairwise_tm" not in evaluate_chains([chain, chain[:-1]])


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_frechet_distance_of_gaussians() -> None:
    r = _rng()
    a = r.normal(size=(200_000, 2))
    b = r.normal(size=(200_000, 2)) * [2, 3] + [1, 0]
    assert frechet_distance(a, b) == pytest.approx(1 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_bootstrap_intervals_cover_the_truth() -> None:
    r, hits = _rng(), 0
    for _ in range(100):
        counts = r.integers(5, 15, size=80)
        m = bootstrap_sums(np.stack([r.binomial(counts, 0.3), counts], axis=1).astype(float), r)
        hits += m.low <= 0.3 <= m.high
    assert 88 <= hits <= 100
    values = r.normal(size=(30, 1)) + r.normal(size=(1, 30))
    pairs = ~np.eye(30, dtype=bool)
    m = bootstrap_pairs(values, pairs, r)
    assert m.value == pytest.approx(values[pairs].mean())
    assert m.low < m.value < m.high
