"""Fold classifier of CA traces: features for distribution metrics, class probabilities for adherence to a label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from xdistill.domain import Metric
from xdistill.domains.protein import geometry
from xdistill.domains.protein.chains import ChainSet, coarse_class
from xdistill.domains.protein.codec import NM
from xdistill.domains.protein.labels import LEVELS as CATH_LEVELS
from xdistill.domains.protein.labels import ClassMap, coarse_class_map, prefixes
from xdistill.errors import UsageError, XDistillError
from xdistill.intervals import bootstrap_sums

if TYPE_CHECKING:
    from xdistill.domains.protein.gearnet import GearNet

Array = NDArray[np.float64]
SHIPPED = Path(__file__).with_name("assets") / "classifier.safetensors"
MAX_RESIDUES = 4096  # of a batch: bounds the memory of its edges
HELICES, STRANDS = (1, 2, 3, 5), (1, 3, 5, 7)  # lower ends of the bins after the first: 0, 1, 2, 3-4, 5+; 0, 1-2, ...
CONTACT_ORDERS = (0.162, 0.231)  # terciles of the training chains
LEVELS = {"C": 4, "A": 25, "T": 75}  # classes of `fold_targets`


def fold_targets(chains: ChainSet) -> dict[str, NDArray[np.int64]]:
    """Classes [B] by level, from DSSP and coordinates: stand-ins for CATH, whose codes are not known here.

    - C: `coarse_class` - 1.
    - A: helices of 4 residues or more (0, 1, 2, 3-4, 5+) times strands of 2 or more (0, 1-2, 3-4, 5-6, 7+).
    - T: A times the tercile of relative contact order: are the neighbours in space near or far in sequence?
    """
    texts = [chains.dssp(i) for i in range(len(chains))]
    helices = [len(re.findall("[HGI]{4,}", s)) for s in texts]
    strands = [len(re.findall("[EB]{2,}", s)) for s in texts]
    order = [geometry.contact_order(chains.coords(i) * NM) for i in range(len(chains))]
    a = np.digitize(helices, HELICES) * (len(STRANDS) + 1) + np.digitize(strands, STRANDS)
    return {"C": chains.coarse_classes - 1, "A": a, "T": a * 3 + np.digitize(order, CONTACT_ORDERS)}


@dataclass(frozen=True)
class Classified:
    """Features [B, d] and class probabilities [B, classes] by level, of B chains in their order."""

    features: Array
    probabilities: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class FoldClassifier:
    """A trained network; `official` when it has the published architecture, so that metrics may carry their names."""

    net: GearNet

    @property
    def official(self) -> bool:
        """Whether these are weights of the official CA classifier."""
        return self.net.official_geometry

    @torch.no_grad()
    def __call__(self, chains: Sequence[ArrayLike]) -> Classified:
        """Classify CA traces [n, 3] in nm, n >= 4. Raises XDistillError for another shape or NaN."""
        traces = [_trace(c) for c in chains]
        if not traces:
            raise XDistillError("no chain to classify: give at least one CA trace [n, 3] in nm")
        order = sorted(range(len(traces)), key=lambda i: len(traces[i]))
        out = torch.empty(len(traces), self.net.config.hidden_dim)
        for group in _groups(order, [len(x) for x in traces]):
            out[group] = self.net(self.net.graph([traces[i] for i in group]))
        return self.classify(out)

    @torch.no_grad()
    def classify(self, features: torch.Tensor) -> Classified:
        """Class probabilities of features [B, d] that are already known."""
        logits = {k: v.double().softmax(1).numpy() for k, v in self.net.logits(features.float()).items()}
        return Classified(features.double().numpy(), logits)


@lru_cache(maxsize=2)
def load_classifier(path: str | Path | None = None) -> FoldClassifier:
    """The shipped classifier, or the one at `path` (official `gearnet_ca.pth`, or what the training tool wrote).

    Raises UsageError without torch-geometric, XDistillError for a file that is missing or of another kind.
    """
    if find_spec("torch_geometric") is None:
        raise UsageError("the fold classifier needs torch-geometric: pip install 'xdistill[protein]'")
    from xdistill.domains.protein.gearnet import load_gearnet

    return FoldClassifier(load_gearnet(SHIPPED if path is None else path))


def adherence(
    chains: Sequence[ArrayLike],
    labels: Sequence[str],
    seed: int = 0,
    weights: str | Path | None = None,
    classes: ClassMap | None = None,
) -> dict[str, Metric]:
    """Shares of chains that are of the fold class asked for, each with a bootstrap interval.

    - adherence: the fold classifier's most probable class of level C is the label's.
    - adherence_A, adherence_T: the same of finer levels, with official weights and labels that say them.
    - adherence_psea: the coarse class rule on P-SEA's assignment, which needs no network. P-SEA finds fewer strands
      than DSSP: compare with what real chains of that class score (`assets/CLASSIFIER.md`).

    Args:
        chains: CA traces [n, 3] in nm, n >= 4; one with NaN counts as a miss.
        labels: CATH labels such as `1.x.x.x`, one a chain; of a masked level a chain does not count.
        classes: rows of the classifier's heads, needed with official weights (`cath_label_mapping.pt`).

    Raises UsageError when official weights come without classes, or torch-geometric is missing.
    """
    classifier = load_classifier(weights)
    if classifier.official and classes is None:
        raise UsageError("adherence by official classifier weights needs the fold classes: give domain.class_map")
    rows = (classes if classes and classifier.official else coarse_class_map()).levels
    finite = [i for i, x in enumerate(chains) if np.isfinite(x).all()]
    found = classifier([chains[i] for i in finite]).probabilities if finite else {}
    asked = [prefixes(label) for label in labels]
    hits: dict[str, Array] = {}
    for k, level in enumerate(CATH_LEVELS):
        wanted = np.array([rows[k].get(p[k], -1) if p[k] is not None else -1 for p in asked])
        hit = np.zeros(len(asked))
        if finite and rows[k]:
            hit[finite] = found[level].argmax(1) == wanted[finite]
        hits["adherence" if level == "C" else f"adherence_{level}"] = np.stack([hit, wanted >= 0], 1)
    psea = np.zeros(len(asked))
    psea[finite] = [str(psea_class(chains[i])) == asked[i][0] for i in finite]
    hits["adherence_psea"] = np.stack([psea, [p[0] is not None for p in asked]], 1)
    generator = np.random.default_rng(seed)
    metrics = {name: bootstrap_sums(table, generator) for name, table in hits.items()}
    return {name: replace(m, better="high") for name, m in metrics.items() if m.n}


def psea_class(chain: ArrayLike) -> int:
    """Coarse fold class 1..4 of a CA trace [n, 3] in nm, by P-SEA's helix and strand fractions."""
    sse = geometry.secondary_structure(np.asarray(chain, np.float64) * NM)
    return int(coarse_class(sse.count("a") / len(sse), sse.count("b") / len(sse)))


def _trace(chain: ArrayLike) -> torch.Tensor:
    x = np.asarray(chain, np.float32)
    if x.ndim != 2 or x.shape[1] != 3 or len(x) < 4 or not np.isfinite(x).all():
        raise XDistillError(f"a chain to classify is a finite CA trace [n, 3] with n >= 4, got {list(x.shape)}")
    return torch.from_numpy(x * NM)


def _groups(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Consecutive indices whose padded residues (chains times the longest) stay below MAX_RESIDUES."""
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * lengths[i] <= MAX_RESIDUES:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
