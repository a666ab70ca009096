"""Full backbones from CA traces: N, CA, C, O and CB of every residue, by a small trained head and ideal geometry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from torch import Tensor

from xdistill.domains.protein import peptide
from xdistill.domains.protein.backbone_head import BackboneHead, HeadConfig, Planes
from xdistill.domains.protein.chains import ASSETS
from xdistill.domains.protein.codec import NM
from xdistill.errors import XDistillError

ATOMS = ("N", "CA", "C", "O", "CB")
WEIGHTS = ASSETS / "backbone_head.safetensors"
TOGETHER = 4  # chains placed at once: intermediate results stay in the cache


@dataclass(frozen=True)
class Backbone:
    """A backbone: atoms float32 [n, 5, 3] in Angstrom, in the order of `ATOMS`; CA is the trace it was made from.

    certainty: [n - 1] how sure the head is of each peptide plane, 0 (either side) to 1.
    """

    atoms: NDArray[np.float32]
    certainty: NDArray[np.float32]

    def torsions(self) -> NDArray[np.float64]:
        """phi, psi, omega [n, 3] in degrees; omega of residue i turns about the bond to i + 1; NaN where undefined."""
        n, ca, c = (torch.from_numpy(self.atoms[:, k].astype(np.float64)) for k in range(3))
        angles = torch.full((len(n), 3), torch.nan, dtype=torch.float64)
        angles[1:, 0] = peptide.dihedral(c[:-1], n[1:], ca[1:], c[1:])
        angles[:-1, 1] = peptide.dihedral(n[:-1], ca[:-1], c[:-1], n[1:])
        angles[:-1, 2] = peptide.dihedral(ca[:-1], c[:-1], n[1:], ca[1:])
        return angles.numpy()

    @property
    def positive_phi(self) -> float:
        """Share of residues with phi > 0, which is rare for L residues: 0.06 in real chains, see `place_backbones`."""
        phi = self.torsions()[1:, 0]
        return float((phi > 0).mean())


def place_backbone(ca_nm: ArrayLike, head: BackboneHead | None = None) -> Backbone:
    """The backbone of one CA trace [n, 3] in nm; see `place_backbones`."""
    return place_backbones([ca_nm], head)[0]


@torch.no_grad()
def place_backbones(traces: Sequence[ArrayLike], head: BackboneHead | None = None) -> list[Backbone]:
    """Backbones of CA traces [n, 3] in nm, n >= 3; float32 on the CPU, the same for a trace alone or among others
    up to rounding.

    Every peptide unit is planar with ideal bonds (CA-CA distances off 3.80 A bend its angles first, see
    `peptide.unit_atoms`); the head turns it about its CA-CA line. Placement turns with the trace, and residues are L
    whatever the trace: a mirror image gets no mirrored residues but L residues in strained conformations, which
    `Backbone.positive_phi` shows. head: default, the shipped one.

    Raises:
        XDistillError: a shape other than [n, 3] with n >= 3, or a coordinate that is not finite.
    """
    arrays = [_checked(t) for t in traces]
    head = head or shipped_head()
    found: dict[int, Backbone] = {}
    order = sorted(range(len(arrays)), key=lambda i: len(arrays[i]))
    for start in range(0, len(order), TOGETHER):
        group = order[start : start + TOGETHER]
        found |= zip(group, _place([arrays[i] for i in group], head), strict=True)
    return [found[i] for i in range(len(arrays))]


def _checked(trace: ArrayLike) -> NDArray[np.float32]:
    xyz = np.asarray(trace, dtype=np.float32)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or len(xyz) < 3:
        raise XDistillError(f"a backbone needs a CA trace [n, 3] with n >= 3, got {list(xyz.shape)}: write atoms=ca")
    if not np.isfinite(xyz).all():
        bad = int((~np.isfinite(xyz).all(1)).sum())
        raise XDistillError(f"{bad} of {len(xyz)} residues have NaN or infinite coordinates: no backbone to place")
    return xyz * np.float32(NM)


def _place(traces: list[NDArray[np.float32]], head: BackboneHead) -> list[Backbone]:
    lengths = [len(t) for t in traces]
    centres = [t.mean(0, dtype=np.float64) for t in traces]
    ca = torch.zeros(len(traces), max(lengths), 3)
    for row, trace, centre in zip(ca, traces, centres, strict=True):
        row[: len(trace)] = torch.from_numpy((trace - centre).astype(np.float32))
    mask = torch.arange(ca.shape[1]) < torch.tensor(lengths)[:, None]
    planes = head(ca, mask)
    atoms, sure = assemble(ca, mask, planes).numpy(), planes.sides[-1].norm(dim=-1).clamp(max=1).numpy()
    out = []
    for k, (trace, centre) in enumerate(zip(traces, centres, strict=True)):
        placed = (atoms[k, : len(trace)] + centre).astype(np.float32)
        placed[:, 1] = trace  # to the last bit
        out.append(Backbone(placed, sure[k, : len(trace) - 1].copy()))
    return out


def assemble(ca: Tensor, mask: Tensor, planes: Planes) -> Tensor:
    """Atoms [b, n, 5, 3] of chains ca [b, n, 3] in A from the planes of their units; padded residues hold anything."""
    row, last = torch.arange(len(ca), device=ca.device), mask.sum(1) - 1
    n, c, o = (torch.zeros_like(ca) for _ in range(3))
    c[:, :-1], o[:, :-1], n[:, 1:] = peptide.unit_atoms(ca[:, :-1], ca[:, 1:], planes.towards_o)
    first, end = (
        torch.einsum("bki,bij->bkj", planes.ends[row, unit], planes.frames[row, unit])
        for unit in (torch.zeros_like(last), last - 1)
    )
    n[:, 0] = peptide.attach(ca[:, 0], c[:, 0], first[:, 0], peptide.N_CA, peptide.N_CA_C)
    tail = ca[row, last]
    c[row, last] = peptide.attach(tail, n[row, last], end[:, 1], peptide.CA_C, peptide.N_CA_C)
    o[row, last] = peptide.attach(c[row, last], tail, end[:, 2], peptide.C_O, peptide.CA_C_O)
    return torch.stack([n, ca, c, o, peptide.beta_carbon(n, ca, c)], 2)


@lru_cache(maxsize=1)
def shipped_head() -> BackboneHead:
    """The trained head of `assets/BACKBONE.md`."""
    return load_head(WEIGHTS)


def load_head(path: Path) -> BackboneHead:
    """A head that tools/train_backbone_head.py wrote (safetensors; float16 on disk, float32 here).

    Raises:
        XDistillError: the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            head = BackboneHead(HeadConfig(**json.loads(file.metadata()["config"])))
            head.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise XDistillError(f"no backbone head at {path}: install the package with its assets") from None
    except Exception as e:  # safetensors and torch raise their own kinds on damaged files
        raise XDistillError(f"{path} is no backbone head ({type(e).__name__}): write it anew with its tool") from e
    return head.eval().requires_grad_(False)
