"""Structure prediction from sequence: the protocol of a backend, and ESMFold through transformers.

A backend of your own is any object with `fold`; `load_backend("package.module:factory")` calls yours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from xdistill.domains.protein.codec import NM
from xdistill.errors import UsageError, XDistillError

Array = NDArray[np.float64]
ESMFOLD = "facebook/esmfold_v1"
CA = 1  # index of CA among the atoms of a residue, in atom14 and atom37 order
BATCH_RESIDUES = 1024


@dataclass(frozen=True)
class Prediction:
    """ca: [n, 3] nm; plddt: [n] per-residue confidence, 0..100."""

    ca: Array
    plddt: Array


class FoldingBackend(Protocol):
    """Predicts structures from one-letter sequences."""

    def fold(self, sequences: Sequence[str]) -> list[Prediction]:
        """One prediction a sequence, in order."""


class ESMFold:
    """ESMFold (Lin et al., Science 379, 1123, 2023), float32; the language model in float16 on a GPU.

    Args:
        path: folder of `save_pretrained` or a snapshot of facebook/esmfold_v1; default: the Hugging Face cache.
            Nothing is ever downloaded.
        device: default: a GPU if there is one.

    Raises:
        UsageError: transformers or the weights are not on this machine.
        XDistillError: the folder holds no ESMFold, or not all of its weights.
    """

    def __init__(
        self, path: str | Path | None = None, device: str | None = None, batch_residues: int = BATCH_RESIDUES
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = _load_esmfold(path).to(device).eval().requires_grad_(False)
        if device != "cpu":
            self.model.esm.half()
        self.batch_residues = batch_residues

    def fold(self, sequences: Sequence[str]) -> list[Prediction]:
        """Predictions of sequences of any lengths, folded in batches of equal length."""
        found: dict[int, Prediction] = {}
        for length in sorted({len(s) for s in sequences}):
            group = [i for i, s in enumerate(sequences) if len(s) == length]
            size = max(1, self.batch_residues // length)
            for batch in (group[k : k + size] for k in range(0, len(group), size)):
                out = self.model.infer([sequences[i] for i in batch])
                ca = out.positions[-1, :, :, CA].double().cpu().numpy() / NM
                plddt = out.plddt[:, :, CA].double().cpu().numpy() * 100
                found.update((i, Prediction(*row)) for i, *row in zip(batch, ca, plddt, strict=True))
        return [found[i] for i in range(len(sequences))]


@lru_cache(maxsize=1)
def load_backend(name: str = "esmfold", path: str | Path | None = None, device: str | None = None) -> FoldingBackend:
    """`esmfold` (weights at `path` or in the Hugging Face cache), or `package.module:factory` of your own.

    A factory is called as factory(path=path, device=device), None being its own choice. The last backend is kept.

    Raises:
        UsageError: unknown name, or what the backend needs is not on this machine.
    """
    if name == "esmfold":
        return ESMFold(path, device)
    module, _, factory = name.partition(":")
    if not factory:
        raise UsageError(f"unknown folding backend {name!r}: expected esmfold or package.module:factory")
    try:
        return getattr(import_module(module), factory)(path=path, device=device)
    except (ImportError, AttributeError) as e:
        raise UsageError(f"cannot load the folding backend {name}: {e}") from e


def _load_esmfold(path: str | Path | None) -> Any:
    try:
        from transformers import EsmConfig, EsmForProteinFolding
    except ImportError:
        raise UsageError("ESMFold needs transformers: pip install 'xdistill[designability]'") from None
    if path is not None and not (Path(path) / "config.json").is_file():
        raise UsageError(f"no ESMFold at {path}: expected a folder with config.json and weights, as of {ESMFOLD}")
    source = ESMFOLD if path is None else str(path)
    try:
        config = EsmConfig.from_pretrained(source, local_files_only=True)
        if not config.is_folding_model:
            raise XDistillError(f"{source} is an ESM language model without a folding trunk: expected {ESMFOLD}")
        loaded: Any = EsmForProteinFolding.from_pretrained(
            source,
            config=config,
            local_files_only=True,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except XDistillError:
        raise
    except Exception as e:  # transformers raises nearly anything on damaged files
        if path is None and isinstance(e, OSError):
            raise UsageError(
                "designability needs the weights of ESMFold, which are not on this machine: "
                f"fetch them with `hf download {ESMFOLD}` (8 GB), or name their folder: domain.esmfold=FOLDER"
            ) from None
        raise XDistillError(f"cannot load ESMFold from {source}: {' '.join(str(e).split())[:160]}") from e
    model, report = loaded
    missing = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:  # transformers would leave them random
        raise XDistillError(f"{source} lacks {len(missing)} weights of ESMFold, {missing[0]} first: fetch it again")
    return model
