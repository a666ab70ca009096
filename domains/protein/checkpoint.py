"""Proteina networks on disk: the official Lightning checkpoints (read without executing them), safetensors + JSON."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdistill.domains.protein.labels import ClassMap
from xdistill.domains.protein.network import Proteina, ProteinaConfig
from xdistill.errors import XDistillError
from xdistill.foreign import check_fit, read_archive

FORMAT = "xdistill-proteina-1"
_PREFIX = "nn."
_EMA = "-EMA"
_CLASS_MAP_FILE = "cath_label_mapping.pt"
_DEFAULT_LORA_ALPHA = 32.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in evaluation mode, float32, on the CPU.

    Attributes:
        class_map: label prefixes -> rows of the fold embedding, or None if unknown (then labels cannot be encoded).
        target_pred: what `coors_pred` is, in Proteina's words: `v` (velocity to the data) or `x_1` (clean backbone).
        provenance: where the weights come from.
    """

    net: Proteina
    class_map: ClassMap | None = None
    target_pred: str = "v"
    provenance: dict[str, Any] = field(default_factory=dict)


def load_official(
    path: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    class_map: str | Path | None = None,
    prefer_ema: bool = True,
    lora_alpha: float | None = None,
) -> LoadedNetwork:
    """Load a Lightning checkpoint of the official trainer, weights-only with an allow-list of configuration classes.

    Args:
        path: `X.ckpt`; if `X-EMA.ckpt` lies beside it that one is read instead, unless `prefer_ema` is off.
        config: values that replace those of the checkpoint's own network configuration.
        class_map: fold classes, see `load_class_map`; the path stored in the checkpoint is of the training site.
        lora_alpha: scale of LoRA weights (merged on load); default the checkpoint's, or 32.

    Raises XDistillError for a missing, truncated, foreign or hostile file, or weights that do not fit the network.
    """
    path = _ema_twin(Path(path)) if prefer_ema else Path(path)
    content = read_archive(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise XDistillError(f"{path} has no state_dict; expected a Lightning checkpoint of the Proteina trainer")
    state = {k.removeprefix(_PREFIX): v for k, v in content["state_dict"].items() if k.startswith(_PREFIX)}
    if not state:
        raise XDistillError(
            f"{path} has no parameters named {_PREFIX}*; it is not a checkpoint of the Proteina trainer"
        )
    experiment = _experiment(content, path)
    model = experiment.get("model") or {}
    values = {**(model.get("nn") or {}), **(config or {})}
    if not values:
        raise XDistillError(f"{path} holds no network configuration (cfg_exp.model.nn); pass `config`")
    alpha = lora_alpha or (experiment.get("lora") or {}).get("lora_alpha") or _DEFAULT_LORA_ALPHA
    state, merged = merge_lora(state, alpha)
    net = _build(ProteinaConfig.from_dict(values), state, path)
    provenance = {
        "source": path.name,
        "sha256": _sha256(path),
        "weights": "EMA" if path.stem.endswith(_EMA) else "as stored",
        "lora_layers_merged": merged,
        "global_step": content.get("global_step"),
        "samples_processed": content.get("nsamples_processed"),
    }
    classes = None if class_map is None else _checked(load_class_map(class_map), net.num_classes, class_map)
    return LoadedNetwork(net, classes, model.get("target_pred", "v"), provenance)


def load_class_map(path: str | Path) -> ClassMap:
    """Fold classes from JSON, from a weights-only torch file, or from a directory with `cath_label_mapping.pt`."""
    path = Path(path)
    path = path / _CLASS_MAP_FILE if path.is_dir() else path
    values = _read_json(path) if path.suffix == ".json" else read_archive(path)
    if not isinstance(values, Mapping):
        raise XDistillError(f"{path} is no fold class map; expected a mapping with the keys C, A and T")
    return ClassMap.from_dict(values)


def merge_lora(state: Mapping[str, Tensor], alpha: float) -> tuple[dict[str, Tensor], int]:
    """Fold `lora_A [r, in]`, `lora_B [out, r]` into `weight`: `W + alpha/r B A`, transposed for embeddings.

    Returns the merged state and the number of merged layers (arXiv:2106.09685, eq. 3).
    """
    merged = {k: v for k, v in state.items() if not k.endswith((".lora_A", ".lora_B"))}
    layers = [k.removesuffix(".lora_A") for k in state if k.endswith(".lora_A")]
    for layer in layers:
        if f"{layer}.lora_B" not in state or f"{layer}.weight" not in state:
            raise XDistillError(
                f"LoRA layer {layer}: lora_A without its lora_B or weight; the checkpoint is incomplete"
            )
        a, b = state[f"{layer}.lora_A"].float(), state[f"{layer}.lora_B"].float()
        update = (b @ a) * (alpha / a.shape[0])
        is_embedding = layer.rpartition(".")[2].startswith("embedding_")
        merged[f"{layer}.weight"] = merged[f"{layer}.weight"].float() + (update.T if is_embedding else update)
    return merged, len(layers)


def save_network(
    net: Proteina,
    path: str | Path,
    *,
    class_map: ClassMap | None = None,
    target_pred: str = "v",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `net` as safetensors + JSON; returns the path of the weights.

    `path` is a directory (files `network.safetensors`, `network.json`) or the name of the `.safetensors` file. The JSON
    is written last and holds the weights' sha256, so an interrupted save is never mistaken for a complete one.
    """
    weights = _weights_path(Path(path))
    weights.parent.mkdir(parents=True, exist_ok=True)
    temporary = weights.with_suffix(".tmp")
    save_file({k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}, temporary)
    description = {
        "format": FORMAT,
        "weights_sha256": _sha256(temporary),
        "config": net.config.to_dict(),
        "num_classes": list(net.num_classes),
        "class_map": None if class_map is None else class_map.to_dict(),
        "target_pred": target_pred,
        "provenance": dict(provenance or {}),
    }
    os.replace(temporary, weights)
    temporary.write_text(json.dumps(description, indent=1) + "\n")
    os.replace(temporary, weights.with_suffix(".json"))
    return weights


def load_network(path: str | Path) -> LoadedNetwork:
    """Load what `save_network` wrote, from its directory, weights or JSON; an official `.ckpt` is loaded as such.

    Raises XDistillError if a file is missing, damaged, or of another format.
    """
    if Path(path).suffix == ".ckpt":
        return load_official(path)
    weights = _weights_path(Path(path))
    description = _read_json(weights.with_suffix(".json"))
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise XDistillError(f"{weights.with_suffix('.json')} does not describe a network; expected format {FORMAT}")
    if not weights.is_file():
        raise XDistillError(f"{weights} does not exist; expected the weights beside their JSON")
    if _sha256(weights) != description.get("weights_sha256"):
        raise XDistillError(
            f"{weights} is not the file that its JSON describes (sha256 differs); save or copy it again"
        )
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise XDistillError(f"{weights} is not a readable safetensors file: {error}") from error
    net = _build(ProteinaConfig.from_dict(description["config"]), state, weights, description["num_classes"])
    classes = None if description["class_map"] is None else ClassMap.from_dict(description["class_map"])
    return LoadedNetwork(net, classes, description["target_pred"], description["provenance"])


def convert(ckpt: str | Path, out: str | Path, **options: Any) -> Path:
    """Official checkpoint -> safetensors + JSON at `out`; `options` of `load_official`. Returns the weights' path."""
    loaded = load_official(ckpt, **options)
    return save_network(
        loaded.net,
        out,
        class_map=loaded.class_map,
        target_pred=loaded.target_pred,
        provenance=loaded.provenance,
    )


def _ema_twin(path: Path) -> Path:
    twin = path.with_name(f"{path.stem}{_EMA}{path.suffix}")
    if path.stem.endswith(_EMA) or not twin.is_file():
        return path
    logger.warning("reading the EMA weights %s instead of %s", twin.name, path.name)
    return twin


def _experiment(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`hyper_parameters.cfg_exp` as plain containers, interpolations left alone."""
    stored = (content.get("hyper_parameters") or {}).get("cfg_exp")
    try:
        plain: Any = OmegaConf.to_container(stored) if isinstance(stored, DictConfig) else stored
    except OmegaConfBaseException as error:
        raise XDistillError(f"{path}: unreadable configuration cfg_exp ({error})") from error
    return dict(plain) if isinstance(plain, Mapping) else {}


def _build(config: ProteinaConfig, state: dict[str, Tensor], path: Path, classes: Any = None) -> Proteina:
    """The network with these weights, checked name by name and shape by shape."""
    with torch.device("meta"):
        net = Proteina(config, classes or _count_classes(state))
    check_fit(path, net.state_dict(), state)
    net.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return net.eval()


def _count_classes(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Fold classes by level from the embeddings' sizes, or none without a fold feature."""
    sizes = {k.split(".")[-2][-1]: len(v) - 1 for k, v in state.items() if ".embedding_" in k}
    return tuple(sizes.get(level, 0) for level in "CAT")


def _checked(classes: ClassMap, expected: tuple[int, ...], path: str | Path) -> ClassMap:
    if classes.num_classes != expected:
        raise XDistillError(f"{path}: {classes.num_classes} classes at levels C, A, T; the network has {expected}")
    return classes


def _weights_path(path: Path) -> Path:
    is_file = path.suffix in (".safetensors", ".json")
    return path.with_suffix(".safetensors") if is_file else path / "network.safetensors"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise XDistillError(
            f"{path} does not exist: expected NAME.safetensors with NAME.json beside it, or an official NAME.ckpt"
        ) from error
    except (OSError, ValueError) as error:
        raise XDistillError(f"{path} is not readable JSON: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
