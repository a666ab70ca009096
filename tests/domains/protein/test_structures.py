"""Folders of structure files as users have them: several formats, broken, empty, alternate locations, ligands."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from xdistill.domains.protein.chains import ChainSet, load_embedded
from xdistill.domains.protein.codec import write_structure
from xdistill.domains.protein.structures import read_folder
from xdistill.errors import XDistillError


def pdb_line(serial, residue, number, xyz, *, record="ATOM", atom="CA", altloc=" ", chain="A", occupancy="  1.00"):
    x, y, z = xyz
    return (
        f"{record:6}{serial:5d}  {atom:3}{altloc}{residue:>3} {chain}{number:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy}  0.00           C  "
    )


def line_of_atoms(n: int, start: float = 0.0, chain: str = "A", first: int = 1) -> list[str]:
    """A straight chain of n residues, 3.8 A apart."""
    return [pdb_line(i, "GLY", first + i, (start + 3.8 * i, 0, 0), chain=chain) for i in range(n)]


def write(folder: Path, name: str, lines: list[str]) -> None:
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def real() -> ChainSet:
    return load_embedded("test")


def test_mixed_formats_in_sorted_order(tmp_path, real: ChainSet) -> None:
    names = ["b.cif", "a.pdb", "sub/c.bcif", "sub/d.ent.gz", "e.mmcif.gz"]
    for i, name in enumerate(names):
        write_structure(tmp_path / name, real.coords(i))
    (tmp_path / "notes.txt").write_text("not a structure")
    chains, report = read_folder(tmp_path)
    assert chains.ids == ("a_A", "b_A", "e_A", "sub/c_A", "sub/d_A")
    assert (report.files, report.kept, report.counts) == (5, 5, {})
    for k, i in enumerate((1, 0, 4, 2, 3)):
        np.testing.assert_allclose(chains.coords(k), real.coords(i), atol=7e-4)
        assert chains.sequence(k) == "A" * real.lengths[i]
        assert set(chains.dssp(k)) <= set("HEC")


def test_secondary_structure_follows_dssp(tmp_path, real: ChainSet) -> None:
    for i in range(20):
        write_structure(tmp_path / f"{i:02}.cif", real.coords(i))
    chains, _ = read_folder(tmp_path)
    psea, dssp = ("".join(c.dssp(i) for i in range(20)) for c in (chains, real))
    pairs = list(zip(psea, dssp, strict=True))
    assert sum(d in "HGI" for p, d in pairs if p == "H") > 0.85 * psea.count("H")
    assert sum(p == "H" for p, d in pairs if d == "H") > 0.6 * dssp.count("H")


def test_result_loads_from_npz(tmp_path, real: ChainSet) -> None:
    write_structure(tmp_path / "a.pdb", real.coords(0))
    chains, _ = read_folder(tmp_path)
    chains.save(tmp_path / "set.npz")
    np.testing.assert_array_equal(ChainSet.load(tmp_path / "set.npz").coords(0), chains.coords(0))


def test_only_the_first_model_and_each_chain_once(tmp_path) -> None:
    model = [*line_of_atoms(45), "TER", *line_of_atoms(50, chain="B")]
    shifted = line_of_atoms(45, start=7.0)
    write(tmp_path, "nmr.pdb", ["MODEL        1", *model, "ENDMDL", "MODEL        2", *shifted, "ENDMDL", "END"])
    chains, _ = read_folder(tmp_path)
    assert chains.ids == ("nmr_A", "nmr_B")
    assert chains.lengths.tolist() == [45, 50]


def test_highest_occupancy_alternate_location_wins(tmp_path) -> None:
    lines = line_of_atoms(40)
    off = (3.8 * 20, 1.0, 0.0)
    low = pdb_line(20, "GLY", 21, (3.8 * 20, -1.0, 0.0), altloc="A", occupancy="  0.30")
    lines[20:21] = [low, pdb_line(20, "GLY", 21, off, altloc="B", occupancy="  0.70")]
    write(tmp_path, "alt.pdb", lines)
    chains, _ = read_folder(tmp_path)
    y = chains.coords(0)[:, 1]
    assert chains.lengths.tolist() == [40]
    assert y[20] - y[0] == pytest.approx(0.1, abs=1e-3)


def test_point_mutations_modelled_together_count_once(tmp_path) -> None:
    lines = line_of_atoms(40)
    lines.insert(21, pdb_line(20, "SER", 21, (3.8 * 20, 0.2, 0), altloc="B", occupancy="  0.50"))
    lines[20] = pdb_line(20, "THR", 21, (3.8 * 20, 0, 0), altloc="A", occupancy="  0.50")
    write(tmp_path, "mix.pdb", lines)
    chains, _ = read_folder(tmp_path)
    assert chains.sequence(0) == "G" * 20 + "T" + "G" * 19


def test_modified_residues_count_and_ligands_do_not(tmp_path) -> None:
    lines = line_of_atoms(40)
    lines[5] = pdb_line(5, "MSE", 6, (3.8 * 5, 0, 0), record="HETATM")
    lines += [
        pdb_line(60, "GLY", 301, (50, 40, 0), record="HETATM"),  # free glycine
        pdb_line(61, "CA", 302, (60, 40, 0), record="HETATM"),  # calcium
        pdb_line(62, "HOH", 303, (70, 40, 0), record="HETATM", atom="O"),
    ]
    write(tmp_path, "mod.pdb", lines)
    chains, report = read_folder(tmp_path)
    assert chains.sequence(0) == "G" * 5 + "M" + "G" * 34
    assert report.counts == {}


def test_blank_occupancy_and_short_lines_are_read(tmp_path) -> None:
    write(tmp_path, "short.pdb", [line[:54] for line in line_of_atoms(40)])
    assert read_folder(tmp_path)[0].lengths.tolist() == [40]


def test_chain_breaks_reject_or_split(tmp_path) -> None:
    broken = line_of_atoms(60) + line_of_atoms(45, start=3.8 * 60 + 5, first=100)
    write(tmp_path, "broken.pdb", broken)
    write(tmp_path, "whole.pdb", line_of_atoms(41))
    chains, report = read_folder(tmp_path)
    assert chains.ids == ("whole_A",)
    assert report.counts == {"chain break": 1}
    assert report.examples["chain break"] == ["broken_A (1 breaks)"]
    chains, report = read_folder(tmp_path, breaks="split")
    assert chains.ids == ("broken_A_1", "broken_A_2", "whole_A")
    assert chains.lengths.tolist() == [60, 45, 41]


def test_numbering_gaps_without_a_break_are_no_break(tmp_path) -> None:
    write(tmp_path, "gap.pdb", line_of_atoms(30) + line_of_atoms(30, start=3.8 * 30, first=90))
    assert read_folder(tmp_path)[0].lengths.tolist() == [60]


def test_report_counts_every_reason(tmp_path) -> None:
    write(tmp_path, "good.pdb", line_of_atoms(50))
    write(tmp_path, "good.ent", line_of_atoms(50))
    write(tmp_path, "long.pdb", line_of_atoms(70))
    for k in range(7):
        write(tmp_path, f"short{k}.pdb", line_of_atoms(10))
    write(tmp_path, "dna.pdb", [pdb_line(1, "DA", 1, (0, 0, 0), atom="P")])
    write(tmp_path, "bad.cif", ["hello"])
    nan = line_of_atoms(50)
    nan[7] = nan[7][:30] + "     nan" + nan[7][38:]
    write(tmp_path, "nan.pdb", nan)
    chains, report = read_folder(tmp_path, max_length=60)
    assert chains.ids == ("good_A",)
    assert report.counts == {
        "too short": 7,
        "too long": 1,
        "no CA atom": 1,
        "unreadable file": 1,
        "non-finite coordinates": 1,
        "repeated id": 1,
    }
    assert len(report.examples["too short"]) == 5
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["skipped"]["too short"] == {"count": 7, "examples": report.examples["too short"]}
    assert (saved["files"], saved["kept"]) == (13, 1)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    text = console.export_text()
    assert "too short" in text
    assert "1 chains kept from 13 files" in text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (line_of_atoms(2), "too short 1x.*2 residues.*lower min_length"),
        ([pdb_line(1, "DA", 1, (0, 0, 0), atom="P")], "no CA atom 1x.*give protein structures"),
        ([line.replace("0.000   0.000", "0.000     nan") for line in line_of_atoms(50)], "non-finite.*repair"),
        (line_of_atoms(50) + line_of_atoms(50, start=500), "chain break.*breaks='split'"),
        (["garbage"], "no CA atom"),
        ([], "no CA atom"),
    ],
)
def test_nothing_usable_says_why_and_what_to_do(tmp_path, lines: list[str], message: str) -> None:
    write(tmp_path, "x.pdb", lines)
    with pytest.raises(XDistillError, match=message) as error:
        read_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_and_empty_folders(tmp_path) -> None:
    with pytest.raises(XDistillError, match="is not a folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(XDistillError, match=r"no structure file in .*expected \.pdb"):
        read_folder(tmp_path)
    (tmp_path / "a.pdb").write_text("")
    with pytest.raises(XDistillError, match="min_length <= max_length"):
        read_folder(tmp_path, min_length=50, max_length=40)
    with pytest.raises(XDistillError, match="'reject' or 'split'"):
        read_folder(tmp_path, breaks="keep")  # type: ignore[arg-type]
