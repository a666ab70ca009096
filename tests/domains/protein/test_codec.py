"""CA traces and backbones through PDB, mmCIF and BinaryCIF files."""

import gzip
import os
from pathlib import Path

import biotite.structure as struc
import numpy as np
import pytest
import torch
from biotite.structure.io import load_structure

from xdistill.domains.protein import ProteinDomain, codec
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.codec import read_ca_atoms, read_structure, write_structure
from xdistill.domains.protein.packed import on_grid
from xdistill.domains.protein.structures import read_folder
from xdistill.errors import UsageError, XDistillError

PRECISION_NM = {"pdb": 5.1e-5, "cif": 2e-7, "bcif": 2e-7}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("fmt", ["pdb", "cif", "bcif"])
def test_round_trip_to_the_precision_of_the_format(tmp_path, fmt: str, packed: str) -> None:
    chains = load_embedded("test")
    for i in (0, 100, 200):
        path = tmp_path / f"{i}.{fmt}{packed}"
        write_structure(path, torch.tensor(chains.coords(i)))
        (again,) = read_structure(path)
        assert again.dtype == np.float32
        np.testing.assert_allclose(again, chains.coords(i), atol=PRECISION_NM[fmt], rtol=0)


@pytest.mark.parametrize("fmt", ["pdb", "cif", "bcif"])
def test_files_hold_alanine_ca_atoms_of_chain_a_in_angstrom(tmp_path, fmt: str) -> None:
    xyz = load_embedded("test").coords(0)
    write_structure(tmp_path / "x.out", xyz, fmt)  # type: ignore[arg-type]
    os.rename(tmp_path / "x.out", tmp_path / f"x.{fmt}")
    atoms = read_ca_atoms(tmp_path / f"x.{fmt}")
    assert set(atoms.res_name) == {"ALA"}
    assert set(atoms.chain_id) == {"A"}
    assert atoms.res_id.tolist() == list(range(1, len(xyz) + 1))
    bonds = np.linalg.norm(np.diff(atoms.coord, axis=0), axis=1)
    assert np.median(bonds) == pytest.approx(3.8, abs=0.05)


def test_pdb_columns(tmp_path) -> None:
    write_structure(tmp_path / "x.pdb", [[0.1, -0.2, 99.0]])
    assert (tmp_path / "x.pdb").read_text().splitlines() == [
        "ATOM      1  CA  ALA A   1       1.000  -2.000 990.000  1.00  0.00           C  ",
        "END",
    ]


@pytest.mark.parametrize(
    ("name", "xyz", "message"),
    [
        ("x.pdb", np.full((3, 3), np.nan), "3 of 3 residues have NaN"),
        ("x.cif", [[0, 0, np.inf], [0, 0, 0]], "1 of 2 residues"),
        ("x.pdb", np.full((3, 3), 1001.0), "PDB columns hold"),
        ("x.pdb", np.full((3, 3), -100.1), "PDB columns hold"),
        ("x.pdb", np.zeros((10_000, 3)), "a PDB file numbers 9999"),
        ("x.pdb", np.zeros((0, 3)), r"shape \[n, 3\]"),
        ("x.pdb", np.zeros((4, 2)), r"got \[4, 2\]"),
        ("x.xyz", np.zeros((4, 3)), "use .pdb, .cif or .bcif"),
    ],
)
def test_what_cannot_be_written_is_an_error_and_leaves_no_file(tmp_path, name: str, xyz, message: str) -> None:
    with pytest.raises(XDistillError, match=message):
        write_structure(tmp_path / name, xyz)
    assert list(tmp_path.iterdir()) == []


def test_chains_and_insertion_codes_are_kept_apart(tmp_path) -> None:
    rows = [("A", 1, " "), ("A", 2, " "), ("A", 2, "A"), ("B", 1, " "), ("B", 2, " ")]
    lines = [
        f"ATOM  {i:5d}  CA  GLY {chain}{number:4d}{insertion}   {3.8 * i:8.3f}{0:8.3f}{0:8.3f}  1.00  0.00           C"
        for i, (chain, number, insertion) in enumerate(rows)
    ]
    (tmp_path / "x.pdb").write_text("\n".join(lines))
    first, second = read_structure(tmp_path / "x.pdb")
    np.testing.assert_allclose(first[:, 0], [0, 0.38, 0.76], atol=1e-6)
    np.testing.assert_allclose(second[:, 0], [1.14, 1.52], atol=1e-6)


@pytest.mark.parametrize("unknown", ["?", ".", "nan"])
def test_unknown_mmcif_coordinates_are_never_numbers(tmp_path, unknown: str) -> None:
    write_structure(tmp_path / "x.cif", [[0.125, 0, 0], [0.5, 0, 0], [0.875, 0, 0]])
    text = (tmp_path / "x.cif").read_text()
    assert " 5.0 " in text
    (tmp_path / "x.cif").write_text(text.replace(" 5.0 ", f" {unknown} "))
    try:
        (xyz,) = read_structure(tmp_path / "x.cif")
    except XDistillError:
        return
    assert np.isnan(xyz[1, 0])
    assert xyz[[0, 2], 0] == pytest.approx([0.125, 0.875])


def test_first_data_block_of_mmcif_is_read(tmp_path) -> None:
    write_structure(tmp_path / "x.cif", [[0.125, 0, 0], [0.5, 0, 0]])
    with (tmp_path / "x.cif").open("a") as file:
        file.write("data_ligand\n_chem_comp.id LIG\n")
    assert read_structure(tmp_path / "x.cif")[0][:, 0].tolist() == [0.125, 0.5]


