"""MAUVE (2102.01454): how far the distribution of texts lies from held-out text, by features of the judge."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdistill.domain import Metric
from xdistill.domains.text.judges import marked
from xdistill.domains.text.metrics import TextMetrics, real_sequences
from xdistill.errors import UsageError
from xdistill.intervals import UNDEFINED
from xdistill.rng import derive_seed

RESAMPLES = 20
FEWEST = 10  # texts: of fewer, clusters say nothing


def measure(samples: Sequence[Any], metrics: TextMetrics, seed: int = 0) -> dict[str, Metric]:
    """mauve, in (0, 1], against as many held-out sequences; of no samples it checks what it needs.

    Its value depends on the number of texts and on the judge: compare rows of one table. The interval is value +- 1.96
    standard errors over resampled texts. Raises UsageError when mauve-text is missing or the judge has no features.
    """
    missing = [name for name in ("mauve", "faiss", "sklearn") if not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(f"metrics=mauve needs {', '.join(missing)}: pip install 'xdistill[mauve]'")
    metrics.scorer.features([])
    if len(samples) < FEWEST:
        return {"mauve": UNDEFINED} if len(samples) else {}
    real = real_sequences(metrics.validation(), len(samples))
    ours, theirs = (
        metrics.scorer.features([marked(np.asarray(ids).tolist(), metrics.tokenizer) for ids in group])
        for group in (samples, real)
    )
    rng, value = np.random.default_rng(derive_seed("mauve", seed)), _mauve(ours, theirs, seed)
    drawn = [_mauve(ours[rng.integers(len(ours), size=len(ours))], theirs, seed) for _ in range(RESAMPLES)]
    spread = 1.96 * float(np.std(drawn))
    return {"mauve": Metric(value, max(value - spread, 0.0), min(value + spread, 1.0), len(samples), "high")}


def _mauve(p: NDArray[np.float32], q: NDArray[np.float32], seed: int) -> float:
    import mauve

    return float(mauve.compute_mauve(p_features=p, q_features=q, seed=seed % 2**31, verbose=False).mauve)
