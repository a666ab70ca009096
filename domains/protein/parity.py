"""Replay of recorded network calls and checkpoints against this implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xdistill.domains.protein.checkpoint import load_official
from xdistill.domains.protein.labels import ClassMap
from xdistill.domains.protein.network import Proteina, ProteinaConfig
from xdistill.errors import XDistillError
from xdistill.testing.results import CaseResult, compare

_HALF_ATOL = 2e-2  # pair logits are stored in float16

_SUM_RTOL = 1e-6


def replay_denoisers(directory: str | Path) -> list[CaseResult]:
    """Run every case of every `denoiser_*.json` in `directory`; one result per case and output.

    Raises XDistillError if the directory holds none.
    """
    specs = sorted(Path(directory).glob("denoiser_*.json"))
    if not specs:
        raise XDistillError(f"no denoiser_*.json in {directory}; expected the layout of tests/fixtures/protein")
    return [result for spec in specs for result in _replay_denoiser(spec)]


def replay_checkpoints(directory: str | Path) -> list[CaseResult]:
    """Load every official `*.ckpt` in `directory` and compare with the checksums in the JSON of the same name.

    Raises XDistillError if the directory holds none.
    """
    paths = [p for p in sorted(Path(directory).glob("*.ckpt")) if p.with_suffix(".json").is_file()]
    if not paths:
        raise XDistillError(f"no .ckpt with a .json beside it in {directory}")
    return [result for path in paths for result in _replay_checkpoint(path)]


def load_recorded_network(spec: dict[str, Any], weights: dict[str, Tensor]) -> tuple[Proteina, ClassMap]:
    """The evaluation-mode network of a fixture: `config`, `cath_label_mapping` and `nn.`-prefixed weights."""
    classes = ClassMap.from_dict(spec.get("cath_label_mapping") or {"C": {}, "A": {}, "T": {}})
    net = Proteina(ProteinaConfig.from_dict(spec["config"]), classes.num_classes)
    net.load_state_dict({k.removeprefix("nn."): v for k, v in weights.items()})
    return net.eval(), classes


@torch.no_grad()
def _replay_denoiser(path: Path) -> list[CaseResult]:
    spec = json.loads(path.read_text())
    net, classes = load_recorded_network(spec, load_file(path.with_suffix(".weights.safetensors")))
    stored = load_file(path.with_suffix(".cases.safetensors"))
    results = []
    for case, info in spec["cases"].items():
        given = {k: stored[f"{case}/in/{k}"] for k in info["inputs"]}
        if "chain_breaks_per_residue" in given:
            given["chain_breaks"] = given.pop("chain_breaks_per_residue")
        codes = info["cath_code"]
        labels = None if codes is None else classes.encode(codes)
        out = net(**given, labels=labels)
        for key, value in out.items():
            name = f"{path.stem}/{case}/{key}"
            expected = stored[f"{case}/out/{key}"]
            half = expected.dtype == torch.float16
            atol = _HALF_ATOL if half else spec["tolerance"]["atol"]
            results.append(compare(name, value, expected, atol, 0.0 if half else spec["tolerance"]["rtol"]))
    return results


def _replay_checkpoint(path: Path) -> list[CaseResult]:
    recorded = json.loads(path.with_suffix(".json").read_text())
    state = load_official(path, prefer_ema=False).net.state_dict()
    total = sum(v.double().abs().sum().item() for v in state.values())
    expected = recorded["sum_of_abs_of_all_state_dict_values"]
    errors = {
        "n_state_dict": (abs(len(state) - recorded["n_state_dict"]), 0.0),
        "sum_of_abs": (abs(total - expected), _SUM_RTOL * expected),
    }
    return [CaseResult(f"{path.stem}/{k}", error, limit, error <= limit) for k, (error, limit) in errors.items()]
