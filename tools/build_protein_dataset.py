"""Rebuild the embedded CA chain sets from the structure database of the Debian package promod3-data.

python tools/build_protein_dataset.py --out build/protein             # downloads 371 MB through apt
python tools/build_protein_dataset.py --out build/protein --database structure_db.dat
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdistill.domains.protein.chains import ASSETS, CLUSTERS, EMBEDDED, ChainSet, load_clusters
from xdistill.errors import XDistillError

PACKAGE = "promod3-data"
MEMBER = "usr/share/promod3/loop_data/structure_db.dat"
SHA256 = "0f1c6e35a3f248fddd0c2c0da2c0d1145b502d4663fe8adb7239f27adad3301a"
HEADER_BYTES = 77
ATOMS, CA = 4, 1  # N, CA, C, O
STANDARD = b"ACDEFGHIKLMNPQRSTVWY"
MIN_LENGTH, MAX_LENGTH = 40, 256
BOND = (2.7, 4.2)  # A
COMPACT = 1.35  # limit on Rg / (2.2 n^0.38 A)


@dataclass(frozen=True)
class Database:
    """The decoded part of structure_db.dat: chain table; per residue sequence, atoms [4, 3] in 1/100 A, DSSP."""

    ids: list[str]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    seq: NDArray[np.uint8]
    atoms: NDArray[np.uint16]
    dssp: NDArray[np.uint8]

    @property
    def ca(self) -> NDArray[np.uint16]:
        """CA atoms [residues, 3]."""
        return self.atoms[:, CA]


def fetch(work: Path) -> Path:
    """Download and unpack the package below `work` (nothing is installed); path of the database."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise XDistillError(f"{tool} not found: on another system give --database path/to/structure_db.dat")
    subprocess.run(["apt-get", "download", PACKAGE], cwd=work, check=True)
    subprocess.run(["dpkg", "-x", str(next(work.glob(f"{PACKAGE}_*.deb"))), str(work)], check=True)
    return work / MEMBER


def read_database(path: Path) -> Database:
    """Decode the little-endian database: chain table, then arrays each prefixed by their length."""
    if not path.is_file():
        raise XDistillError(f"no file at {path}: give --database path/to/structure_db.dat, or leave it out")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise XDistillError(f"{path} has sha256 {digest}, expected {SHA256} ({PACKAGE} 3.2.1+ds-6)")
    (n_chains,) = struct.unpack_from("<Q", data, HEADER_BYTES)
    position, ids, offset, length = HEADER_BYTES + 8, [], [], []
    for _ in range(n_chains):
        names = []
        for _ in range(2):
            (size,) = struct.unpack_from("<I", data, position)
            names.append(data[position + 4 : position + 4 + size].decode("ascii"))
            position += 4 + size
        start, n, _first, *_shift = struct.unpack_from("<IHH3f", data, position)
        position += 20
        ids.append("_".join(names))
        offset.append(start)
        length.append(n)

    def array(dtype: str, width: int) -> NDArray:
        nonlocal position
        (n,) = struct.unpack_from("<Q", data, position)
        values = np.frombuffer(data, dtype, n * width, position + 8).reshape(n, width)
        position += 8 + values.nbytes
        return values

    seq = array("u1", 1)[:, 0]
    atoms = array("<u2", 3 * ATOMS).reshape(-1, ATOMS, 3)
    for dtype, width in (("<i2", 2), ("<u2", 1), ("<u2", 1)):  # torsions, accessibility, depth
        array(dtype, width)
    return Database(ids, np.array(offset), np.array(length), seq, atoms, array("u1", 1)[:, 0])


def unbroken(db: Database) -> ChainSet:
    """Chains of 40..256 standard residues with 2.7 < CA-CA < 4.2 A throughout, in database order."""
    kept, delta = [], []
    for i, (start, n) in enumerate(zip(db.offset, db.length, strict=True)):
        if not MIN_LENGTH <= n <= MAX_LENGTH or not np.isin(db.seq[start : start + n], list(STANDARD)).all():
            continue
        step = np.diff(db.ca[start : start + n].astype(np.int32), axis=0)
        bond = np.linalg.norm(step, axis=1) / 100
        if (bond > BOND[0]).all() and (bond < BOND[1]).all():
            kept.append(i)
            delta.append(step.astype(np.int16))
    spans = [slice(db.offset[i], db.offset[i] + db.length[i]) for i in kept]
    seq, dssp = (np.concatenate([a[s] for s in spans]) for a in (db.seq, db.dssp))
    return ChainSet([db.ids[i] for i in kept], db.length[kept], np.concatenate(delta), seq, dssp)


def compact(chains: ChainSet) -> NDArray[np.bool_]:
    """[B] whether Rg < 1.35 * 2.2 n^0.38 A."""
    rg = np.array([np.sqrt((chains.coords(i).astype(float) ** 2).sum(1).mean()) for i in range(len(chains))])
    return rg < COMPACT * 0.22 * chains.lengths**0.38


def cluster(chains: ChainSet, out: Path, work: Path) -> None:
    """Write `clusters_30.tsv`: chain id, representative at 30 % identity (committed ones if no mmseqs)."""
    if shutil.which("mmseqs") is None:
        table = load_clusters()
        print(f"mmseqs is not installed: the committed {CLUSTERS} is reused; it covers the 40-128 set only")
    else:
        fasta = work / "chains.fasta"
        fasta.write_text("".join(f">{name}\n{chains.sequence(i)}\n" for i, name in enumerate(chains.ids)))
        options = ["--min-seq-id", "0.3", "-c", "0.8"]
        subprocess.run(["mmseqs", "easy-cluster", str(fasta), "clu", "tmp", *options], cwd=work, check=True)
        pairs = (line.split("\t") for line in (work / "clu_cluster.tsv").read_text().splitlines())
        table = {member: representative for representative, member in pairs}
    lines = [f"{name}\t{table[name]}\n" for name in chains.ids if name in table]
    (out / "clusters_30.tsv").write_text("".join(lines))


def compare_with_committed(path: Path) -> bool:
    """Whether every array in `path` equals, byte for byte, the committed asset's."""
    with np.load(path) as new, np.load(ASSETS / EMBEDDED) as old:
        return all(new[k].dtype == old[k].dtype and new[k].tobytes() == old[k].tobytes() for k in old.files) and sorted(
            new.files
        ) == sorted(old.files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the npz files and clusters_30.tsv")
    parser.add_argument("--database", type=Path, help="structure_db.dat, instead of a download")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        everything = unbroken(read_database(args.database or fetch(work)))
        cluster(everything, args.out, work)
    tight = compact(everything)
    for high in (256, 128):
        subset = everything.select(np.flatnonzero(tight & (everything.lengths <= high)))
        subset.save(args.out / f"pdb_chains_40_{high}.npz")
        print(f"40-{high}: {len(subset)} chains, {subset.lengths.sum()} residues")
    same = compare_with_committed(args.out / EMBEDDED)
    print(f"arrays identical to the committed {EMBEDDED}: {'yes' if same else 'NO'}")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    try:
        main()
    except XDistillError as e:
        raise SystemExit(f"error: {e}") from None
