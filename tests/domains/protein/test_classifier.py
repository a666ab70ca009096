"""The shipped fold classifier on held-out chains, adherence to labels, distances of distributions."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from xdistill.domains.protein import classifier as module
from xdistill.domains.protein import distribution
from xdistill.domains.protein.chains import ChainSet, load_embedded
from xdistill.domains.protein.classifier import Classified, adherence, fold_targets, load_classifier
from xdistill.domains.protein.distribution import Frechet, Statistics, fold_score, jensen_shannon, metrics
from xdistill.domains.protein.gearnet import GearNet
from xdistill.domains.protein.labels import ClassMap
from xdistill.errors import UsageError, XDistillError

FLOOR = 0.85  # accuracy of level C on the first 60 test chains; the card has what was measured on all


@pytest.fixture(scope="module")
def held_out() -> ChainSet:
    return load_embedded("test").select(range(60))


@pytest.fixture(scope="module")
def traces(held_out: ChainSet) -> list[np.ndarray]:
    return [held_out.coords(i) for i in range(len(held_out))]


@pytest.fixture(scope="module")
def found(traces) -> Classified:
    return load_classifier()(traces)


def test_held_out_accuracy(held_out, found):
    targets = fold_targets(held_out)
    assert (found.probabilities["C"].argmax(1) == targets["C"]).mean() >= FLOOR
    for level in "AT":
        chance = np.bincount(targets[level]).max() / len(held_out)
        assert (found.probabilities[level].argmax(1) == targets[level]).mean() > 1.5 * chance
    for p in found.probabilities.values():
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)


def test_mirror_images_are_told_apart(traces, found):
    mirrored = load_classifier()([x * np.float32([1, 1, -1]) for x in traces])
    assert (found.probabilities["hand"].argmax(1) == 0).mean() > 0.9
    assert (mirrored.probabilities["hand"].argmax(1) == 1).mean() > 0.9


def test_order_batch_and_pose_do_not_matter(traces, found):
    order = np.random.default_rng(0).permutation(len(traces))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    again = load_classifier()([(traces[i] @ turn + 2.0) for i in order])
    np.testing.assert_allclose(again.features, found.features[order], atol=5e-3)
    alone = load_classifier()([traces[7]])
    np.testing.assert_allclose(alone.features[0], found.features[7], atol=1e-4)


def test_targets_count_helices_strands_and_contacts():
    ladder = np.zeros((8, 40, 3))
    ladder[..., 0] = 0.38 * np.arange(40)
    dssp = ["C" * 40, "C" * 18 + "HHHH" + "C" * 18, "EE" + "C" * 36 + "EE", "HHH" + "C" * 37, "HHHHCGGGGCIIIICHHHHCEEC"]
    dssp = [s.ljust(40, "C") for s in dssp]
    chains = ChainSet.from_coords(list("abcde"), list(ladder[:5]), ["A" * 40] * 5, dssp)
    targets = fold_targets(chains)
    assert targets["A"].tolist() == [0, 5, 1, 0, 3 * 5 + 1]
    assert targets["T"].tolist() == [0, 15, 3, 0, 48]  # a straight chain has no contacts: the lowest tercile


def test_adherence(held_out, traces):
    labels = [f"{k}.x.x.x" for k in held_out.coarse_classes]
    right = adherence(traces, labels)
    wrong = adherence(traces, [f"{k % 3 + 1}.x.x.x" for k in held_out.coarse_classes])
    assert right["adherence"].value >= FLOOR
    assert right["adherence_psea"].value > 0.6
    assert wrong["adherence"].value <= 1 - FLOOR
    assert set(right) == {"adherence", "adherence_psea"}
    assert right["adherence"].better == "high"
    masked = adherence([*traces[:4], traces[0] * np.nan], [*labels[:3], "x.x.x.x", "1.x.x.x"])
    assert masked["adherence"].n == 4
    assert masked["adherence"].value <= 0.75  # the chain with NaN is a miss
    assert adherence(traces[:2], ["x.x.x.x"] * 2) == {}


def test_what_cannot_be_classified(traces):
    for bad in ([], [np.zeros((3, 3))], [np.zeros((9, 2))], [traces[0] * np.nan]):
        with pytest.raises(XDistillError, match="CA trace"):
            load_classifier()(bad)


def test_missing_extra_says_how_to_install(monkeypatch):
    load_classifier.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for use in (load_classifier, lambda: metrics([])):
        with pytest.raises(UsageError, match=r"xdistill\[protein\]"):
            use()
    assert importlib.util.find_spec("torch_geometric")


def test_frechet_of_equal_sets_is_zero():
    found = distribution._reference(None).known
    assert abs(Frechet(Statistics.of(found))(found.features)) < 1e-6
    moved = Frechet(Statistics.of(found))(found.features + 0.5)
    assert moved == pytest.approx(0.25 * found.features.shape[1], rel=1e-3)


def test_scores_of_class_distributions():
    uniform, sure = np.full((6, 3), 1 / 3), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    assert fold_score(uniform) == pytest.approx(1)
    assert fold_score(sure) == pytest.approx(3, rel=1e-6)
    assert jensen_shannon(sure.mean(0), uniform.mean(0)) == pytest.approx(0, abs=1e-6)
    assert jensen_shannon(np.array([1.0, 0]), np.array([0.0, 1])) == pytest.approx(10 * np.log(2), rel=1e-6)


def test_real_chains_are_near_the_floor_and_damaged_ones_far(traces):
    real = metrics(traces, seed=1)
    floor = real["classifier_frechet_floor"]
    assert floor.n == 60
    assert real["classifier_frechet"].value < 1.5 * floor.high
    noise = np.random.default_rng(0)
    noisy = metrics([x + 0.1 * noise.normal(size=x.shape) for x in traces], seed=1)
    mirrored = metrics([-x for x in traces], seed=1)
    for damaged in (noisy, mirrored):
        assert damaged["classifier_frechet"].low > real["classifier_frechet"].high
    helices = load_embedded("train")
    helical = helices.select(np.flatnonzero(helices.coarse_classes == 1)[:60])
    one = metrics([helical.coords(i) for i in range(60)])
    assert one["classifier_js_C"].low > real["classifier_js_C"].high
    assert one["classifier_fold_score_C"].high < real["classifier_fold_score_C"].low
    assert metrics(traces[:1]) == {}


def test_the_reference_takes_the_samples_lengths():
    reference = distribution._reference(None)
    wanted = np.array([44, 44, 70, 120, 300])
    weights = reference.weights(wanted, held_out=False)
    assert weights.sum() == pytest.approx(5)
    assert (weights[reference.held_out] == 0).all()
    near = (reference.lengths >= 40) & (reference.lengths < 48)
    assert weights[near].sum() == pytest.approx(2)
    assert weights[reference.lengths >= 120].sum() == pytest.approx(2)  # 300 counts as the longest


def test_published_names_with_official_weights_only(tmp_path: Path, traces, monkeypatch):
    monkeypatch.setattr(distribution, "RESAMPLES", 2)
    torch.manual_seed(0)
    official, published = tmp_path / "gearnet_ca.pth", tmp_path / "pdb_eval_ca_features.pth"
    torch.save(GearNet().state_dict(), official)
    statistics = {
        "FID_real_features_sum": torch.zeros(512).double(),
        "FID_real_features_num_samples": torch.tensor(100),
    }
    statistics["FID_real_features_cov_sum"] = 99 * torch.eye(512).double()
    statistics |= {f"fJSD_{k}_real_features_sum": torch.ones(n).double() for k, n in (("C", 5), ("A", 43), ("T", 1336))}
    torch.save(statistics, published)
    found = metrics(traces[:3], weights=official, statistics=published)
    assert set(found) == {"FPSD", *(f"{m}_{k}" for m in ("fS", "fJSD") for k in "CAT")}
    assert all(np.isfinite(m.value) for m in found.values())
    with pytest.raises(XDistillError, match="official"):
        metrics(traces[:3], statistics=published)
    with pytest.raises(XDistillError, match="no reference statistics"):
        distribution.load_statistics(official)
    with pytest.raises(UsageError, match="class_map"):
        adherence(traces[:1], ["1.x.x.x"], weights=official)
    classes = ClassMap.from_dict({"C": {str(k): k for k in range(5)}, "A": {"1.10": 0}, "T": {}})
    deep = adherence(traces[:2], ["1.10.x.x", "1.x.x.x"], weights=official, classes=classes)
    assert (deep["adherence"].n, deep["adherence_A"].n) == (2, 1)
    assert "adherence_T" not in deep
