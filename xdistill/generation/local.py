"""Generation in this process: batches of similar size, each file written atomically, interrupted requests continued."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xdistill import __version__, registry, rng
from xdistill.errors import UsageError
from xdistill.evaluation import CallCounter, autocast, by_size
from xdistill.folder import RunFolder
from xdistill.generation.folder import SampleFolder, file_hash

if TYPE_CHECKING:
    from xdistill.student import Loaded


def generate(
    loaded: Loaded,
    num: int,
    out: Path,
    *,
    seed: int = 0,
    batch: int = 16,
    options: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    format: str | None = None,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] = lambda done: None,
) -> SampleFolder:
    """Write samples 0..num-1 into `out`; sample i depends on (seed, i), the request and the checkpoint alone.

    options: of the objective's sampler (steps, noise_scale). request: of the domain's `plan` (lengths, labels).
    The same call continues an interrupted one; finished files are kept. on_batch sees the number of finished samples.
    Raises UsageError when `out` holds something else, or the domain does not know the format or a request key.
    """
    options, request, domain = dict(options or {}), dict(request or {}), loaded.domain
    format = format or next(iter(domain.formats), "")
    if format not in domain.formats:
        raise UsageError(f"unknown format '{format}'{registry.nearest(format, domain.formats)}")
    identity = {
        "domain": domain.name,
        "checkpoint": weights_hash(loaded.manifest),
        "num": num,
        "seed": seed,
        "batch": batch,
        "format": format,
        **options,
        **request,
        "xdistill": __version__,
    }
    order = by_size(domain, num, seed, request)  # before anything is written: it checks the request
    SampleFolder(out, identity)
    lock = RunFolder(out)
    lock.lock()
    try:
        folder = SampleFolder(out, identity)  # again: whoever had the lock may have written since
        model = CallCounter(loaded.model.eval().to(device))
        on_batch(len(folder.records))
        for start in range(0, num, batch):
            indices = order[start : start + batch]
            if not all(i in folder.records for i in indices):
                folder.add(_batch(loaded, model, out, indices, seed, options, request, format, device))
                on_batch(len(folder.records))
    finally:
        lock.release()
    return folder


@torch.no_grad()
def _batch(
    loaded: Loaded,
    model: CallCounter,
    out: Path,
    indices: list[int],
    seed: int,
    options: Mapping[str, Any],
    request: Mapping[str, Any],
    format: str,
    device: torch.device | str,
) -> list[dict[str, Any]]:
    """Draw and write one batch; one record a sample."""
    plan = loaded.domain.plan(indices, seed, **request).to(device)
    calls, began = model.calls, time.perf_counter()
    with autocast(loaded.config["precision"], device):
        state = registry.call(
            loaded.objective.sample,
            options,
            "this student's sampler",
            model,
            plan.like,
            plan.cond,
            rng.per_sample(seed, indices),
        )
    samples = loaded.domain.decode(state)  # inside the timing: on a GPU it waits for the sampler to finish
    seconds = (time.perf_counter() - began) / len(indices)
    records = []
    for i, size, sample in zip(indices, plan.like.elements.tolist(), samples, strict=True):
        file = loaded.domain.write(sample, out / f"sample_{i:06d}.{format}")
        records.append(
            {
                "index": i,
                "file": file.name,
                "seed": seed,
                "size": int(size),
                "calls": model.calls - calls,
                "seconds": round(seconds, 4),
                "sha256": file_hash(file),
            }
        )
    return records


def weights_hash(manifest: Mapping[str, Any]) -> str:
    """Identity of the weights that generate, from a checkpoint's manifest."""
    files = manifest["sha256"]
    return files.get("roles/student_ema.safetensors") or files["roles/student.safetensors"]
