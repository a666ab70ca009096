"""Designability: do sequences designed for a backbone fold back to it? ProteinMPNN, a folding model, CA RMSD.

The published protocol (spec 3.1): 8 sequences of CA-only ProteinMPNN at temperature 0.1, each folded; scRMSD is the
smallest of the 8 CA RMSDs after superposition, and a backbone is designable when it is below 2 A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from xdistill.domain import Metric
from xdistill.domains.protein import mpnn
from xdistill.domains.protein.codec import NM
from xdistill.domains.protein.folding import FoldingBackend, load_backend
from xdistill.domains.protein.similarity import kabsch_rmsd, tm_scores
from xdistill.errors import XDistillError
from xdistill.intervals import bootstrap_sums

Array = NDArray[np.float64]
Designer = Callable[[ArrayLike, str], Sequence[str]]  # (trace [n, 3] nm, seed) -> sequences
THRESHOLD = 2.0  # A
BETTER = {"designability": "high", "scrmsd": "low", "sctm": "high", "plddt": "high"}


@dataclass(frozen=True)
class SelfConsistency:
    """How well the designed sequences of one chain fold back to it.

    sequence, ca, sctm, plddt belong to the sequence of the smallest RMSD.

    scrmsd: A; rmsd: [sequences] A, of all; sctm: TM-score under the alignment by index, a lower bound of TM-align's;
    plddt: mean over residues, 0..100; ca: predicted trace [n, 3] nm.
    """

    scrmsd: float
    sctm: float
    plddt: float
    sequence: str
    rmsd: Array
    ca: Array

    @property
    def designable(self) -> bool:
        return self.scrmsd < THRESHOLD


def mpnn_designer(chain: ArrayLike, seed: str) -> list[str]:
    """The published one: 8 sequences at temperature 0.1."""
    return mpnn.design(chain, seed)[0]


def self_consistency(
    chain: ArrayLike, backend: FoldingBackend, seed: str, designer: Designer = mpnn_designer
) -> SelfConsistency:
    """Design sequences for a CA trace [n, 3] (nm), fold them, compare; a pure function of its arguments.

    Raises:
        UsageError: ProteinMPNN's weights are not installed.
        XDistillError: the backend's predictions do not have the chain's length.
    """
    sequences = list(designer(chain, seed))
    predictions = backend.fold(sequences)
    target = torch.from_numpy(np.array(chain, np.float64))
    shapes = {np.shape(p.ca) for p in predictions}
    if len(predictions) != len(sequences) or shapes != {tuple(target.shape)}:
        raise XDistillError(
            f"the folding backend returned {len(predictions)} predictions of shapes {sorted(shapes)} for "
            f"{len(sequences)} sequences of {len(target)} residues: expected one CA trace [n, 3] a sequence"
        )
    folded = torch.from_numpy(np.stack([np.asarray(p.ca, np.float64) for p in predictions]))
    rmsd = kabsch_rmsd(folded, target.expand_as(folded)).numpy() * NM
    best = int(np.argmin(rmsd))
    tm = float(tm_scores(folded[best : best + 1], target[None])[0])
    chosen = predictions[best]
    return SelfConsistency(float(rmsd[best]), tm, float(np.mean(chosen.plddt)), sequences[best], rmsd, chosen.ca)


def measure(
    chains: Sequence[ArrayLike], seed: int = 0, folding: str = "esmfold", path: str | Path | None = None
) -> dict[str, Metric]:
    """`metrics` with the published designer and the backend `load_backend(folding, path)`.

    Raises:
        UsageError: ProteinMPNN's weights or what the backend needs are not installed, without chains too.
    """
    mpnn.weights_path()
    return metrics(chains, load_backend(folding, path), seed)


def metrics(
    chains: Sequence[ArrayLike], backend: FoldingBackend, seed: int = 0, designer: Designer = mpnn_designer
) -> dict[str, Metric]:
    """Designability of CA traces [n, 3] in nm, with bootstrap 95 % intervals over chains.

    - designability: fraction of chains with scRMSD < 2 A; a chain with NaN or infinity is not designable.
    - scrmsd (A), sctm, plddt: means over the finite chains of `SelfConsistency`.

    Chain i depends on (seed, i) only.
    """
    finite = [np.isfinite(np.asarray(c)).all() for c in chains]
    results = [self_consistency(c, backend, f"{seed}/{i}", designer) for i, c in enumerate(chains) if finite[i]]
    values = {
        "designability": [float(r.designable) for r in results] + [0.0] * finite.count(False),
        "scrmsd": [r.scrmsd for r in results],
        "sctm": [r.sctm for r in results],
        "plddt": [r.plddt for r in results],
    }
    rng = np.random.default_rng(seed)
    rows = {k: bootstrap_sums(np.array([(v, 1.0) for v in vs]).reshape(-1, 2), rng) for k, vs in values.items()}
    return {k: replace(m, better=BETTER[k]) for k, m in rows.items() if m.n > 0}
