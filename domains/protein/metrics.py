"""Quality of generated CA traces without external tools: every number with its count and a bootstrap 95 % interval.

Calibration (embedded set, 4 587 real chains of 40..128 residues): CA-CA 3.804 +- 0.054 A, 0.7 % outside 3.8 +- 0.1;
virtual angles 85.6 / 100.9 / 145.9 degrees at 1 / 50 / 99 %; closest pair with |i-j| > 2 at 3.59 A in the 1 % quantile;
38.7 % right-handed and 2.9 % left-handed dihedrals. Test split: Rg 13.4 [13.2, 13.7] A, contact
order 0.21 [0.20, 0.22], 0.01 clashes for 100 residues. A chain is `valid` when at least 95 % of its bonds are within
3.8 +- 0.1 A, at least 90 % of its angles within 85..146 degrees, and no pair with |i-j| > 2 is closer than 3.5 A:
97.4 % of the held-out chains (val and test) pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from xdistill.domain import ExtraMetrics, Metric
from xdistill.domains.protein import geometry
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.codec import NM
from xdistill.domains.protein.similarity import pairwise_tm
from xdistill.errors import XDistillError
from xdistill.intervals import bootstrap_pairs, bootstrap_rows, bootstrap_sums

Array = NDArray[np.float64]
BOND, BOND_TOLERANCE = 3.8, 0.1  # A
ANGLES = (85.0, 146.0)  # degrees: 1 % and 99 % of real chains
CLASH = 3.5  # A
VALID_BONDS, VALID_ANGLES = 0.95, 0.90
MIN_SPREAD = 1e-3  # floor of a descriptor's standard deviation
BETTER = {
    **dict.fromkeys(("score", "finite", "valid", "valid_bonds", "valid_angles", "no_clash", "handedness"), "high"),
    **dict.fromkeys(("bond_std", "clashes", "pairwise_tm", "descriptor_frechet"), "low"),
}
COUNT_LOST = ("score", "valid", "no_clash")  # where a chain with NaN counts as 0
CHAIN_METRICS = (
    *("score", "valid", "bond_mean", "bond_std", "valid_bonds", "valid_angles", "no_clash", "clashes"),
    *("rg", "compactness", "contact_order", "right_handed", "left_handed", "handedness", "helix", "strand"),
)


def extra(name: str, *options: Any) -> ExtraMetrics:
    """`module.function(chains, seed, *options)` of this domain by its name, imported when it is called."""
    module, function = name.split(".")

    def measure(chains: Sequence[ArrayLike], seed: int) -> dict[str, Metric]:
        return getattr(import_module(f"xdistill.domains.protein.{module}"), function)(chains, seed, *options)

    return measure


#: Metrics that take longer than reading the coordinates: (chains [n, 3] in nm, seed) -> metrics, cheapest first.
#: Each raises UsageError that says what to install when it needs something that is not there.
EXTRA: Mapping[str, ExtraMetrics] = MappingProxyType(
    {
        "dssp": extra("dssp.metrics"),
        "mpnn": extra("mpnn.metrics"),
        "classifier": extra("distribution.metrics"),
        "clusters": extra("clusters.metrics"),
        "novelty": extra("novelty.metrics"),
        "designability": extra("designability.measure"),
    }
)


def chain_sums(x: Array) -> dict[str, tuple[float, ...]]:
    """Additive statistics of a finite chain [n, 3] in Angstrom: (sum, count[, sum of squares]) of CHAIN_METRICS."""
    n, bonds, angles = len(x), geometry.bond_lengths(x), geometry.virtual_angles(x)
    distance, i, j = geometry.pair_distances(x)
    clash = distance < CLASH
    good_bonds = np.abs(bonds - BOND) <= BOND_TOLERANCE
    good_angles = (angles >= ANGLES[0]) & (angles <= ANGLES[1])
    right, left = geometry.handed_dihedrals(x)
    clear_residues = 1 - len(np.union1d(i[clash], j[clash])) / n
    valid = not clash.any() and good_bonds.mean() >= VALID_BONDS and good_angles.mean() >= VALID_ANGLES
    sse = geometry.secondary_structure(x)
    return {
        "score": (good_bonds.mean() * good_angles.mean() * clear_residues, 1),
        "valid": (valid, 1),
        "bond_mean": (bonds.sum(), len(bonds)),
        "bond_std": (bonds.sum(), len(bonds), (bonds**2).sum()),
        "valid_bonds": (good_bonds.sum(), len(bonds)),
        "valid_angles": (good_angles.sum(), len(angles)),
        "no_clash": (not clash.any(), 1),
        "clashes": (100 * clash.sum(), n),
        "rg": (geometry.radius_of_gyration(x), 1),
        "contact_order": (geometry.contact_order(x), 1),
        "compactness": (geometry.compactness(x), 1),
        "right_handed": (right, n - 3),
        "left_handed": (left, n - 3),
        "handedness": (right, right + left),
        "helix": (sse.count("a"), n),
        "strand": (sse.count("b"), n),
    }


def evaluate_chains(
    chains: Sequence[ArrayLike],
    reference: Sequence[ArrayLike] | None = None,
    seed: int = 0,
    tm_chains: int = 64,
) -> dict[str, Metric]:
    """Metrics of CA traces [n, 3] in nm (n >= 4), each with a bootstrap 95 % interval over chains.

    - score: mean over chains of (valid bonds) * (valid angles) * (residues that clash with none), fractions each: a
      smooth form of `valid` that ranks models none of whose chains are valid yet. It is blind to folds, chirality
      and collapse: read it beside handedness and pairwise_tm.
    - finite: fraction of chains without NaN or infinity. A chain that is not counts as score 0, not `valid` and
      clashing, and takes no part in the rest.
    - valid, no_clash: fractions of chains; bond_mean, bond_std: A; valid_bonds, valid_angles: fractions.
    - clashes: pairs with |i - j| > 2 closer than 3.5 A, for each 100 residues.
    - rg: mean radius of gyration in A; compactness: mean Rg / (2.2 n^0.38 A).
    - contact_order: mean over chains of the mean |i - j| / n over CA pairs with |i - j| > 2 closer than 8 A, as a
      relative contact order without side chains (Plaxco, Simons & Baker, J. Mol. Biol. 277, 985, 1998, counts heavy
      atoms within 6 A, so values differ).
    - right_handed, left_handed: fractions of dihedrals; handedness: right / (right + left), 0.5 for an achiral model.
    - helix, strand: fractions of residues (P-SEA, which hardly sees handedness: a mirrored set scores alike).
    - pairwise_tm: mean TM-score of samples of equal length, aligned by index (lower = more diverse).
    - descriptor_frechet: only with `reference`.

    A metric that the chains leave undefined (no two of equal length, no dihedral of either hand) is left out.

    Args:
        reference: real chains to compare with. Descriptors vary with length: give the same length distribution.
        seed: of the bootstrap.
        tm_chains: at most so many chains of each length (the first ones) enter pairwise_tm.

    Raises:
        XDistillError: no chain, a shape other than [n, 3], or fewer than 4 residues.
    """
    traces = _traces(chains)
    finite = [x for x in traces if np.isfinite(x).all()]
    lost = len(traces) - len(finite)
    sums = [chain_sums(x) for x in finite]
    rng = np.random.default_rng(seed)
    metrics = {"finite": bootstrap_sums(np.array([[1.0, 1]] * len(finite) + [[0.0, 1]] * lost), rng)}
    for name in CHAIN_METRICS:
        rows = [s[name] for s in sums] + [(0.0, 1)] * (lost if name in COUNT_LOST else 0)
        metrics[name] = bootstrap_sums(np.array(rows, np.float64), rng)
    metrics["pairwise_tm"] = diversity(finite, rng, tm_chains)
    if reference is not None:
        metrics["descriptor_frechet"] = descriptor_frechet(finite, _traces(reference), rng)
    return {k: replace(m, better=BETTER.get(k, "none")) for k, m in metrics.items() if m.n > 0}


@lru_cache(maxsize=2)
def calibrate(seed: int = 0) -> Mapping[str, Metric]:
    """What real chains score: `evaluate_chains` of the embedded test split, with the val split as reference.

    Kept for the next call of this process: it takes seconds.
    """
    test, val = ([c.coords(i) for i in range(len(c))] for c in map(load_embedded, ("test", "val")))
    return MappingProxyType(evaluate_chains(test, val, seed))


def diversity(traces: Sequence[Array], rng: np.random.Generator, tm_chains: int = 64) -> Metric:
    """Mean pairwise TM-score over all pairs of equal length (traces in Angstrom); undefined without such a pair."""
    lengths = np.array([len(x) for x in traces], int)
    values, pairs = np.zeros((len(traces),) * 2), np.zeros((len(traces),) * 2, bool)
    for n in np.unique(lengths):
        group = np.flatnonzero(lengths == n)[:tm_chains]
        block = np.ix_(group, group)
        values[block] = pairwise_tm(torch.from_numpy(np.stack([traces[i] for i in group]) / NM)).numpy()
        pairs[block] = ~np.eye(len(group), dtype=bool)
    return bootstrap_pairs(values, pairs, rng)


def descriptor_frechet(
    traces: Sequence[Array], reference: Sequence[Array], rng: np.random.Generator, resamples: int = 200
) -> Metric:
    """Frechet distance between Gaussians fitted to `geometry.descriptor` of samples and reference (Angstrom).

    Descriptors are in units of the reference's standard deviation. The distance falls with the number of samples
    (a bias of every Frechet distance), so compare values at equal n, and with `calibrate` at that n. It is no FPSD:
    no learned features are involved.
    """
    if len(traces) < 2 or len(reference) < 2:
        return bootstrap_rows(np.zeros((0, 1)), float, rng)
    samples, real = (np.stack([geometry.descriptor(x) for x in xs]) for xs in (traces, reference))
    scale = np.maximum(real.std(0), MIN_SPREAD)
    real = real / scale
    return bootstrap_rows(samples / scale, lambda rows: frechet_distance(rows, real), rng, resamples)


def frechet_distance(a: Array, b: Array) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of Gaussians fitted to rows a [n, k], b [m, k]."""
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _traces(chains: Sequence[ArrayLike]) -> list[Array]:
    if len(chains) == 0:
        raise XDistillError("no chain to evaluate: give at least one CA trace [n, 3] in nm")
    traces = [np.asarray(c, np.float64) * NM for c in chains]
    for x in traces:
        if x.ndim != 2 or x.shape[1] != 3 or len(x) < 4:
            raise XDistillError(f"a CA trace to evaluate has shape [n, 3] with n >= 4, got {list(x.shape)}")
    return traces
