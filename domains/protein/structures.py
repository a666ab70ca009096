"""A user's folder of PDB, mmCIF or BinaryCIF files -> ChainSet, with an account of everything left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import biotite.structure as struc
import numpy as np
from biotite.structure.info import one_letter_code
from rich.table import Table

from xdistill.domains.protein.chains import ChainSet
from xdistill.domains.protein.codec import NM, SUFFIXES, read_ca_atoms, structure_format
from xdistill.errors import XDistillError

BOND_RANGE = (2.7, 4.2)  # A: cis peptides (2.9) and strained bonds pass, a missing residue (> 4.9) does not
EXAMPLES = 5
_LETTER = {"a": "H", "b": "E", "c": "C", "": "C"}  # P-SEA -> DSSP letters

HINTS = {
    "unreadable file": "check that the files are complete",
    "no CA atom": "give protein structures",
    "non-finite coordinates": "repair or remove those files",
    "too short": "lower min_length (3 at least)",
    "too long": "raise max_length",
    "repeated id": "keep one file a structure",
    "chain break": "model the missing residues, or pass breaks='split'",
}


@dataclass
class SkipReport:
    """What was left out of a chain set and why: counts, and up to five examples a reason."""

    files: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, example: str) -> None:
        """Count one chain, piece or file left out for `reason` (a key of HINTS)."""
        self.counts[reason] += 1
        seen = self.examples.setdefault(reason, [])
        if len(seen) < EXAMPLES:
            seen.append(example)

    def table(self) -> Table:
        """A rich table, one row a reason, most frequent first."""
        table = Table(title=f"{self.kept} chains kept from {self.files} files")
        for column in ("left out because", "count", "examples", "what to do"):
            table.add_column(column)
        for reason, count in self.counts.most_common():
            table.add_row(reason, str(count), ", ".join(self.examples[reason]), HINTS[reason])
        return table

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        report = {
            "files": self.files,
            "kept": self.kept,
            "skipped": {r: {"count": n, "examples": self.examples[r]} for r, n in self.counts.most_common()},
        }
        Path(path).write_text(json.dumps(report, indent=2) + "\n")


def structure_files(folder: str | Path) -> list[Path]:
    """Structure files below `folder`, sorted by relative path (the same on every system).

    Raises:
        XDistillError: `folder` is not a folder or holds no structure file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise XDistillError(f"{folder} is not a folder: give one that holds {', '.join(SUFFIXES)} files")
    found = [p for p in folder.rglob("*") if p.is_file() and structure_format(p) is not None]
    if not found:
        raise XDistillError(f"no structure file in {folder}: expected {', '.join(SUFFIXES)} (also .gz)")
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def read_folder(
    folder: str | Path,
    min_length: int = 40,
    max_length: int = 256,
    breaks: Literal["reject", "split"] = "reject",
) -> tuple[ChainSet, SkipReport]:
    """CA chains of all structure files below `folder` (first model, highest-occupancy alternate locations).

    Modified residues count as residues; amino-acid ligands (HETATM residues bonded to no neighbour) do not.
    A CA-CA distance outside 2.7..4.2 A is a chain break: the chain is rejected, as in the embedded set (a
    fragment has false ends and a wrong shape), or with `breaks="split"` cut there and each piece judged by its
    own length. Secondary structure is P-SEA's, in DSSP letters H, E and C. Ids are
    `<relative path without suffix>_<chain>`; of equal ids (1abc.cif beside 1abc.pdb) the first is kept.

    Raises:
        XDistillError: no folder, no structure file, or no chain kept (the message says why and what to do).
    """
    if breaks not in ("reject", "split"):
        raise XDistillError(f"breaks={breaks!r}: expected 'reject' or 'split'")
    if not 3 <= min_length <= max_length:
        raise XDistillError(f"length limits {min_length}..{max_length}: expected 3 <= min_length <= max_length")
    report = SkipReport()
    chains: dict[str, struc.AtomArray] = {}
    for path in structure_files(folder):
        report.files += 1
        name = path.relative_to(folder).as_posix()
        for chain_id, chain in _chains(path, name, report):
            for piece_id, piece in _pieces(chain_id, chain, breaks, report):
                if piece_id in chains:
                    report.skip("repeated id", name)
                elif _length_fits(piece_id, piece, min_length, max_length, report):
                    chains[piece_id] = piece
    report.kept = len(chains)
    if not chains:
        raise XDistillError(_nothing_kept(folder, report, min_length, max_length))
    return _chain_set(chains), report


