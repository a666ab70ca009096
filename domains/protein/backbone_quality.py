"""How well placed backbones agree with real ones: RMSD, bonds, angles and torsions over held-out chains."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xdistill.domains.protein.backbone import Backbone, place_backbones
from xdistill.domains.protein.backbone_head import BackboneHead
from xdistill.domains.protein.codec import NM
from xdistill.domains.protein.dssp import hydrogen_bonds

HUNDREDTHS = 100.0  # stored steps in an Angstrom
PLACED = [0, 2, 3]  # N, C, O


def report(
    chains: Mapping[str, NDArray[np.integer]], head: BackboneHead | None = None, noise: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Numbers over chains of N, CA, C, O [n, 4, 3] in 1/100 A, backbones placed from their CA alone.

    RMSD is over N, C and O without superposition: CA is given, so there is nothing to superpose; mean, median and
    90 % are over chains, `inner` leaves out the first and last residue, `rmsd_atom_*` are over all atoms. `flipped` is
    the share of O atoms more than 2.5 A off.
    noise: A a coordinate, added to CA before placement.
    """
    real = [np.asarray(a, np.float64) / HUNDREDTHS for a in chains.values()]
    rng = np.random.default_rng(seed)
    traces = [(a[:, 1] + noise * rng.standard_normal((len(a), 3))) / NM for a in real]
    placed = place_backbones(traces, head)
    errors = [((b.atoms[:, PLACED] - a[:, PLACED]) ** 2).sum(-1) for a, b in zip(real, placed, strict=True)]
    chain = np.sqrt([e.mean() for e in errors])
    atom = np.sqrt(np.concatenate(errors))
    turned = np.concatenate([_turned(a, b) for a, b in zip(real, placed, strict=True)])
    return {
        "chains": len(real),
        "residues": len(atom),
        "rmsd_mean": float(chain.mean()),
        "rmsd_median": float(np.median(chain)),
        "rmsd_90": float(np.quantile(chain, 0.9)),
        "rmsd_inner_mean": float(np.mean([np.sqrt(e[1:-1].mean()) for e in errors])),
        **{f"rmsd_atom_{k}": float(np.sqrt((atom[:, i] ** 2).mean())) for i, k in enumerate("NCO")},
        "flipped": float((atom[:, 2] > 2.5).mean()),
        "phi_error_median": float(np.nanmedian(turned[:, 0])),
        "phi_error_90": float(np.nanquantile(turned[:, 0], 0.9)),
        "psi_error_median": float(np.nanmedian(turned[:, 1])),
        "psi_error_90": float(np.nanquantile(turned[:, 1], 0.9)),
        "positive_phi": float(np.mean([b.positive_phi for b in placed])),
        **_bonds_kept(real, placed),
        **geometry(placed),
    }


def geometry(backbones: list[Backbone]) -> dict[str, float]:
    """Mean and standard deviation of bonds (A), of the angle at CA and of omega's distance from planar (degrees)."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for backbone in backbones:
        n, ca, c, o, cb = backbone.atoms.astype(np.float64).transpose(1, 0, 2)
        omega = np.abs(backbone.torsions()[:-1, 2])
        values = {
            "N-CA": _far(n, ca),
            "CA-C": _far(ca, c),
            "C-O": _far(c, o),
            "C-N": _far(c[:-1], n[1:]),
            "CA-CB": _far(ca, cb),
            "N-CA-C": _angle(n, ca, c),
            "omega_off_plane": np.minimum(omega, 180 - omega),
        }
        for key, value in values.items():
            found.setdefault(key, []).append(value)
    flat = {k: np.concatenate(v) for k, v in found.items()}
    return {f"{k}_{s}": float(f(v)) for k, v in flat.items() for s, f in (("mean", np.mean), ("std", np.std))}


def _bonds_kept(real: list[NDArray[np.float64]], placed: list[Backbone]) -> dict[str, float]:
    """Recall and precision of hydrogen bonds, all chains together."""
    pairs = [(hydrogen_bonds(a), hydrogen_bonds(b.atoms.astype(float))) for a, b in zip(real, placed, strict=True)]
    both, true, found = (sum(int(x.sum()) for x in xs) for xs in zip(*((a & b, a, b) for a, b in pairs), strict=True))
    return {"hydrogen_bonds_recall": both / true, "hydrogen_bonds_precision": both / found}


def _turned(real: NDArray[np.float64], placed: Backbone) -> NDArray[np.float64]:
    full = np.concatenate([real, real[:, 1:2]], 1).astype(np.float32)
    gap = Backbone(full, placed.certainty).torsions() - placed.torsions()
    return np.abs((gap + 180) % 360 - 180)[:, :2]


def _far(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(a - b, axis=-1)


def _angle(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    u, v = a - b, c - b
    cosine = (u * v).sum(-1) / (_far(a, b) * _far(c, b))
    return np.degrees(np.arccos(cosine.clip(-1, 1)))
