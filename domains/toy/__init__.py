"""The toy domain: points and tokens whose teachers are exact, the reference implementation of every protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from xdistill import rng
from xdistill.discriminator import PooledDiscriminator
from xdistill.domain import DataSource, Domain, FilterFactory, Metric, TeacherSampler, clone
from xdistill.domains.toy.codec import (
    PACKED_SUFFIX,
    encode_array,
    pack_arrays,
    read_array,
    read_folder,
    unpack_arrays,
    write_array,
)
from xdistill.domains.toy.data import (
    PROCESSES,
    FolderSource,
    PointSource,
    ToyConfig,
    blank,
    check_samples,
    condition,
    integer,
)
from xdistill.domains.toy.discriminator import TinyTokenDiscriminator
from xdistill.domains.toy.filters import Radius, Side, radius, similarity
from xdistill.domains.toy.metrics import point_metrics
from xdistill.domains.toy.teacher import Label, MixtureTeacher, PointNet
from xdistill.domains.toy.tokens import (
    TablePosterior,
    TokenNet,
    TokenSource,
    random_table,
    token_metrics,
)
from xdistill.errors import UsageError, XDistillError
from xdistill.models import Batch, Featurizer
from xdistill.process import GaussianProcess, Kind, MaskProcess
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.samplers import Plan, ancestral, grid, ode
from xdistill.state import Field, Padded, Tokens

__all__ = ["Label", "MixtureTeacher", "PointNet", "ToyConfig", "ToyDomain"]

ASSET = Path(__file__).parent / "assets" / "mixture.safetensors"
#: What the shipped weights depend on. Process and kind are free: see PointNet.
ASSET_KEYS = ("task", "dim", "std", "modes", "radius", "points", "width", "depth")


class ToyDomain(Domain):
    """Gaussians and mixtures with exact teachers (`ToyConfig` lists the keys).

    An analytic teacher has no weights to clone: its student and critic are the MLP, with the shipped weights
    when they were trained for this configuration, else freshly initialised.
    """

    name = "toy"
    process: GaussianProcess
    formats = ("npz", "csv")
    packed_suffix = PACKED_SUFFIX
    ranking = MappingProxyType({"radius": "low", "side": "high"})
    design_columns: Sequence[str] = ("points", "radius")
    request_keys = MappingProxyType(
        {"points": "points of each set (default: drawn)", "label": "the mode of every sample (default: drawn)"}
    )

    def __new__(cls, cfg: Mapping[str, Any]) -> ToyDomain:
        return super().__new__(ToyTokens if cfg.get("task") == "tokens" else cls)

    def __getnewargs__(self) -> tuple[Mapping[str, Any]]:
        """For pickle: generation sends domains to its workers."""
        return (self.cfg,)

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        self.toy = ToyConfig.parse(cfg)
        self.process = PROCESSES[self.toy.process]()

    def teacher(self) -> nn.Module:
        c = self.toy
        if self.teacher_weights != "shipped":
            return load_weights(self.network(), Path(self.teacher_weights))
        if c.teacher == "analytic":
            return MixtureTeacher(self.process, c.means, c.std, kind=Kind(c.kind))
        if not self._asset_fits():
            raise UsageError(f"toy teacher=mlp: the shipped weights are for {asset_config()}: use teacher=analytic")
        return load_weights(self.network(), ASSET)

    def weak_teacher(self, weights: str) -> nn.Module:
        return load_weights(self.network(), Path(weights))

    def network(self) -> nn.Module:
        c = self.toy
        return PointNet(self.process, c.dim, kind=Kind(c.kind), width=c.width, depth=c.depth, modes=len(c.means))

    def describe(self, module: nn.Module) -> dict[str, Any]:
        return {"kind": str(module.kind), **module.sizes} if isinstance(module, PointNet) else {}

    def from_description(self, description: Mapping[str, Any]) -> nn.Module:
        sizes = dict(description)
        return PointNet(self.process, kind=Kind(sizes.pop("kind")), **sizes)

    def student(self, teacher: nn.Module) -> nn.Module:
        if isinstance(teacher, PointNet):
            return clone(teacher)
        return load_weights(self.network(), ASSET) if self._asset_fits() else self.network()

    def flow_map(self, network: nn.Module) -> nn.Module:
        if not isinstance(network, PointNet) or network.flow_map:
            return network
        grown = PointNet(self.process, kind=network.kind, **network.sizes, flow_map=True)
        grown.load_state_dict({**grown.state_dict(), **network.state_dict()})
        return grown

    def critic(self, teacher: nn.Module) -> nn.Module:
        return self.student(teacher)

    def discriminator(self, teacher: nn.Module) -> nn.Module:
        trunk = teacher if isinstance(teacher, Featurizer) else self.student(teacher).requires_grad_(False)
        return PooledDiscriminator(trunk, self.process)

    def data(self, batch_size: int, seed: int) -> DataSource:
        return self._source(batch_size, seed, real=True)

    def null_data(self, batch_size: int, seed: int) -> DataSource:
        return self._source(batch_size, seed, real=False)

    def _source(self, batch_size: int, seed: int, *, real: bool) -> DataSource:
        if self.data_path is None:
            return PointSource(self.toy, batch_size, seed, real)
        samples = read_folder(Path(self.data_path))
        check_samples(self.toy, samples, self.data_path)
        return FolderSource(self.toy, samples, batch_size, seed, real)

    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch[Field]:
        """Sizes and labels of samples; `points` (of a set) and `label` (mode) fix them for all."""
        if unknown := sorted(set(request) - set(self.request_keys)):
            raise UsageError(f"toy domain: cannot ask for '{unknown[0]}', only for {', '.join(self.request_keys)}")
        draws = [rng.generator("toy-plan", seed, int(i)) for i in indices]
        component = torch.tensor([rng.randint(0, len(self.toy.means), g) for g in draws])
        cond, lengths = condition(self.toy, component), None
        if self.toy.points:
            lengths = torch.tensor([rng.randint(1, self.toy.points + 1, g) for g in draws])
        if "points" in request:
            number = integer("points", request["points"], 1, self.toy.points or 1)
            lengths = torch.full_like(component, number) if self.toy.points else None
        if "label" in request:
            number = integer("label", request["label"], 0, len(self.toy.means) - 1)
            cond = Label(torch.full_like(component, number))
        return Batch(blank(self.toy, len(indices), lengths), cond, real=False)

    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        return {"reference": self._ode(heun=True), "euler": self._ode(heun=False)}

    def _ode(self, *, heun: bool) -> TeacherSampler:
        def sample(model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Field:
            # Heun makes two calls a step but one at the last: n calls are (n + 1) / 2 steps.
            calls = steps or self.toy.teacher_steps
            plan = Plan.uniform((calls + 1) // 2 if heun else calls)
            prior = self.process.prior(batch.like, generator)
            return ode(model, self.process, plan, prior, batch.cond, heun=heun)

        return sample

    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return point_metrics(samples, self.toy.means, self.toy.std, seed)

    def reference_metrics(self) -> dict[str, Metric]:
        return self.metrics(self.decode(self.data(2000, seed=1).batch(0, 0, 1).like))

    def headline(self) -> Sequence[str]:
        return ("mmd2", "mode_coverage") if self.toy.task == "mixture" else ("mmd2",)

    def draw(self, ax: Any, sample: np.ndarray) -> None:
        ax.scatter(sample[:, 0], sample[:, -1], s=12)
        ax.set_aspect("equal")

    def decode(self, sample: Field) -> list[np.ndarray]:
        """[n, D] float32 arrays, n = 1 for a single point."""
        value = sample.project().value.detach().float().cpu()
        if isinstance(sample.layout, Padded):
            return [v[:n].numpy() for v, n in zip(value, sample.layout.lengths.tolist(), strict=True)]
        return [v[None].numpy() for v in value]

    def write(self, sample: np.ndarray, path: Path) -> Path:
        return write_array(sample, path)

    def encode(self, sample: np.ndarray, format: str) -> bytes:
        if format not in self.formats:
            raise UsageError(f"unknown format '{format}'{nearest(format, self.formats)}")
        return encode_array(sample, f".{format}")

    def load(self, path: Path) -> np.ndarray:
        return read_array(path)

    def read(self, folder: Path) -> list[np.ndarray]:
        return read_folder(folder)

    def pack(self, samples: Sequence[np.ndarray], indices: Sequence[int]) -> bytes:
        return pack_arrays(samples, indices)

    def unpack(self, data: bytes) -> dict[int, np.ndarray]:
        return unpack_arrays(data)

    def filters(self) -> Mapping[str, FilterFactory]:
        return {"radius": Radius, "side": Side}

    def design_metrics(self, sample: np.ndarray) -> dict[str, float | int | bool]:
        return {"points": len(sample), "radius": radius(sample)}

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        return similarity(a, b)

    def _asset_fits(self) -> bool:
        return asset_config() == {k: getattr(self.toy, k) for k in ASSET_KEYS}


class ToyTokens(ToyDomain):
    """Sequences from a joint table that can be enumerated: the reference implementation of the token protocols."""

    process: MaskProcess  # type: ignore[assignment]
    request_keys = MappingProxyType({})
    ranking = MappingProxyType({})
    design_columns = ("tokens",)
    watched = ("entropy",)

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        self.process = MaskProcess(self.toy.vocabulary, eps=0.0)
        self.table = random_table(self.toy.vocabulary, self.toy.length)

    def teacher(self) -> nn.Module:
        return TablePosterior(self.table, self.toy.vocabulary, self.toy.length)

    def network(self) -> nn.Module:
        return TokenNet(self.toy.vocabulary, self.toy.length)

    def describe(self, module: nn.Module) -> dict[str, Any]:
        return dict(module.sizes) if isinstance(module, TokenNet) else {}

    def from_description(self, description: Mapping[str, Any]) -> nn.Module:
        return TokenNet(**description)

    def student(self, teacher: nn.Module) -> nn.Module:
        return clone(teacher) if isinstance(teacher, TokenNet) else self.network()

    def discriminator(self, teacher: nn.Module) -> nn.Module:
        return TinyTokenDiscriminator(self.toy.vocabulary, self.toy.length)

    def _source(self, batch_size: int, seed: int, *, real: bool) -> DataSource:
        return TokenSource(self.table, self.toy.vocabulary, self.toy.length, batch_size, seed, real)

    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch:
        """All-masked sequences; every sample has the same length."""
        if request:
            raise UsageError(f"toy tokens: cannot ask for '{next(iter(request))}'")
        return self.null_data(len(indices), seed).batch(0, 0, 1)

    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        def sample(model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Tokens:
            z = self.process.prior(batch.like, generator)
            return ancestral(model, self.process, grid(steps or self.toy.teacher_steps), z, batch.cond, generator)

        return {"reference": sample, "ancestral": sample}

    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return token_metrics(samples, self.table, self.toy.vocabulary, seed)

    def headline(self) -> Sequence[str]:
        return ("total_variation",)

    def filters(self) -> Mapping[str, FilterFactory]:
        return {}

    def design_metrics(self, sample: np.ndarray) -> dict[str, float | int | bool]:
        return {"tokens": len(sample)}

    def watch(self, samples: Sequence[Any]) -> dict[str, float]:
        """Nats of the histogram of all tokens."""
        shares = np.bincount(np.concatenate(samples)) / sum(len(s) for s in samples)
        return {"entropy": float(-(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares))).sum())}

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """Share of equal tokens."""
        return float((a == b).mean())

    def draw(self, ax: Any, sample: np.ndarray) -> None:
        ax.imshow(sample[None], vmin=0, vmax=self.toy.vocabulary - 1)

    def decode(self, sample: Tokens) -> list[np.ndarray]:  # type: ignore[override]
        """[L] int64 arrays."""
        return [ids[mask].cpu().numpy() for ids, mask in zip(sample.ids, sample.mask, strict=True)]


def asset_config() -> dict[str, Any]:
    """The sizes the shipped weights were trained for."""
    with safe_open(ASSET, "pt") as file:
        return json.loads(file.metadata()["config"])


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """`network` with weights from a safetensors file, strictly; raises XDistillError when they do not fit."""
    try:
        with safe_open(path, "pt") as file:
            network.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError) as error:
        raise XDistillError(f"{path}: expected weights of {type(network).__name__}: {error}") from error
    return network
