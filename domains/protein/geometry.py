"""Geometry of one CA trace [n, 3] (float64, Angstrom): bonds, virtual angles and dihedrals, contacts, P-SEA."""

from __future__ import annotations

import biotite.structure as struc
import numpy as np
from numpy.typing import NDArray

from xdistill.domains.protein.codec import NM, ca_array

Array = NDArray[np.float64]
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
    """P-SEA's assignment from CA atoms: one letter a residue, a helix, b strand, c neither.

    P-SEA accepts distances alone, so most left-handed helices pass as helices: read it beside the handedness.
    """
    return "".join(struc.annotate_sse(ca_array(x / NM)))


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
