"""Packed shards: what goes in comes out, as files too, and damage is one line."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import biotite.structure.io.pdbx as pdbx
import numpy as np
import pyarrow as pa
import pytest

from xdistill.cli import main
from xdistill.domain import Domain
from xdistill.domains.protein import ProteinDomain, packed
from xdistill.domains.toy import ToyDomain
from xdistill.errors import UsageError, XDistillError
from xdistill.generation import manifest
from xdistill.generation.shards import (
    Designs,
    find_shards,
    parse_indices,
    read_shard,
    replace_file,
    shard_name,
    write_design,
    write_shard,
)

Array = np.ndarray


def traces(lengths: list[int], seed: int = 0) -> list[Array]:
    """Random walks of 3.8 A steps, in nm."""
    rng = np.random.default_rng(seed)
    steps = [rng.normal(size=(n, 3)) for n in lengths]
    return [np.cumsum(0.38 * s / np.linalg.norm(s, axis=1, keepdims=True), axis=0).astype(np.float32) for s in steps]


@pytest.fixture(scope="module")
def protein() -> ProteinDomain:
    return ProteinDomain({})


def test_round_trip_at_a_thousandth_of_an_angstrom(protein: ProteinDomain) -> None:
    samples, indices = traces([1, 4, 60, 128, 7]), [900_000, 3, 17, 0, 4]
    found = protein.unpack(protein.pack(samples, indices))
    assert list(found) == indices
    for sample, back in zip(samples, found.values(), strict=True):
        assert back.shape == sample.shape
        assert back.dtype == np.float32
        assert np.abs(10 * back.astype(float) - 10 * sample.astype(float)).max() <= 0.0005 + 1e-5
        np.testing.assert_array_equal(packed.on_grid(back), back)


@pytest.mark.parametrize("format", ["pdb", "cif", "bcif"])
def test_files_of_a_packed_sample_equal_files_of_the_sample(protein: ProteinDomain, format: str) -> None:
    samples = [x + offset for x, offset in zip(traces([40, 50, 60], 1), (0, -9.0, 80.0), strict=True)]
    found = protein.unpack(protein.pack(samples, [0, 1, 2]))
    for i, sample in enumerate(samples):
        assert protein.encode(found[i], format) == protein.encode(sample, format)


def test_thousandths_are_those_of_decimal_formatting() -> None:
    angstrom = np.array([[0.0625, -0.0625, 0.1875], [1.0005, -2.0015, 123.4565], [-0.0004, 0.0004, -998.9996]])
    coords = (angstrom / 10).astype(np.float32)
    written = [[float(f"{np.float32(v) * np.float32(10):.3f}") for v in row] for row in coords]
    np.testing.assert_array_equal(packed.thousandths(coords) / 1000, written)
    assert not np.signbit(packed.thousandths(coords)[2, 0])


def test_values_that_no_file_holds_are_unknown(protein: ProteinDomain) -> None:
    bad, good = traces([6, 5])
    bad[2, 1], bad[3, 0], bad[4, 2] = np.nan, np.inf, 1e6
    found = protein.unpack(protein.pack([bad, good], [5, 6]))
    assert np.argwhere(np.isnan(found[5])).tolist() == [[2, 1], [3, 0], [4, 2]]
    assert np.isfinite(found[6]).all()


def test_any_program_reads_the_models_of_a_shard(protein: ProteinDomain) -> None:
    samples = traces([5, 9, 7])
    file = pdbx.BinaryCIFFile.read(io.BytesIO(gzip.decompress(protein.pack(samples, [8, 2, 30]))))
    for number, sample in enumerate(samples, 1):
        atoms = pdbx.get_structure(file, model=number)
        np.testing.assert_allclose(atoms.coord, sample * 10, atol=6e-4)
        assert set(atoms.atom_name) == {"CA"}
        assert atoms.res_id.tolist() == list(range(1, len(sample) + 1))


def test_pack_is_compact_and_repeatable(protein: ProteinDomain) -> None:
    samples = traces([100] * 50)
    data = protein.pack(samples, range(50))
    assert data == protein.pack([x.copy() for x in samples], list(range(50)))
    assert len(data) / 50 < 700  # bytes; a PDB file of 100 residues has 8 100


@pytest.mark.parametrize(("shapes", "indices"), [([], []), ([(4, 2)], [0]), ([(0, 3)], [0]), ([(4, 3)] * 2, [1, 1])])
def test_pack_refuses(protein: ProteinDomain, shapes: list[Any], indices: list[int]) -> None:
    with pytest.raises(XDistillError, match="packed shard takes"):
        protein.pack([np.zeros(s) for s in shapes], indices)


@pytest.mark.parametrize("cfg", [{}, {"points": 5}, {"task": "tokens"}])
def test_toy_round_trip(cfg: dict[str, Any]) -> None:
    domain, rng = ToyDomain(cfg), np.random.default_rng(0)
    samples = (
        [rng.integers(3, size=2) for _ in range(6)]
        if cfg.get("task")
        else [rng.normal(size=(n, 2)).astype(np.float32) for n in (1, 3, 2)]
    )
    indices = list(range(10, 10 + len(samples)))
    found = domain.unpack(domain.pack(samples, indices))
    assert list(found) == indices
    for sample, back in zip(samples, found.values(), strict=True):
        np.testing.assert_array_equal(back, sample)
        assert back.dtype == sample.dtype


def damaged(kind: str, data: bytes) -> bytes:
    if kind == "truncated":
        return data[: len(data) * 2 // 3]
    if kind == "altered":
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
    if kind == "empty":
        return b""
    if kind == "another format":
        return b"ATOM      1  CA  ALA A   1"
    return gzip.compress(b"not BinaryCIF at all")


@pytest.mark.parametrize("kind", ["truncated", "altered", "empty", "another format", "other content"])
@pytest.mark.parametrize("domain", [ProteinDomain({}), ToyDomain({})], ids=["protein", "toy"])
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, domain: Domain, kind: str) -> None:
    path = tmp_path / shard_name(domain, 0)
    write_shard(path, domain, [np.ones((40, 3), np.float32)] * 3, range(3))
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(XDistillError, match="generate command makes it again") as caught:
        read_shard(path, domain)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_lacks_atoms_is_refused(protein: ProteinDomain) -> None:
    file = pdbx.BinaryCIFFile.read(io.BytesIO(gzip.decompress(protein.pack(traces([5, 6]), [0, 1]))))
    file["designs"]["xdistill_design"]["length"] = np.array([5, 7])
    buffer = io.BytesIO()
    file.write(buffer)
    with pytest.raises(XDistillError, match="2 designs, 11 atoms, 12 expected"):
        protein.unpack(gzip.compress(buffer.getvalue()))


def test_missing_shard(tmp_path: Path, protein: ProteinDomain) -> None:
    with pytest.raises(XDistillError, match="no shard"):
        read_shard(tmp_path / "shard_000000.bcif.gz", protein)
    with pytest.raises(UsageError, match=r"no packed shard \(shard_\*.bcif.gz\)"):
        find_shards(tmp_path, protein)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        replace_file(tmp_path / "a", "text")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_designs_by_index_from_shards_and_files(tmp_path: Path) -> None:
    domain = ToyDomain({})
    samples = {i: np.full((1, 2), i, np.float32) for i in range(7)}
    files: dict[int, Path] = {6: write_design(tmp_path, domain, 6, samples[6], "npz")}
    for number, indices in enumerate(([4, 0, 2], [1, 3, 5])):
        path = tmp_path / shard_name(domain, number)
        write_shard(path, domain, [samples[i] for i in indices], indices)
        files |= dict.fromkeys(indices, path)
    found = Designs(domain, files).among([5, 6, 0, 4])
    assert list(found) == [5, 6, 0, 4]
    assert all((found[i] == i).all() for i in found)
    with pytest.raises(XDistillError, match="does not hold sample 9"):
        Designs(domain, {9: files[0]}).among([9])


def test_parse_indices() -> None:
    assert parse_indices("3, 17,100-102") == {3, 17, 100, 101, 102}
    for text in ("", "3,", "5-2", "a", "-4", "1.5"):
        with pytest.raises(UsageError, match="expected numbers and ranges"):
            parse_indices(text)


@pytest.fixture
def candidates(tmp_path: Path, protein: ProteinDomain) -> tuple[Path, list[Array]]:
    """A folder as generate leaves it: designs 0..8 in two shards, the even ones passed."""
    folder, samples = tmp_path / "candidates", traces([40 + i for i in range(9)], 3)
    for number in (0, 1):
        mine = range(number, 9, 2)
        write_shard(folder / "shards" / shard_name(protein, number), protein, [samples[i] for i in mine], mine)
    (folder / "request.json").write_text(json.dumps({"domain": "protein"}))
    rows = pa.table({"index": range(9), "passed": [i % 2 == 0 for i in range(9)]})
    (folder / "manifest.parquet").write_bytes(manifest.encode(rows))
    (folder / "shortlist.parquet").write_bytes(manifest.encode(rows.take([4, 1])))
    return folder, samples


@pytest.mark.parametrize(
    ("index", "expected"),
    [("all", range(9)), ("3,7-8", (3, 7, 8)), ("passed", (0, 2, 4, 6, 8)), ("shortlist", (1, 4))],
)
def test_extract_writes_what_generate_would_have(
    candidates: tuple[Path, list[Array]], protein: ProteinDomain, tmp_path: Path, index: str, expected: Any
) -> None:
    folder, samples = candidates
    for format in ("pdb", "cif"):
        out = tmp_path / format
        assert main(["extract", str(folder), f"index={index}", f"format={format}", f"out={out}"]) == 0
        assert sorted(p.name for p in out.iterdir()) == [f"sample_{i:06d}.{format}" for i in expected]
        for i in expected:
            direct = protein.write(samples[i], tmp_path / f"direct_{i}.{format}")
            assert (out / f"sample_{i:06d}.{format}").read_bytes() == direct.read_bytes()


def test_extract_keeps_to_the_request_and_a_command_overrides_it(
    candidates: tuple[Path, list[Array]], protein: ProteinDomain, tmp_path: Path
) -> None:
    folder, samples = candidates
    (folder / "request.json").write_text(json.dumps({"domain": "protein", "atoms": "backbone", "length": 40}))
    backbone = protein.for_request(atoms="backbone").encode(samples[2], "pdb")
    assert backbone.count(b"ATOM") == 5 * len(samples[2])
    for name, options, expected in (("a", [], backbone), ("b", ["atoms=ca"], protein.encode(samples[2], "pdb"))):
        assert main(["extract", str(folder), "index=2", f"out={tmp_path / name}", *options]) == 0
        assert (tmp_path / name / "sample_000002.pdb").read_bytes() == expected


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (["index=3,20"], "does not hold 1 of the samples asked for (20)", 2),
        (["index=x"], "expected numbers and ranges", 2),
        (["format=pbd"], "did you mean 'pdb'", 2),
        (["out="], "Give out=OUT", 2),
        (["domain=toy"], "no packed shard", 2),
        (["indx=3"], "did you mean 'index'", 2),
        (["length=40"], "unknown key 'length'", 2),
    ],
)
def test_extract_refuses_in_one_line(
    candidates: tuple[Path, list[Array]], tmp_path: Path, capsys: Any, change: list[str], message: str, code: int
) -> None:
    out = [] if any(c.startswith("out") for c in change) else [f"out={tmp_path / 'out'}"]
    assert main(["extract", str(candidates[0]), *change, *out]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xdistill:")]
    assert len(errors) == 1
    assert message in errors[0]


def test_extract_of_a_damaged_shard(candidates: tuple[Path, list[Array]], tmp_path: Path, capsys: Any) -> None:
    shard = candidates[0] / "shards" / "shard_000001.bcif.gz"
    shard.write_bytes(shard.read_bytes()[:-40])
    assert main(["extract", str(candidates[0]), f"out={tmp_path / 'out'}"]) == 1
    assert "shard_000001.bcif.gz: truncated" in capsys.readouterr().err.strip().splitlines()[-1]