def _chains(path: Path, name: str, report: SkipReport) -> Iterator[tuple[str, struc.AtomArray]]:
    """Named chains of one file with finite coordinates and without unbonded ligands."""
    try:
        atoms = read_ca_atoms(path)
    except XDistillError as e:
        report.skip("unreadable file", str(e))
        return
    if atoms.array_length() == 0:
        report.skip("no CA atom", name)
        return
    stem = name.removesuffix(".gz")
    stem = stem[: stem.rindex(".")]
    for chain_name in dict.fromkeys(atoms.chain_id.tolist()):
        chain = atoms[atoms.chain_id == chain_name]
        chain_id = f"{stem}_{chain_name}"
        if np.isfinite(chain.coord).all():
            yield chain_id, chain[_is_residue(chain)]
        else:
            report.skip("non-finite coordinates", chain_id)


def _bonded(chain: struc.AtomArray) -> np.ndarray:
    """[n - 1] whether consecutive CA atoms are within bonding distance."""
    distance = np.linalg.norm(np.diff(chain.coord.astype(np.float64), axis=0), axis=1)
    return (distance > BOND_RANGE[0]) & (distance < BOND_RANGE[1])


def _is_residue(chain: struc.AtomArray) -> np.ndarray:
    """[n] False for HETATM residues bonded to neither neighbour: ligands that share the chain's name."""
    bonded = _bonded(chain)
    return ~chain.hetero | np.append(bonded, False) | np.append(False, bonded)


def _pieces(
    chain_id: str, chain: struc.AtomArray, breaks: str, report: SkipReport
) -> Iterator[tuple[str, struc.AtomArray]]:
    """The chain itself, or at breaks: nothing (reported), or its unbroken pieces."""
    cuts = np.flatnonzero(~_bonded(chain)) + 1
    if len(cuts) == 0:
        yield chain_id, chain
    elif breaks == "reject":
        report.skip("chain break", f"{chain_id} ({len(cuts)} breaks)")
    else:
        bounds = [0, *cuts.tolist(), chain.array_length()]
        for k, (a, b) in enumerate(pairwise(bounds), 1):
            yield f"{chain_id}_{k}", chain[a:b]


def _length_fits(name: str, piece: struc.AtomArray, low: int, high: int, report: SkipReport) -> bool:
    n = piece.array_length()
    if low <= n <= high:
        return True
    report.skip("too short" if n < low else "too long", f"{name} ({n} residues)")
    return False


def _nothing_kept(folder: str | Path, report: SkipReport, low: int, high: int) -> str:
    reasons = ", ".join(f"{reason} {count}x" for reason, count in report.counts.most_common())
    main = report.counts.most_common(1)[0][0]
    return (
        f"no usable chain of {low}..{high} residues in the {report.files} files of {folder} ({reasons}; "
        f"e.g. {report.examples[main][0]}): {HINTS[main]}"
    )


def _chain_set(chains: dict[str, struc.AtomArray]) -> ChainSet:
    atoms = list(chains.values())
    return ChainSet.from_coords(
        list(chains),
        [a.coord / NM for a in atoms],
        ["".join(_one_letter(r) for r in a.res_name) for a in atoms],
        [_secondary_structure(a) for a in atoms],
    )


def _one_letter(residue: str) -> str:
    code = one_letter_code(residue)
    return code if code is not None and len(code) == 1 else "X"


def _secondary_structure(chain: struc.AtomArray) -> str:
    trace = chain.copy()
    trace.res_id = np.arange(1, chain.array_length() + 1)  # unbroken by now: numbering gaps mean nothing
    return "".join(_LETTER[s] for s in struc.annotate_sse(trace))
