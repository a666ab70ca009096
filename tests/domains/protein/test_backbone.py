"""Full backbones on held-out real chains, on noisy and broken traces, and in files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xdistill.domains.protein import peptide
from xdistill.domains.protein.backbone import Backbone, load_head, place_backbone, place_backbones
from xdistill.domains.protein.backbone_head import BackboneHead, HeadConfig
from xdistill.domains.protein.backbone_quality import geometry, report
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.dssp import dssp
from xdistill.errors import XDistillError

FIXTURE = Path(__file__).parents[2] / "fixtures/protein/full_backbones.npz"
N, CA, C, O, CB = range(5)
MIRROR = np.array([1.0, 1.0, -1.0])


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    """Held-out chains: id -> N, CA, C, O [n, 4, 3] in 1/100 A; of tools/train_backbone_head.py --fixture."""
    with np.load(FIXTURE) as z:
        parts = np.split(z["atoms"].astype(np.int32), np.cumsum(z["length"])[:-1])
        return dict(zip(z["ids"].tolist(), parts, strict=True))


@pytest.fixture(scope="module")
def measured(real: dict[str, np.ndarray]) -> dict[str, float]:
    return report(real)


def trace(atoms: np.ndarray) -> np.ndarray:
    """CA in nm."""
    return atoms[:, CA] / 1000


def walk(n: int, seed: int) -> np.ndarray:
    """A random walk of 3.8 A steps, nm: no protein at all."""
    steps = np.random.default_rng(seed).standard_normal((n, 3))
    return np.cumsum(0.38 * steps / np.linalg.norm(steps, axis=1, keepdims=True), 0)


def improper(atoms: np.ndarray) -> np.ndarray:
    """[n] signed volume of N, C, CB about CA in A^3: positive in L residues."""
    n, c, cb = (atoms[:, k] - atoms[:, CA] for k in (N, C, CB))
    return (np.cross(n, c) * cb).sum(-1)


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_fixture_chains_are_held_out(real: dict[str, np.ndarray]) -> None:
    held_out = load_embedded("test")
    assert len(real) == 20
    for name, atoms in real.items():
        embedded = held_out.coords(held_out.ids.index(name))
        np.testing.assert_allclose(np.diff(trace(atoms), axis=0), np.diff(embedded, axis=0), atol=1e-5)


def test_real_backbones_are_recovered(measured: dict[str, float]) -> None:
    assert measured["rmsd_mean"] < 0.35
    assert measured["rmsd_90"] < 0.45
    assert measured["flipped"] < 0.02
    assert measured["phi_error_median"] < 10
    assert measured["psi_error_median"] < 10


def test_hydrogen_bonds_are_recovered(measured: dict[str, float]) -> None:
    assert measured["hydrogen_bonds_recall"] > 0.8
    assert measured["hydrogen_bonds_precision"] > 0.8


def test_secondary_structure_of_placed_backbones(real: dict[str, np.ndarray]) -> None:
    """By hydrogen bonds of what was placed, against DSSP of the deposited structures."""
    held_out, hits = load_embedded("test"), {"a": [], "b": [], "c": []}
    for name, atoms in real.items():
        stored = held_out.dssp(held_out.ids.index(name))
        placed = dssp(place_backbone(trace(atoms)).atoms.astype(float))
        for truth, found in zip(stored, placed, strict=True):
            hits["a" if truth == "H" else "b" if truth == "E" else "c"].append(found)
    helix, strand, rest = (np.array(hits[k]) for k in "abc")
    assert (helix == "a").mean() > 0.9
    assert (strand == "b").mean() > 0.75
    assert (helix == "b").mean() < 0.01
    assert (strand == "a").mean() < 0.02
    assert (rest == "b").mean() < 0.1


def test_geometry_is_ideal(measured: dict[str, float]) -> None:
    for bond, length in {"N-CA": 1.459, "CA-C": 1.525, "C-O": 1.232, "C-N": 1.330, "CA-CB": 1.53}.items():
        assert measured[f"{bond}_mean"] == pytest.approx(length, abs=0.002)
        assert measured[f"{bond}_std"] < 0.02
    assert measured["omega_off_plane_mean"] < 0.01
    assert measured["N-CA-C_mean"] == pytest.approx(111.0, abs=1.5)
    assert measured["N-CA-C_std"] < 5


@pytest.mark.parametrize("sigma", [0.1, 0.2])
def test_noisy_traces_give_sane_backbones(real: dict[str, np.ndarray], sigma: float) -> None:
    """sigma: A a coordinate; CA-CA distances are then off by 0.14 and 0.28 A, as in generated traces."""
    noisy = report(real, noise=sigma)
    assert noisy["rmsd_mean"] < {0.1: 0.45, 0.2: 0.65}[sigma]  # CA of the truth is off by 0.17 and 0.35 A
    assert noisy["C-O_std"] < 1e-3
    assert noisy["C-N_mean"] == pytest.approx(1.33, abs=0.03)
    assert noisy["N-CA-C_std"] < {0.1: 8, 0.2: 11}[sigma]
    assert noisy["positive_phi"] < 0.12


def test_backbone_turns_with_its_trace(real: dict[str, np.ndarray]) -> None:
    for seed, atoms in enumerate(list(real.values())[:5]):
        turn, shift = rotation(seed), np.array([3.0, -2.0, 8.0])
        here = place_backbone(trace(atoms)).atoms
        there = place_backbone(trace(atoms) @ turn.T + shift).atoms
        np.testing.assert_allclose(there, here @ turn.T + 10 * shift, atol=5e-3)


def test_every_residue_is_l(real: dict[str, np.ndarray]) -> None:
    """Ideal residues have 2.5 A^3, mirrored ones would have -2.5; in a random walk N-CA-C may be nearly straight."""
    traces = [trace(a) for a in real.values()]
    for least, chains in ((1.5, traces), (0.5, [t * MIRROR for t in traces]), (0.0, [walk(60, s) for s in range(5)])):
        for backbone in place_backbones(chains):
            assert np.isfinite(backbone.atoms).all()
            assert (improper(backbone.atoms) > least).all()


def test_a_mirror_image_shows(real: dict[str, np.ndarray]) -> None:
    """It gets L residues in left-handed conformations, never the mirrored backbone, and phi says so."""
    traces = [trace(a) for a in real.values()]
    straight, mirrored = place_backbones(traces), place_backbones([t * MIRROR for t in traces])
    for one, other in zip(straight, mirrored, strict=True):
        assert one.positive_phi < 0.2
        assert other.positive_phi > one.positive_phi + 0.1
        assert np.abs(other.atoms * MIRROR - one.atoms)[:, CB].max() > 1.0
    assert np.mean([b.positive_phi for b in mirrored]) > 0.4


def test_ca_is_the_trace_to_the_last_bit(real: dict[str, np.ndarray]) -> None:
    ca = trace(next(iter(real.values()))).astype(np.float32)
    assert (place_backbone(ca).atoms[:, CA] == ca * np.float32(10)).all()


def test_a_chain_alone_and_among_others(real: dict[str, np.ndarray]) -> None:
    traces = [trace(a) for a in real.values()]
    for together, t in zip(place_backbones(traces), traces, strict=True):
        alone = place_backbone(t)
        np.testing.assert_allclose(together.atoms, alone.atoms, atol=2e-3)
        assert together.certainty.shape == (len(t) - 1,)


def test_padding_holds_anything() -> None:
    torch.manual_seed(0)
    head, ca = BackboneHead(HeadConfig(width=16, message=8)), torch.from_numpy(10 * walk(30, 0)).float()[None]
    mask = torch.arange(30)[None] < 20
    dirty = torch.where(mask[..., None], ca, torch.tensor(1e4))
    with torch.no_grad():
        wide, narrow = head(dirty, mask), head(ca[:, :20], mask[:, :20])
    torch.testing.assert_close(wide.sides[-1][:, :19], narrow.sides[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wide.ends[:, :19], narrow.ends, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [3, 4, 5, 12])
def test_short_chains(n: int) -> None:
    atoms = place_backbone(walk(n, n)).atoms
    assert atoms.shape == (n, 5, 3)
    assert (improper(atoms) > 0).all()


@pytest.mark.parametrize("direction", [[1, 0, 0], [0, 0, 1], [1, 1, 1]])
def test_straight_and_collapsed_chains_stay_finite(direction: list[float]) -> None:
    line = 0.38 * np.arange(10)[:, None] * np.array(direction) / np.linalg.norm(direction)
    for chain in (line, 0 * line):
        assert np.isfinite(place_backbone(chain).atoms).all()


@pytest.mark.parametrize(
    ("ca", "message"),
    [
        (np.full((5, 3), np.nan), "5 of 5 residues have NaN"),
        ([[0, 0, 0], [0, 0, np.inf], [1, 1, 1]], "1 of 3 residues"),
        (np.zeros((2, 3)), r"n >= 3, got \[2, 3\]"),
        (np.zeros((4, 2)), r"got \[4, 2\]"),
    ],
)
def test_what_cannot_be_placed_is_an_error(ca: object, message: str) -> None:
    with pytest.raises(XDistillError, match=message):
        place_backbone(ca)  # type: ignore[arg-type]


def test_damaged_weights_are_a_one_line_error(tmp_path) -> None:
    with pytest.raises(XDistillError, match="no backbone head at"):
        load_head(tmp_path / "missing")
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(XDistillError, match="is no backbone head"):
        load_head(tmp_path / "x")


@pytest.mark.parametrize(("span", "cis"), [(3.80, False), (3.65, False), (3.95, False), (2.94, True)])
def test_units_close_with_ideal_bonds(span: float, cis: bool) -> None:
    left, right = torch.zeros(3, dtype=torch.float64), torch.tensor([span, 0, 0], dtype=torch.float64)
    up = torch.tensor([0, 1.0, 0], dtype=torch.float64)
    c, o, n = peptide.unit_atoms(left, right, up)
    bonds = [(left, c, 1.525), (c, o, 1.232), (c, n, 1.330), (n, right, 1.459)]
    for a, b, length in bonds:
        assert float((a - b).norm()) == pytest.approx(length, abs=1e-3)
    assert float(o[1]) > float(c[1]) > 0
    assert abs(float(peptide.dihedral(left, c, n, right))) == pytest.approx(0 if cis else 180, abs=1e-3)


def test_impossible_distances_stretch_the_unit() -> None:
    left, up = torch.zeros(3), torch.tensor([0, 1.0, 0])
    for span in (2.0, 3.4, 4.5):
        c, o, n = peptide.unit_atoms(left, torch.tensor([span, 0, 0]), up)
        assert 0.8 < float((n - torch.tensor([span, 0, 0])).norm()) < 2.0
        assert 1.1 < float((c - o).norm()) < 1.4


def test_torsions_have_iupac_signs(real: dict[str, np.ndarray]) -> None:
    """Alpha helices of the deposited structures: phi -63, psi -42, omega 180."""
    held_out = load_embedded("test")
    found = []
    for name, atoms in real.items():
        dssp = held_out.dssp(held_out.ids.index(name))
        five = np.concatenate([atoms, atoms[:, :1]], 1).astype(np.float32) / 100
        inside = [i for i in range(2, len(dssp) - 2) if set(dssp[i - 2 : i + 3]) == {"H"}]
        found.append(Backbone(five, np.ones(len(five) - 1)).torsions()[inside])
    phi, psi = np.median(np.concatenate(found)[:, :2], 0)
    omega = np.median(np.abs(np.concatenate(found)[:, 2]))
    assert phi == pytest.approx(-63, abs=4)
    assert psi == pytest.approx(-42, abs=4)
    assert omega == pytest.approx(177, abs=3)


def test_quality_sees_a_broken_bond(real: dict[str, np.ndarray]) -> None:
    backbone = place_backbone(trace(next(iter(real.values()))))
    broken = backbone.atoms.copy()
    broken[:, C] += 0.3
    assert geometry([Backbone(broken, backbone.certainty)])["C-O_mean"] > geometry([backbone])["C-O_mean"] + 0.05
