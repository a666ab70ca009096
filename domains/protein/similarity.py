"""Superposition of equal-length CA traces: Kabsch RMSD and TM-score under the sequential alignment, batched."""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 4  # reweighting steps for every seed ...
FINALISTS, POLISH = 3, 16  # ... then the best seeds go on to convergence
CHUNK_ATOMS = 2**20  # superposed atoms (pairs * seeds * residues) held at once


def tm_scale(n: int) -> float:
    """d0 in nm for n residues: 1.24 (n - 15)^(1/3) - 1.8 A, at least 0.5 A (Zhang & Skolnick 2004, eq. 2)."""
    return max(1.24 * max(n - 15, 0) ** (1 / 3) - 1.8, 0.5) / 10


def rotation(covariance: Tensor) -> Tensor:
    """Proper rotations R [..., 3, 3] that maximise tr(R H) for H = sum_i x_i y_i^T [..., 3, 3].

    The largest eigenvector of Horn's quaternion matrix (J. Opt. Soc. Am. A 4, 629, 1987): unlike an SVD it needs
    no correction against reflections.
    """
    h = covariance
    trace = h.diagonal(dim1=-2, dim2=-1).sum(-1)
    skew = torch.stack([h[..., 1, 2] - h[..., 2, 1], h[..., 2, 0] - h[..., 0, 2], h[..., 0, 1] - h[..., 1, 0]], dim=-1)
    eye = torch.eye(3, dtype=h.dtype, device=h.device)
    lower = h + h.mT - trace[..., None, None] * eye
    top = torch.cat([trace[..., None], skew], dim=-1)[..., None, :]
    matrix = torch.cat([top, torch.cat([skew[..., None], lower], dim=-1)], dim=-2)
    w, x, y, z = torch.linalg.eigh(matrix).eigenvectors[..., -1].unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def superpose(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rigid motion x R^T + t of x [..., n, 3] onto y that minimises sum_i w_i d_i^2: R [..., 3, 3], t [..., 3]."""
    w = (weight / weight.sum(-1, keepdim=True).clamp(min=1e-12))[..., None]
    from_, to = (w * x).sum(-2, keepdim=True), (w * y).sum(-2, keepdim=True)
    turn = rotation((w * (x - from_)).mT @ (y - to))
    return turn, (to - from_ @ turn.mT).squeeze(-2)


def superposed_distance(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Squared distances [..., n] after `superpose`."""
    turn, shift = superpose(x, y, weight)
    return (x @ turn.mT + shift[..., None, :] - y).square().sum(-1)


def kabsch_rmsd(x: Tensor, y: Tensor) -> Tensor:
    """RMSD [...] in nm of x, y [..., n, 3] after optimal superposition (proper rotations only)."""
    x, y = x.double(), y.double()
    return superposed_distance(x, y, torch.ones(x.shape[:-1], dtype=x.dtype)).mean(-1).sqrt()


def tm_scores(x: Tensor, y: Tensor) -> Tensor:
    """TM-score [p] of pairs x, y [p, n, 3] (nm), residue i aligned to residue i; float32, in (0, 1].

    max over rigid motions of mean_i 1 / (1 + d_i^2 / d0^2). The sum is concave in d^2, so reweighting with
    w_i = 1 / (1 + d_i^2 / d0^2)^2 and superposing again never lowers it; the ascent starts from the whole chain and
    from fragments of 1/2, 1/4 and 1/8 of it. As the alignment is fixed to equal indices, the value is a lower bound
    of the structural TM-score that TM-align or foldseek search for.
    """
    n = x.shape[-2]
    seeds = _seeds(n)
    per_chunk = max(1, CHUNK_ATOMS // (len(seeds) * n))
    chunks = zip(x.float().split(per_chunk), y.float().split(per_chunk), strict=True)
    return torch.cat([_ascend(a, b, seeds, tm_scale(n)) for a, b in chunks])


def pairwise_tm(coords: Tensor) -> Tensor:
    """Symmetric [c, c] matrix of `tm_scores` between chains of one length, coords [c, n, 3] nm; unit diagonal."""
    i, j = torch.triu_indices(len(coords), len(coords), offset=1)
    matrix = torch.eye(len(coords))
    if len(i):
        matrix[i, j] = matrix[j, i] = tm_scores(coords[i], coords[j])
    return matrix


def _seeds(n: int) -> Tensor:
    """Indicator weights [s, n] of the fragments that start the search, half overlapping, at least 4 residues."""
    fragments = dict.fromkeys(
        (start, min(start + size, n))
        for size in (n, *(max(n // k, 4) for k in (2, 4, 8)))
        for start in range(0, max(n - size, 0) + 1, max(size // 2, 1))
    )
    index = torch.arange(n)
    return torch.stack([((index >= a) & (index < b)).float() for a, b in fragments])


def _ascend(x: Tensor, y: Tensor, seeds: Tensor, d0: float) -> Tensor:
    x, y = x[:, None], y[:, None]
    weight = seeds.expand(len(x), -1, -1)
    for _ in range(SWEEPS):
        score = 1 / (1 + superposed_distance(x, y, weight) / d0**2)
        weight = score.square()
    best = score.mean(-1).topk(min(FINALISTS, len(seeds)), dim=1).indices
    weight = weight.gather(1, best[..., None].expand(-1, -1, weight.shape[-1]))
    for _ in range(POLISH):
        score = 1 / (1 + superposed_distance(x, y, weight) / d0**2)
        weight = score.square()
    return score.mean(-1).amax(dim=1)
