"""How many folds a set of chains holds: clusters and mean similarity by alignment TM-score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xdistill.domain import Metric
from xdistill.domains.protein.alignment import structural_tm
from xdistill.intervals import bootstrap_pairs, bootstrap_rows

Array = NDArray[np.float64]
SAME_FOLD = 0.5
CHAINS = 64  # 2 016 pairs: about 30 s on one core


def tm_matrix(chains: Sequence[ArrayLike]) -> Array:
    """Symmetric [b, b] alignment TM-scores of CA traces [n, 3] (nm), normalised by the longer chain; unit diagonal."""
    i, j = np.triu_indices(len(chains), 1)
    matrix = np.eye(len(chains))
    if len(i):
        scores = structural_tm([(chains[a], chains[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)])
        matrix[i, j] = matrix[j, i] = scores.numpy()
    return matrix


def greedy_clusters(similarity: Array, threshold: float = SAME_FOLD) -> NDArray[np.int64]:
    """Cluster of each item [b] from a similarity matrix [b, b]: the index of its representative.

    The item with most unassigned neighbours above the threshold (first of equals) takes them all, and so on. Every
    member is then as similar as the threshold asks to its representative; single linkage would chain unlike folds
    together through intermediates, the more so the more chains there are.
    """
    near = similarity > threshold
    np.fill_diagonal(near, True)
    owner = np.full(len(near), -1)
    while (free := owner < 0).any():
        counts = np.where(free, (near & free).sum(1), -1)
        representative = int(counts.argmax())
        owner[near[representative] & free] = representative
    return owner


def metrics(chains: Sequence[ArrayLike], seed: int = 0, limit: int = CHAINS) -> dict[str, Metric]:
    """Diversity of CA traces [n, 3] in nm over lengths; at most `limit` of them (the first finite ones).

    - tm_clusters: number of clusters at TM 0.5 over number of chains, 1 = all different. It falls with the number of
      chains: compare at equal n. Normal interval from a bootstrap over chains.
    - aligned_tm: mean alignment TM-score over all pairs; unlike pairwise_tm it compares chains of unequal lengths.

    Calibration (32 random chains of the test split): tm_clusters 0.97 [0.86, 1.00], aligned_tm 0.27 [0.26, 0.28].
    """
    finite = [c for c in chains if np.isfinite(np.asarray(c)).all()][:limit]
    if len(finite) < 2:
        return {}
    rng, matrix = np.random.default_rng(seed), tm_matrix(finite)
    owner = greedy_clusters(matrix)[:, None].astype(np.float64)
    share = bootstrap_rows(owner, lambda rows: len(np.unique(rows)) / len(rows), rng)
    pairs = ~np.eye(len(finite), dtype=bool)
    return {
        "tm_clusters": replace(share, high=min(share.high, 1.0), better="high"),
        "aligned_tm": replace(bootstrap_pairs(matrix, pairs, rng), better="low"),
    }
