"""Geometry of one CA trace [n, 3] (float64, Angstrom): bonds, virtual angles and dihedrals, contacts, P-SEA."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
CONTACT = 8.0  # A
HELIX_DIHEDRAL = (30.0, 80.0)  # degrees, right-handed; the mirror image is left-handed
HISTOGRAM_EDGES = np.array([0, 5, 6.5, 8, 10, 12, 15, 18, 22, 26, 31, np.inf])  # A


def bond_lengths(x: Array) -> Array:
    """CA(i)-CA(i+1) distances [n - 1]."""
    return np.linalg.norm(np.diff(x, axis=0), axis=1)


def virtual_angles(x: Array) -> Array:
    """Angles CA(i-1)-CA(i)-CA(i+1) in degrees [n - 2]; 0 where two atoms coincide."""
    u, b = np.diff(x, axis=0), np.maximum(bond_lengths(x), 1e-9)
    cosine = -(u[:-1] * u[1:]).sum(1) / (b[:-1] * b[1:])
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def virtual_dihedrals(x: Array) -> Array:
    """Dihedrals of four consecutive CA in degrees [n - 3], IUPAC sign: a right-handed alpha helix has about +50."""
    u = np.diff(x, axis=0)
    a, b = np.cross(u[:-2], u[1:-1]), np.cross(u[1:-1], u[2:])
    sine = (a * u[2:]).sum(1) * np.linalg.norm(u[1:-1], axis=1)
    return np.degrees(np.arctan2(sine, (a * b).sum(1)))


def handed_dihedrals(x: Array) -> tuple[int, int]:
    """How many virtual dihedrals are right-handed (+30..+80 degrees) and left-handed (-80..-30)."""
    dihedrals, (low, high) = virtual_dihedrals(x), HELIX_DIHEDRAL
    right = (dihedrals >= low) & (dihedrals <= high)
    left = (dihedrals >= -high) & (dihedrals <= -low)
    return int(right.sum()), int(left.sum())


def pair_distances(x: Array) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Distances of all pairs with j - i > 2, and their i and j."""
    i, j = np.triu_indices(len(x), 3)
    return np.linalg.norm(x[i] - x[j], axis=1), i, j


def radius_of_gyration(x: Array) -> float:
    """Root mean square distance from the centroid."""
    return float(np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()))


def compactness(x: Array) -> float:
    """Rg over 2.2 n^0.38 A, the mean law of globular proteins."""
    return radius_of_gyration(x) / (2.2 * len(x) ** 0.38)


def secondary_structure(x: Array) -> str:
    """P-SEA's assignment from CA atoms (Labesse et al., CABIOS 13, 291, 1997): a helix, b strand, c neither.

    Letters are those of biotite's `annotate_sse`, in a fifth of its time. P-SEA accepts distances alone, so most
    left-handed helices pass as helices: read it beside the handedness.
    """
    n = len(x)
    if n <= 5:
        return "c" * n
    d2, d3, d4 = (_from_second(np.linalg.norm(x[k:] - x[:-k], axis=1), n) for k in (2, 3, 4))
    angle, dihedral = _from_second(virtual_angles(x), n), _from_second(virtual_dihedrals(x), n)
    near, far = _within(d3, 5.3, 0.5), _within(d3, 9.9, 0.9)
    bent, straight = _within(angle, 89, 12), _within(angle, 124, 14)
    helix = near & _within(d4, 6.4, 0.6) | bent & _within(dihedral, 50, 20)
    strand = _within(d2, 6.7, 0.6) & far & _within(d4, 12.4, 1.1) | straight & ((dihedral <= -125) | (dihedral >= 145))
    letters = np.full(n, "c")
    letters[_grown(_runs(helix, 5), near | bent)] = "a"
    letters[_grown(_runs(strand, 4) | _paired(x, _runs(strand, 3)), far)] = "b"
    return "".join(letters)


def _from_second(values: Array, n: int) -> Array:
    """[n], `values` from the second residue on, NaN elsewhere."""
    out = np.full(n, np.nan)
    out[1 : 1 + len(values)] = values
    return out


def _within(values: Array, centre: float, tolerance: float) -> Mask:
    return (values >= centre - tolerance) & (values <= centre + tolerance)


def _regions(mask: Mask) -> NDArray[np.int64]:
    """[regions, 2] starts and ends of the runs of True."""
    return np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)


def _runs(mask: Mask, least: int) -> Mask:
    """Residues in runs of at least so many."""
    out = np.zeros_like(mask)
    for start, end in _regions(mask):
        out[start:end] = end - start >= least
    return out


def _grown(mask: Mask, condition: Mask) -> Mask:
    """Also the residue before and after each run, where `condition` holds."""
    beside = np.append(mask[1:], False) | np.append(False, mask[:-1])
    return mask | beside & condition


def _paired(x: Array, mask: Mask) -> Mask:
    """The runs of `mask` with at least 5 contacts at 4.2 to 5.2 A, as to the other strands of a sheet."""
    out, contacts = np.zeros_like(mask), np.zeros(len(x), int)
    distance = np.sqrt(((x[mask, None] - x) ** 2).sum(-1))
    contacts[mask] = ((distance > 4.2) & (distance <= 5.2)).sum(1)
    for start, end in _regions(mask):
        out[start:end] = contacts[start:end].sum() >= 5
    return out


def contact_order(x: Array) -> float:
    """Relative contact order: mean |i - j| / n over pairs with |i - j| > 2 closer than 8 A, 0 without contacts."""
    distance, i, j = pair_distances(x)
    contact = distance < CONTACT
    return float((j - i)[contact].mean() / len(x)) if contact.any() else 0.0


def descriptor(x: Array) -> Array:
    """[16] shape descriptors: helix and strand content, left-handed fraction, compactness, relative contact order,
    distance histogram of |i - j| > 2 (11 bins).
    """
    distance = pair_distances(x)[0]
    sse, left = secondary_structure(x), handed_dihedrals(x)[1] / max(len(x) - 3, 1)
    histogram = np.histogram(distance, HISTOGRAM_EDGES)[0] / max(len(distance), 1)
    head = [sse.count("a") / len(x), sse.count("b") / len(x), left, compactness(x), contact_order(x)]
    return np.concatenate([head, histogram])
