"""The toy domain: points and tokens whose teachers are exact, the reference implementation of every protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from xdistill.domains.toy.codec import read_folder, write_array
from xdistill.domains.toy.data import PROCESSES, PointSource, ToyConfig, blank, condition
from xdistill.domains.toy.metrics import point_metrics
from xdistill.domains.toy.teacher import Label, MixtureTeacher, PointNet
from xdistill.domains.toy.tokens import (
    Masking,
    TablePosterior,
    TokenNet,
    TokenSource,
    ancestral,
    random_table,
    token_metrics,
)

from xdistill import rng
from xdistill.discriminator import PooledDiscriminator
from xdistill.domain import Domain, Metric, TeacherSampler, clone
from xdistill.errors import UsageError
from xdistill.models import Batch, Featurizer
from xdistill.process import GaussianProcess, Kind
from xdistill.rng import Generator
from xdistill.samplers import Plan, ode
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

    def __new__(cls, cfg: Mapping[str, Any]) -> ToyDomain:
        return super().__new__(ToyTokens if cfg.get("task") == "tokens" else cls)

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        self.toy = ToyConfig.parse(cfg)
        self.process = PROCESSES[self.toy.process]()

    def teacher(self) -> nn.Module:
        c = self.toy
        if c.teacher == "analytic":
            return MixtureTeacher(self.process, c.means, c.std, kind=Kind(c.kind))
        if not self._asset_fits():
            raise UsageError(f"toy teacher=mlp: the shipped weights are for {asset_config()}: use teacher=analytic")
        return load_asset(self.network())

    def network(self) -> nn.Module:
        c = self.toy
        return PointNet(self.process, c.dim, kind=Kind(c.kind), width=c.width, depth=c.depth, modes=len(c.means))

    def student(self, teacher: nn.Module) -> nn.Module:
        if isinstance(teacher, PointNet):
            return clone(teacher)
        return load_asset(self.network()) if self._asset_fits() else self.network()

    def critic(self, teacher: nn.Module) -> nn.Module:
        return self.student(teacher)

    def discriminator(self, teacher: nn.Module) -> nn.Module:
        trunk = teacher if isinstance(teacher, Featurizer) else self.student(teacher).requires_grad_(False)
        return PooledDiscriminator(trunk, self.process)

    def data(self, batch_size: int, seed: int) -> PointSource:
        return PointSource(self.toy, batch_size, seed)

    def null_data(self, batch_size: int, seed: int) -> PointSource:
        return PointSource(self.toy, batch_size, seed, real=False)

    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch[Field]:
        """Sizes and labels of samples; `points` (of a set) and `label` (mode) fix them for all."""
        if unknown := sorted(set(request) - {"points", "label"}):
            raise UsageError(f"toy domain: cannot plan by '{unknown[0]}', only by points and label")
        draws = [rng.generator("toy-plan", seed, int(i)) for i in indices]
        component = torch.tensor([rng.randint(0, len(self.toy.means), g) for g in draws])
        lengths = None
        if self.toy.points:
            lengths = torch.tensor([request.get("points") or rng.randint(1, self.toy.points + 1, g) for g in draws])
        label = request.get("label")
        cond = condition(self.toy, component) if label is None else Label(torch.full_like(component, label))
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

    def decode(self, sample: Field) -> list[np.ndarray]:
        """[n, D] float32 arrays, n = 1 for a single point."""
        value = sample.project().value.detach().float().cpu()
        if isinstance(sample.layout, Padded):
            return [v[:n].numpy() for v, n in zip(value, sample.layout.lengths.tolist(), strict=True)]
        return [v[None].numpy() for v in value]

    def write(self, sample: np.ndarray, path: Path) -> Path:
        return write_array(sample, path)

    def read(self, folder: Path) -> list[np.ndarray]:
        return read_folder(folder)

    def _asset_fits(self) -> bool:
        return asset_config() == {k: getattr(self.toy, k) for k in ASSET_KEYS}


class ToyTokens(ToyDomain):
    """Sequences from a joint table that can be enumerated: the reference implementation of the token protocols."""

    process: Masking  # type: ignore[assignment]

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        self.process = Masking(self.toy.vocabulary)
        self.table = random_table(self.toy.vocabulary, self.toy.length)

    def teacher(self) -> nn.Module:
        return TablePosterior(self.table, self.toy.vocabulary, self.toy.length)

    def network(self) -> nn.Module:
        return TokenNet(self.toy.vocabulary, self.toy.length)

    def student(self, teacher: nn.Module) -> nn.Module:
        return clone(teacher) if isinstance(teacher, TokenNet) else self.network()

    def discriminator(self, teacher: nn.Module) -> nn.Module:
        raise UsageError("toy tokens offer no discriminator: use an objective without one")

    def data(self, batch_size: int, seed: int) -> TokenSource:  # type: ignore[override]
        return TokenSource(self.table, self.toy.vocabulary, self.toy.length, batch_size, seed)

    def null_data(self, batch_size: int, seed: int) -> TokenSource:  # type: ignore[override]
        return TokenSource(self.table, self.toy.vocabulary, self.toy.length, batch_size, seed, real=False)

    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch:
        """All-masked sequences; every sample has the same length."""
        if request:
            raise UsageError(f"toy tokens: cannot plan by '{next(iter(request))}'")
        return self.null_data(len(indices), seed).batch(0, 0, 1)

    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        def sample(model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Tokens:
            plan = Plan.uniform(steps or self.toy.teacher_steps)
            return ancestral(
                model, self.process, plan, self.process.prior(batch.like, generator), batch.cond, generator
            )

        return {"reference": sample}

    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return token_metrics(samples, self.table, self.toy.vocabulary, seed)

    def decode(self, sample: Tokens) -> list[np.ndarray]:  # type: ignore[override]
        """[L] int64 arrays."""
        return [ids[mask].cpu().numpy() for ids, mask in zip(sample.ids, sample.mask, strict=True)]


def asset_config() -> dict[str, Any]:
    """The sizes the shipped weights were trained for."""
    with safe_open(ASSET, "pt") as file:
        return json.loads(file.metadata()["config"])


def load_asset(network: nn.Module) -> nn.Module:
    """`network` with the shipped weights (tools/train_toy_teacher.py), strictly."""
    with safe_open(ASSET, "pt") as file:
        weights: dict[str, Tensor] = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118
    network.load_state_dict(weights)
    return network
