"""Ideal peptide geometry in Angstrom: planar units between CA atoms at any distance, chain ends, CB, torsions."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

N_CA, CA_C, C_N, C_O, CA_CB = 1.459, 1.525, 1.330, 1.232, 1.53  # A, means of the training chains (CB: ideal)
CA_C_N, C_N_CA, CA_C_O, N_CA_C = 116.6, 121.6, 120.5, 111.0  # degrees
CIS_BELOW = 3.35  # A: a trans unit spans 3.80, a cis one 2.94
CB_TILT = 52.5  # degrees between CA-CB and the plane of N, CA, C
STRAIN = 14.0  # degrees that each of a unit's two angles may give before bonds stretch


def unit_atoms(left: Tensor, right: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C, O and N of the planar units that join consecutive CA atoms.

    Args:
        left, right: [..., 3] the two CA atoms. side: [..., 3] a vector on O's side of the line through them.

    Distances other than the ideal one open or close both backbone angles, up to `STRAIN` degrees; what is left
    stretches the unit along the line. Below `CIS_BELOW` the unit is cis.
    """
    axis = right - left
    length = axis.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    axis = axis / length
    up = perpendicular(side, axis)
    plane = _plane_coordinates(length[..., 0])
    c, o, n = (left + p[..., :1] * axis + p[..., 1:] * up for p in plane.unbind(-2))
    return c, o, n


def perpendicular(vector: Tensor, axis: Tensor) -> Tensor:
    """The unit vector [..., 3] along the part of `vector` perpendicular to the unit vector `axis`.

    Without such a part it is an arbitrary perpendicular: the one case that does not turn with the chain.
    """
    part = vector - (vector * axis).sum(-1, keepdim=True) * axis
    small = part.norm(dim=-1, keepdim=True) < 1e-5
    if bool(small.any()):
        spare = torch.eye(3, dtype=axis.dtype, device=axis.device)[axis.abs().argmin(-1)]
        part = torch.where(small, spare - (spare * axis).sum(-1, keepdim=True) * axis, part)
    return normalize(part, dim=-1)


def _plane_coordinates(length: Tensor) -> Tensor:
    """[..., 3, 2] C, O, N in the plane of a unit: x along the line from the first CA, y towards O."""
    span, table = _closures()
    span, table = span.to(length), table.to(length)
    cis = (length < CIS_BELOW).long()
    low, high = span[cis, 0], span[cis, -1]
    inside = length.clamp(low, high)
    position = torch.searchsorted(span, torch.stack([inside.flatten()] * 2)).clamp(1, span.shape[1] - 1)
    right = position[cis.flatten(), torch.arange(cis.numel(), device=cis.device)].view_as(cis)
    fraction = (inside - span[cis, right - 1]) / (span[cis, right] - span[cis, right - 1])
    plane = torch.lerp(table[cis, right - 1], table[cis, right], fraction[..., None, None])
    stretch = torch.stack([length / inside, torch.ones_like(length)], -1)
    return plane * stretch[..., None, :]


@lru_cache(maxsize=1)
def _closures(steps: int = 57) -> tuple[Tensor, Tensor]:
    """CA-CA distances [2, steps] (trans, cis) of units whose two angles are off by -STRAIN..STRAIN, and their atoms."""
    delta = torch.linspace(-STRAIN, STRAIN, steps, dtype=torch.float64)
    c = torch.tensor([CA_C, 0.0], dtype=torch.float64).expand(steps, 2)
    o = c + C_O * _heading(180 - CA_C_O + delta / 2)
    n = c + C_N * _heading(180 + CA_C_N + delta)
    spans, tables = [], []
    for turn in (-1, 1):  # at N a trans chain turns back to its old heading, a cis one turns on
        end = n + N_CA * _heading(CA_C_N + delta + turn * (C_N_CA + delta))
        span = end.norm(dim=-1)
        x = end / span[:, None]
        y = torch.stack([-x[:, 1], x[:, 0]], -1)
        spans.append(span)
        tables.append(torch.stack([torch.stack([(p * x).sum(-1), (p * y).sum(-1)], -1) for p in (c, o, n)], 1))
    return torch.stack(spans), torch.stack(tables)


def _heading(degrees: Tensor) -> Tensor:
    angle = torch.deg2rad(degrees)
    return torch.stack([torch.cos(angle), torch.sin(angle)], -1)


def attach(anchor: Tensor, previous: Tensor, towards: Tensor, bond: float, angle: float) -> Tensor:
    """An atom [..., 3] at `bond` A from `anchor`, `angle` degrees from `previous`, on the side of `towards`."""
    back = normalize(previous - anchor, dim=-1)
    a = math.radians(angle)
    return anchor + bond * (math.cos(a) * back + math.sin(a) * perpendicular(towards, back))


def beta_carbon(n: Tensor, ca: Tensor, c: Tensor) -> Tensor:
    """CB [..., 3] of an L residue: ideal tetrahedral geometry about CA, never the mirror image."""
    to_n, to_c = normalize(n - ca, dim=-1), normalize(c - ca, dim=-1)
    bisector = -normalize(to_n + to_c, dim=-1)
    normal = normalize(torch.linalg.cross(to_n, to_c), dim=-1)
    tilt = math.radians(CB_TILT)
    return ca + CA_CB * (math.cos(tilt) * bisector + math.sin(tilt) * normal)


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral angles [...] of four atoms in degrees, IUPAC sign."""
    u, v, w = b - a, c - b, d - c
    left, right = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    sine = (left * w).sum(-1) * v.norm(dim=-1)
    return torch.rad2deg(torch.atan2(sine, (left * right).sum(-1)))