def test_large_coordinates_fit_mmcif(tmp_path) -> None:
    write_structure(tmp_path / "x.cif", np.full((3, 3), 1001.0))
    assert read_structure(tmp_path / "x.cif")[0][0, 0] == 1001.0


def test_write_is_atomic(tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.pdb"
    write_structure(path, np.zeros((2, 3)))
    before = path.read_bytes()

    def full_disk(*_args) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(codec.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_structure(path, np.ones((2, 3)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.pdb"]


def test_same_input_gives_same_bytes(tmp_path) -> None:
    xyz = load_embedded("test").coords(5)
    for fmt in ("pdb", "cif", "bcif", "bcif.gz"):
        write_structure(tmp_path / f"a.{fmt}", xyz)
        write_structure(tmp_path / f"b.{fmt}", xyz)
        assert (tmp_path / f"a.{fmt}").read_bytes() == (tmp_path / f"b.{fmt}").read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.pdb", b"hello\n"),
        ("x.pdb", b"ATOM      1  CA  ALA A   1      11.1x4   6.134  -6.504\n"),
        ("x.cif", b""),
        ("x.cif", b"data_x\nloop_\n_atom_site.id\n1\n"),
        ("x.bcif", b"hello"),
        ("x.bcif", b"\x81\xa1a\x01"),
        ("x.pdb.gz", b"not gzip"),
        ("x.cif.gz", gzip.compress(b"data_x\n")[:-9]),
        ("x.txt", b""),
    ],
)
def test_unreadable_files_are_one_line_errors(tmp_path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(XDistillError) as error:
        read_structure(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    with pytest.raises(XDistillError, match="no file at"):
        read_structure(tmp_path / "missing.pdb")


@pytest.mark.parametrize("fmt", ["pdb", "cif", "bcif"])
def test_backbones_are_five_atoms_a_residue_and_read_back_as_the_same_trace(tmp_path, fmt: str) -> None:
    xyz = on_grid(load_embedded("test").coords(3))
    write_structure(tmp_path / f"x.{fmt}", xyz, atoms="backbone")
    (again,) = read_structure(tmp_path / f"x.{fmt}")
    np.testing.assert_allclose(again, xyz, atol=2e-7, rtol=0)
    atoms = all_atoms(tmp_path / f"x.{fmt}")
    n = len(xyz)
    assert atoms.atom_name.tolist() == ["N", "CA", "C", "O", "CB"] * n
    assert atoms.element.tolist() == ["N", "C", "C", "O", "C"] * n
    assert atoms.res_id.tolist() == np.repeat(np.arange(1, n + 1), 5).tolist()
    assert set(atoms.res_name) == {"ALA"}
    assert set(atoms.chain_id) == {"A"}
    assert not atoms.hetero.any()
    np.testing.assert_allclose(atoms.coord, np.round(atoms.coord.astype(float), 3), atol=1e-5)
    bonds = struc.connect_via_residue_names(atoms)
    lengths = np.linalg.norm(np.diff(atoms.coord[bonds.as_array()[:, :2]], axis=1)[:, 0], axis=1)
    assert bonds.get_bond_count() == 5 * n - 1  # N-CA, CA-C, C-O, CA-CB, and C-N between residues
    assert 1.2 < lengths.min() < lengths.max() < 1.6


def test_pdb_of_a_backbone_ends_and_fits_its_columns(tmp_path) -> None:
    write_structure(tmp_path / "x.pdb", load_embedded("test").coords(0), atoms="backbone")
    lines = (tmp_path / "x.pdb").read_text().splitlines()
    assert lines[-1] == "END"
    assert {len(line) for line in lines[:-1]} == {80}
    assert [line[12:16] for line in lines[:5]] == [" N  ", " CA ", " C  ", " O  ", " CB "]


def test_a_folder_of_backbones_is_a_folder_of_traces(tmp_path) -> None:
    chains = load_embedded("test")
    for i in range(3):
        write_structure(tmp_path / f"{i}.pdb", chains.coords(i), atoms="backbone")
    found, report = read_folder(tmp_path)
    assert report.kept == 3
    assert found.lengths.tolist() == chains.lengths[:3].tolist()


@pytest.mark.parametrize("xyz", [np.zeros((2, 3)), np.full((3, 3), np.nan)])
def test_what_has_no_backbone_is_an_error_and_leaves_no_file(tmp_path, xyz: np.ndarray) -> None:
    with pytest.raises(XDistillError):
        write_structure(tmp_path / "x.pdb", xyz, atoms="backbone")
    assert list(tmp_path.iterdir()) == []


def test_the_domain_writes_what_the_request_asks_for(tmp_path) -> None:
    domain, xyz = ProteinDomain({}), load_embedded("test").coords(1)
    asked = domain.for_request(atoms="backbone", length="40-50")
    for fmt in domain.formats:
        path = asked.write(xyz, tmp_path / f"x.{fmt}")
        assert path.read_bytes() == asked.encode(xyz, fmt)
        assert len(all_atoms(path)) == 5 * len(xyz)
        np.testing.assert_allclose(asked.load(path), domain.load(domain.write(xyz, tmp_path / f"ca.{fmt}")), atol=0)
    assert domain.encode(xyz, "pdb").count(b"\n") == len(xyz) + 1
    assert ProteinDomain({"atoms": "backbone"}).encode(xyz, "cif") == asked.encode(xyz, "cif")
    for wrong in (lambda: domain.for_request(atoms="all"), lambda: ProteinDomain({"atoms": "all"})):
        with pytest.raises(UsageError, match="expected ca or backbone"):
            wrong()


def all_atoms(path: Path) -> struc.AtomArray:
    """The file as biotite alone reads it."""
    atoms = load_structure(path)
    assert isinstance(atoms, struc.AtomArray)
    return atoms
