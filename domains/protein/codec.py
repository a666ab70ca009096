"""CA traces in and out of structure files, alone or with the backbone they imply: nm inside, Angstrom in files."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import biotite.structure as struc
import numpy as np
from biotite.structure.info import amino_acid_names
from biotite.structure.io import pdb, pdbx
from numpy.typing import ArrayLike, NDArray

from xdistill.errors import XDistillError

Format = Literal["pdb", "cif", "bcif"]
Atoms = Literal["ca", "backbone"]
SUFFIXES: dict[str, Format] = {
    ".pdb": "pdb",
    ".ent": "pdb",
    ".cif": "cif",
    ".mmcif": "cif",
    ".bcif": "bcif",
}
NM = 10.0  # Angstrom in a nanometre
PDB_RANGE = (-999.999, 9999.999)  # what eight columns with three decimals hold
PDB_RESIDUES = 9999


def structure_format(path: str | Path) -> Format | None:
    """The format that the suffix of `path` names (a trailing .gz is ignored), None if it names none."""
    name = Path(path).name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def ca_array(coords_nm: ArrayLike) -> struc.AtomArray:
    """One CA atom a residue: coords [n, 3] nm -> biotite array in Angstrom, residues ALA 1..n of chain A.

    Raises:
        XDistillError: the shape is not [n, 3] with n >= 1, or a coordinate is not finite.
    """
    xyz = np.asarray(coords_nm, dtype=np.float32)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or len(xyz) == 0:
        raise XDistillError(f"a CA trace has shape [n, 3] with n >= 1, got {list(xyz.shape)}")
    if not np.isfinite(xyz).all():
        bad = int((~np.isfinite(xyz).all(1)).sum())
        raise XDistillError(f"{bad} of {len(xyz)} residues have NaN or infinite coordinates: nothing to write")
    return _alanines(xyz[:, None] * NM, ("CA",))


def backbone_array(coords_nm: ArrayLike) -> struc.AtomArray:
    """N, CA, C, O and CB a residue, placed on coords [n, 3] nm -> biotite array in Angstrom, as `ca_array` gives one.

    See `backbone.place_backbones`. CA stay where they are, the other atoms carry three decimals.

    Raises:
        XDistillError: the shape is not [n, 3] with n >= 3, or a coordinate is not finite.
    """
    from xdistill.domains.protein.backbone import ATOMS, place_backbone  # torch is not needed for CA alone

    atoms = place_backbone(coords_nm).atoms
    placed = np.arange(len(ATOMS)) != ATOMS.index("CA")
    atoms[:, placed] = np.round(atoms[:, placed].astype(np.float64), 3)
    return _alanines(atoms, ATOMS)


def _alanines(xyz: NDArray[np.float32], names: Sequence[str]) -> struc.AtomArray:
    """Atoms `names` of residues ALA 1..n of chain A at xyz [n, len(names), 3] A."""
    n = len(xyz)
    atoms = struc.AtomArray(n * len(names))
    atoms.coord = xyz.reshape(-1, 3)
    atoms.res_id = np.repeat(np.arange(1, n + 1), len(names))
    atoms.set_annotation("chain_id", np.full(n * len(names), "A"))
    atoms.set_annotation("res_name", np.full(n * len(names), "ALA"))
    atoms.set_annotation("atom_name", np.tile(names, n))
    atoms.set_annotation("element", np.tile([name[0] for name in names], n))
    atoms.set_annotation("b_factor", np.zeros(n * len(names)))
    atoms.set_annotation("occupancy", np.ones(n * len(names)))
    return atoms


def write_structure(path: str | Path, coords_nm: ArrayLike, fmt: Format | None = None, atoms: Atoms = "ca") -> None:
    """Write one CA trace [n, 3] (nm) to `path`, atomically: readers see the old file or the whole new one.

    Args:
        fmt: pdb (0.001 A precision), cif or bcif (float32 precision); default: what the suffix says.
        atoms: ca writes the trace, backbone places N, C, O and CB on it.

    Raises:
        XDistillError: unknown format, bad shape, non-finite values, or values that do not fit PDB columns.
    """
    path = Path(path)
    fmt = fmt or structure_format(path)
    if fmt is None or fmt not in get_args(Format):
        raise XDistillError(f"cannot tell the format of {path.name}: use .pdb, .cif or .bcif, or pass fmt")
    payload = structure_bytes(coords_nm, fmt, atoms)
    if path.name.lower().endswith(".gz"):
        payload = gzip.compress(payload, mtime=0)
    _replace(path, payload)


def structure_bytes(coords_nm: ArrayLike, fmt: Format, atoms: Atoms = "ca") -> bytes:
    """The content of a structure file with one CA trace [n, 3] (nm); raises XDistillError as `write_structure` does."""
    array = backbone_array(coords_nm) if atoms == "backbone" else ca_array(coords_nm)
    if fmt == "pdb":
        _check_pdb_columns(array)
    return _serialize(array, fmt)


def read_structure(path: str | Path) -> list[NDArray[np.float32]]:
    """CA traces of the first model, one [n, 3] float32 array in nm a chain, in file order; unknown values are NaN.

    Raises:
        XDistillError: the file is missing, unreadable, of unknown format, or holds no CA atom.
    """
    atoms = read_ca_atoms(path)
    if atoms.array_length() == 0:
        raise XDistillError(f"{path} has no CA atom of an amino acid: expected a protein structure")
    names = dict.fromkeys(atoms.chain_id.tolist())
    return [atoms.coord[atoms.chain_id == name] / np.float32(NM) for name in names]


def read_ca_atoms(path: str | Path) -> struc.AtomArray:
    """CA atoms (Angstrom) of standard and modified amino acids in the first model.

    Of alternate locations the one with the highest occupancy stays, of residues that share a number (point
    mutations modelled together) the first. Chains carry the author's names.

    Raises:
        XDistillError: the file is missing, unreadable or of unknown format.
    """
    fmt = structure_format(path)
    if fmt is None:
        raise XDistillError(f"{path}: unknown format, expected one of {', '.join(SUFFIXES)} (also .gz)")
    try:
        data = Path(path).read_bytes()
        if Path(path).name.lower().endswith(".gz"):
            data = gzip.decompress(data)
        atoms = _parse(data, fmt)
    except FileNotFoundError:
        raise XDistillError(f"no file at {path}") from None
    except Exception as e:  # biotite's parsers raise nearly anything on malformed input
        reason = " ".join(str(e).split())[:120]
        raise XDistillError(f"cannot read {path} as {fmt}: {type(e).__name__}: {reason}") from e
    atoms = atoms[(atoms.atom_name == "CA") & np.isin(atoms.res_name, amino_acid_names())]
    residue = list(zip(atoms.chain_id, atoms.res_id, atoms.ins_code, strict=True))
    return atoms[np.array([i == 0 or r != residue[i - 1] for i, r in enumerate(residue)], bool)]


def _parse(data: bytes, fmt: Format) -> struc.AtomArray:
    if fmt == "pdb":
        lines = _ca_lines(data.decode("utf-8", errors="replace"))
        if not lines:
            return struc.AtomArray(0)
        return pdb.PDBFile.read(io.StringIO(lines)).get_structure(model=1, altloc="occupancy")
    if fmt == "cif":
        file = pdbx.CIFFile.read(io.StringIO(data.decode("utf-8", errors="replace")))
    else:
        file = pdbx.BinaryCIFFile.read(io.BytesIO(data))
    name = next(iter(file))  # the first data block: entries may carry others, e.g. of ligand definitions
    atom_site = file[name]["atom_site"]
    for axis in ("Cartn_x", "Cartn_y", "Cartn_z"):  # biotite reads unknown values (? and .) as 0
        atom_site[axis] = atom_site[axis].as_array(np.float32, masked_value=np.nan)
    return pdbx.get_structure(file, model=1, data_block=name, altloc="occupancy")


def _ca_lines(text: str) -> str:
    """The CA records of a PDB file, completed (many programs leave occupancy, B-factor, element blank); "" if none."""
    kept, found = [], False
    for line in text.splitlines():
        if line.startswith(("MODEL", "ENDMDL")):
            kept.append(line)
        elif line.startswith(("ATOM  ", "HETATM")) and line[12:16].strip() == "CA":
            found = True
            line = line.ljust(80)
            occupancy, b_factor = line[54:60], line[60:66]
            occupancy = occupancy if occupancy.strip() else "  1.00"
            kept.append(line[:54] + occupancy + (b_factor if b_factor.strip() else "  0.00") + line[66:76] + " C  ")
    return "\n".join(kept) if found else ""


def _check_pdb_columns(atoms: struc.AtomArray) -> None:
    low, high = float(atoms.coord.min()), float(atoms.coord.max())
    if low < PDB_RANGE[0] or high > PDB_RANGE[1]:
        raise XDistillError(
            f"coordinates span {low:.0f}..{high:.0f} A, PDB columns hold {PDB_RANGE[0]}..{PDB_RANGE[1]}: "
            "check the sample, or write cif or bcif"
        )
    residues = int(atoms.res_id[-1])
    if residues > PDB_RESIDUES:
        raise XDistillError(f"{residues} residues, a PDB file numbers {PDB_RESIDUES}: write cif or bcif")


def _serialize(atoms: struc.AtomArray, fmt: Format) -> bytes:
    if fmt == "pdb":
        file = pdb.PDBFile()
        file.set_structure(atoms)
        return ("\n".join([*file.lines, "END"]) + "\n").encode("ascii")
    if fmt == "cif":
        cif = pdbx.CIFFile()
        pdbx.set_structure(cif, atoms, data_block="trace")
        return cif.serialize().encode("ascii")
    binary = pdbx.BinaryCIFFile()
    pdbx.set_structure(binary, atoms, data_block="trace")
    buffer = io.BytesIO()
    binary.write(buffer)
    return buffer.getvalue()


def _replace(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would outlive the rename
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
