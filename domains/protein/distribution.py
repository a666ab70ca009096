"""Distance of a set of chains from real ones, on the features and classes of a fold classifier (protein spec 3.1).

With official `gearnet_ca` weights, and only then, the metrics are called FPSD, fS and fJSD (arXiv:2503.00710).
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from xdistill.domain import Metric
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.classifier import SHIPPED, Classified, FoldClassifier, load_classifier
from xdistill.errors import XDistillError
from xdistill.intervals import QUANTILES, bootstrap_rows

Array = NDArray[np.float64]
REFERENCE = SHIPPED.with_name("classifier_reference.safetensors")
LEVELS = ("C", "A", "T")
LENGTH_BIN = 8  # residues
FLOOR_DRAWS = 20
RESAMPLES = 100  # of the bootstrap: a matrix root each
JS_SCALE = 10  # as published
TINY = 1e-10
OURS = ("classifier_frechet", "classifier_fold_score", "classifier_js")
PUBLISHED = ("FPSD", "fS", "fJSD")


@dataclass(frozen=True)
class Statistics:
    """What is compared with: mean [d] and covariance [d, d] of features, mean class probabilities by level."""

    mean: Array
    cov: Array
    probabilities: Mapping[str, Array]

    @classmethod
    def of(cls, known: Classified, weights: Array | None = None) -> Statistics:
        """Of classified chains, weighted [B] (all alike by default)."""
        w = np.full(len(known), 1 / len(known)) if weights is None else weights / weights.sum()
        mean, classes = w @ known.features, {k: w @ known.probabilities[k] for k in LEVELS}
        return cls(mean, np.cov(known.features, rowvar=False, aweights=w), classes)


def features(chains: Sequence[ArrayLike], weights: str | Path | None = None) -> Array:
    """Classifier features [B, d] of CA traces [n, 3] in nm, n >= 4; `weights` as in `load_classifier`."""
    return load_classifier(weights)(chains).features


def metrics(
    chains: Sequence[ArrayLike],
    seed: int = 0,
    weights: str | Path | None = None,
    statistics: str | Path | None = None,
) -> dict[str, Metric]:
    """Distances of CA traces [n, 3] in nm from the embedded real chains, with bootstrap intervals over samples.

    - classifier_frechet: Frechet distance of features. Its value falls with the number of samples n (every Frechet
      distance does, and below n = d strongly): compare at equal n, and with the floor.
    - classifier_frechet_floor: the same of held-out real chains (val and test), as many and as long as the samples,
      against the train split; mean and 95 % range of 20 draws.
    - classifier_fold_score_{C,A,T}: exp(mean KL(p(y|x) || p(y))), from 1 to the number of classes: sure and varied.
    - classifier_js_{C,A,T}: 10 x Jensen-Shannon divergence (natural logarithm) of mean class probabilities.

    Features depend on length. Real chains are therefore weighted to the lengths of the samples in bins of 8 residues;
    samples longer or shorter than all real chains are compared with the longest or shortest ones.

    Args:
        weights: official `gearnet_ca.pth` gives FPSD, fS_*, fJSD_* instead. With ours A and T are not CATH's levels,
            see `fold_targets`: the numbers compare with nothing published.
        statistics: published reference statistics (`pdb_eval_ca_features.pth`), only with official weights;
            then lengths are not matched: sample the published protocol's lengths.

    Chains with NaN take no part. Empty with fewer than 2 chains.
    Raises XDistillError for a chain of another shape, and for files that are missing or wrong; UsageError without
    torch-geometric.
    """
    classifier, rng = load_classifier(weights), np.random.default_rng(seed)
    finite = [np.asarray(x) for x in chains if np.isfinite(x).all()]
    if len(finite) < 2:
        return {}
    if statistics is not None and not classifier.official:
        raise XDistillError(f"{statistics} goes with official classifier weights: give them as well")
    sample = classifier(finite)
    lengths = np.array([len(x) for x in finite])
    real = None if statistics else _reference(None if weights is None else str(weights))
    target = load_statistics(statistics) if statistics else real.matched(lengths, held_out=False)  # type: ignore[union-attr]
    frechet, score, js = PUBLISHED if classifier.official else OURS
    distance = Frechet(target)
    out = {frechet: _low(bootstrap_rows(sample.features, distance, rng, RESAMPLES))}
    if real is not None:
        out[f"{frechet}_floor"] = _floor(distance, real, lengths, rng)
    for level in LEVELS:
        p, q = sample.probabilities[level], target.probabilities[level]
        out[f"{score}_{level}"] = replace(bootstrap_rows(p, fold_score, rng, RESAMPLES), better="high")
        divergence = partial(_divergence, target=q)
        out[f"{js}_{level}"] = _low(bootstrap_rows(p, divergence, rng, RESAMPLES))
    return out


class Frechet:
    """Rows [n, d] -> Frechet distance of their Gaussian to a fixed one, whose matrix root is taken once."""

    def __init__(self, target: Statistics) -> None:
        values, vectors = np.linalg.eigh(target.cov)
        self.target, self.root = target, (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def __call__(self, rows: Array) -> float:
        cov = np.cov(rows, rowvar=False)
        cross = np.sqrt(np.linalg.eigvalsh(self.root @ cov @ self.root).clip(0)).sum()
        shift = ((rows.mean(0) - self.target.mean) ** 2).sum()
        return float(shift + np.trace(cov) + np.trace(self.target.cov) - 2 * cross)


def fold_score(probabilities: Array) -> float:
    """exp(mean_i KL(p_i || mean p)) of class probabilities [n, k]."""
    mean = probabilities.mean(0)
    return float(np.exp(_kl(probabilities, mean[None]).mean()))


def jensen_shannon(p: Array, q: Array) -> float:
    """10 x Jensen-Shannon divergence of two class distributions [k], natural logarithm: at most 6.93."""
    middle = (p + q) / 2
    return JS_SCALE * float(_kl(p, middle) + _kl(q, middle)) / 2


def load_statistics(path: str | Path) -> Statistics:
    """Published reference statistics of the official classifier: sums over real chains, read weights-only."""
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        n = float(raw["FID_real_features_num_samples"])
        mean = raw["FID_real_features_sum"].double().numpy() / n
        cov = (raw["FID_real_features_cov_sum"].double().numpy() - n * np.outer(mean, mean)) / (n - 1)
        sums = {k: raw[f"fJSD_{k}_real_features_sum"].double().numpy() for k in LEVELS}
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise XDistillError(
            f"{path} holds no reference statistics such as pdb_eval_ca_features.pth ({str(error).splitlines()[0]})"
        ) from error
    return Statistics(mean, cov, {k: v / v.sum() for k, v in sums.items()})


@dataclass(frozen=True)
class Reference:
    """The embedded chains as a classifier sees them; lengths [B], held_out [B]: of val or test."""

    known: Classified
    lengths: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    def weights(self, lengths: NDArray[np.int64], held_out: bool) -> Array:
        """[B] weights that give the chains of one side the lengths of `lengths`, in bins."""
        side = self.held_out == held_out
        low, high = self.lengths[side].min(), self.lengths[side].max()
        ours = (self.lengths - low) // LENGTH_BIN
        wanted = np.bincount((lengths.clip(low, high) - low) // LENGTH_BIN, minlength=ours.max() + 1)
        present = np.bincount(ours[side], minlength=len(wanted))
        return np.where(side, (wanted / np.maximum(present, 1))[ours.clip(0)], 0.0)

    def matched(self, lengths: NDArray[np.int64], held_out: bool) -> Statistics:
        """Statistics of one side, weighted to `lengths`."""
        side = self.held_out == held_out
        known = Classified(self.known.features[side], {k: v[side] for k, v in self.known.probabilities.items()})
        return Statistics.of(known, self.weights(lengths, held_out)[side])


def save_reference(weights: Path, path: Path) -> None:
    """Write the classifier's features of the whole embedded set, float16, tied to the weights by their sha256."""
    chains = load_embedded("all")
    values = load_classifier(weights)([chains.coords(i) for i in range(len(chains))]).features
    save_file({"features": torch.from_numpy(values).half()}, path, {"weights_sha256": _sha256(weights)})


@lru_cache(maxsize=2)
def _reference(weights: str | None) -> Reference:
    """Shipped features for shipped weights; otherwise computed once in this process."""
    chains, classifier = load_embedded("all"), load_classifier(weights)
    held_out = np.isin(chains.ids, load_embedded("val").ids + load_embedded("test").ids)
    known = _shipped_features(classifier) if weights is None else None
    known = known or classifier([chains.coords(i) for i in range(len(chains))])
    return Reference(known, chains.lengths, held_out)


def _shipped_features(classifier: FoldClassifier) -> Classified:
    with safe_open(REFERENCE, framework="pt") as file:
        if file.metadata()["weights_sha256"] != _sha256(SHIPPED):
            raise XDistillError(f"{REFERENCE} belongs to other weights than {SHIPPED}: install the package again")
        return classifier.classify(file.get_tensor("features"))


def _floor(distance: Frechet, real: Reference, lengths: NDArray[np.int64], rng: np.random.Generator) -> Metric:
    weights = real.weights(lengths, held_out=True)
    known, p = real.known.features[weights > 0], weights[weights > 0] / weights.sum()
    n = min(len(lengths), len(known))
    values = [distance(known[rng.choice(len(known), n, replace=False, p=p)]) for _ in range(FLOOR_DRAWS)]
    low, high = np.percentile(values, QUANTILES)
    return Metric(float(np.mean(values)), float(low), float(high), n)


def _divergence(rows: Array, target: Array) -> float:
    return jensen_shannon(rows.mean(0), target)


def _kl(p: Array, q: Array) -> Array:
    return (p * (np.log(p + TINY) - np.log(q + TINY))).sum(-1)


def _low(metric: Metric) -> Metric:
    return replace(metric, better="low")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
