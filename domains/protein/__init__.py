"""Protein backbones: CA traces in nm, distilled from flows of the Proteina family."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xdistill import rng
from xdistill.discriminator import PooledDiscriminator
from xdistill.domain import DataSource, Domain, ExtraMetrics, FilterFactory, Metric, Neighbours, TeacherSampler
from xdistill.domains.protein import codec, filters, metrics, packed, teacher
from xdistill.domains.protein.chains import ChainSet, load_embedded
from xdistill.domains.protein.data import LengthLaw, parse_length
from xdistill.domains.protein.flow import ProteinCond, ProteinFlow
from xdistill.domains.protein.labels import ClassMap, LabelLaw, coarse_class_map, parse_label
from xdistill.domains.protein.neighbours import FoldNeighbours, tm
from xdistill.domains.protein.network import Proteina, ProteinaConfig, straightforward
from xdistill.domains.protein.sampler import ProteinaPlan
from xdistill.domains.protein.sources import ChainSource, LengthSource
from xdistill.domains.protein.structures import read_folder, structure_files
from xdistill.errors import UsageError
from xdistill.models import Batch
from xdistill.process import Linear
from xdistill.registry import nearest
from xdistill.rng import Generator
from xdistill.samplers import ode, renoise, sde
from xdistill.state import Field, Padded
from xdistill.times import LogAnchors

if TYPE_CHECKING:
    from xdistill.evaluation import Row
    from xdistill.html_report import Panel

__all__ = ["ProteinCond", "ProteinDomain", "ProteinFlow"]


@dataclass(frozen=True)
class ProteinConfig:
    """The protein domain's section of a configuration.

    min_length, max_length: residues of the chains to train on and to generate. format: of written structures
    (pdb, cif, bcif). atoms: of written structures, `ca` or `backbone` (see `backbone.place_backbones`). max_tokens:
    limit on padded residues of a batch of real chains. label_dropout: share of chains shown without their fold class.
    label_law: fold classes of data-free batches, `none` or `empirical` (of real chains of the same length, then dropped
    as often). class_map: file with the fold classes of a teacher that comes without. classifier: weights that measure
    adherence, null for ours. folding: what predicts structures for designability, `esmfold` or
    `package.module:factory`. esmfold: folder of its weights, null for the Hugging Face cache. reference_steps,
    reference_noise: the teacher's own sampler.
    """

    min_length: int = 40
    max_length: int = 128
    format: str = "pdb"
    atoms: str = "ca"
    max_tokens: int | None = None
    label_dropout: float = 0.5
    label_law: str = "none"
    class_map: str | None = None
    classifier: str | None = None
    folding: str = "esmfold"
    esmfold: str | None = None
    reference_steps: int = 400
    reference_noise: float = 0.45


#: nm; a PDB file has no room for more, and a chain out there is no chain.
FARTHEST = 999.0


class ProteinDomain(Domain):
    """CA traces of single chains; see `ProteinConfig` for its keys and protein spec for the conventions."""

    name = "protein"
    process = Linear()
    request_keys: Mapping[str, str] = MappingProxyType(
        {
            "length": "residues of each chain: 64-128 (uniform), or one number",
            "label": "fold class: mainly-alpha, mainly-beta, alpha-beta, few-secondary (or 1-4), CATH levels such as "
            "3.40.x.x for an official teacher, or sample: as real chains of that length (default: none)",
            "atoms": "what files hold: ca, or backbone (N, CA, C, O, CB, placed on the CA trace; default: ca)",
        }
    )
    file_keys = ("atoms",)
    formats = ("pdb", "cif", "bcif")
    packed_suffix = packed.SUFFIX
    ranking = MappingProxyType(filters.RANKING)
    design_columns = filters.DESIGN_COLUMNS
    compared = (
        "mpnn_entropy",
        "score",
        "valid_bonds",
        "valid_angles",
        "no_clash",
        "valid",
        "handedness",
        "pairwise_tm",
    )
    compared_extra = ("mpnn",)
    forward_request: Mapping[str, Any] = MappingProxyType({"length": 128})

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        known = [f.name for f in fields(ProteinConfig)]
        for key in cfg:
            if key not in known:
                raise UsageError(f"unknown key 'domain.{key}' of the protein domain{nearest(key, known)}")
        self.protein = ProteinConfig(**cfg)
        if self.protein.label_law not in ("none", "empirical"):
            raise UsageError(f"domain.label_law={self.protein.label_law}: expected none or empirical")
        _check_atoms(self.protein.atoms)

    @cached_property
    def _loaded(self) -> teacher.LoadedNetwork:
        return teacher.load_teacher(self.teacher_weights, self.protein.class_map)

    def teacher(self) -> nn.Module:
        return self._loaded.flow

    def network(self) -> nn.Module:
        return teacher.mini_network().flow

    def discriminator(self, teacher: nn.Module) -> nn.Module:
        return PooledDiscriminator(teacher, self.process)

    def describe(self, module: nn.Module) -> dict[str, Any]:
        if not isinstance(module, ProteinFlow):
            return {}
        net = module.net
        return {
            "config": net.config.to_dict(),
            "num_classes": list(net.num_classes),
            "target_pred": module.target_pred,
        }

    def from_description(self, description: Mapping[str, Any]) -> nn.Module:
        net = Proteina(ProteinaConfig.from_dict(description["config"]), description["num_classes"])
        return ProteinFlow(net, description["target_pred"])

    def flow_map(self, network: nn.Module) -> nn.Module:
        return teacher.with_second_time(network) if isinstance(network, ProteinFlow) else network

    def forward_variants(self, module: nn.Module) -> Mapping[str, AbstractContextManager[Any]]:
        if not isinstance(module, ProteinFlow):
            return {}
        return {"straightforward": straightforward(module.net), "fast": nullcontext()}

    def weak_teacher(self, weights: str) -> nn.Module:
        return teacher.load_teacher(weights).flow

    def shipped_student(self) -> Path:
        return teacher.SHIPPED_STUDENT

    @cached_property
    def chains(self) -> ChainSet:
        """Training chains: the embedded train split, or the user's folder; limited to the configured lengths."""
        low, high = self.protein.min_length, self.protein.max_length
        if self.data_path is None:
            chains = load_embedded("train")
            keep = [i for i, n in enumerate(chains.lengths.tolist()) if low <= n <= high]
            return chains.select(keep)
        chains, report = read_folder(self.data_path, low, high)
        self.data_report = report
        return chains

    def data(self, batch_size: int, seed: int) -> DataSource:
        c = self.protein
        # Coarse classes come from the secondary structure; an official network's own labels (CATH) are not known here.
        classes = coarse_class_map() if self.teacher_weights == "shipped" else None
        return ChainSource(self.chains, seed, batch_size, c.max_tokens, classes, c.label_dropout)

    def null_data(self, batch_size: int, seed: int) -> DataSource:
        self.check_length(self.protein.min_length, self.protein.max_length)
        law = (
            LengthLaw.uniform(self.protein.min_length, self.protein.max_length)
            if self.data_path is None
            else LengthLaw.empirical(self.chains)
        )
        if self.protein.label_law == "none":
            return LengthSource(law, seed, batch_size)
        labels, classes, dropout = self.label_law, self.fold_classes, self.protein.label_dropout
        return LengthSource(law, seed, batch_size, labels=labels, classes=classes, label_dropout=dropout)

    @property
    def fold_classes(self) -> ClassMap:
        """The loaded network's classes; raises UsageError when it has none."""
        if self._loaded.classes is None:
            raise UsageError(f"{self._loaded.source} has no fold classes: leave out label, or give domain.class_map")
        return self._loaded.classes

    @cached_property
    def label_law(self) -> LabelLaw:
        """Coarse classes of the training chains, given the length."""
        return LabelLaw(torch.tensor(self.chains.lengths), torch.tensor(self.chains.coarse_classes))

    def labels(self, indices: Sequence[int], seed: int, **request: Any) -> list[str] | None:
        """The fold label `C.A.T.H` asked of each sample, None without `label=`; sample i depends on (seed, i) alone."""
        label = request.get("label")
        if label is None:
            return None
        if label != "sample":
            return [parse_label(label, self.fold_classes)] * len(indices)
        gens = (rng.generator("label", seed, int(i)) for i in indices)
        return [self.label_law.draw(n, gen) for n, gen in zip(self._lengths(indices, seed, request), gens, strict=True)]

    def _lengths(self, indices: Sequence[int], seed: int, request: Mapping[str, Any]) -> list[int]:
        low, high = parse_length(request.get("length"), (self.protein.min_length, self.protein.max_length))
        self.check_length(low, high)
        return [rng.randint(low, high + 1, rng.generator("length", seed, int(i))) for i in indices]

    def check_length(self, low: int, high: int) -> None:
        """Raise UsageError when the loaded network was not trained on such lengths."""
        known = self._loaded.lengths
        if not known[0] <= low <= high <= known[1]:
            raise UsageError(
                f"lengths {low}-{high} are outside {known[0]}-{known[1]}, what the {self._loaded.source} teacher was "
                f"trained on: choose a range inside"
            )

    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch[Field]:
        """Lengths are uniform over `length` (default: the configured range), drawn for each sample by itself."""
        n = self._lengths(indices, seed, request)
        layout = Padded.from_lengths(n, -(-max(n) // 8) * 8, zero_com=True)
        labels = self.labels(indices, seed, **request)
        rows = None if labels is None else self.fold_classes.encode(labels)
        return Batch(Field(torch.zeros(*layout.mask.shape, 3), layout), ProteinCond(rows), real=False)

    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        """`reference` is Proteina's SDE; the rest are its best chances at few calls (protein spec 1.8)."""
        noise = self.protein.reference_noise
        return {
            "reference": self._reference(ProteinaPlan(self.protein.reference_steps, noise_scale=noise)),
            "ode": self._reference(ProteinaPlan(sde=False)),
            "ode, uniform steps": self._reference(ProteinaPlan(sde=False, schedule="uniform")),
            f"clamped SDE, noise {noise}": self._reference(ProteinaPlan(g_clamp=0.5, noise_scale=noise)),
            f"re-noise, noise {noise}": self._renoise(noise),
            "re-noise, noise 1": self._renoise(1.0),
        }

    def _reference(self, options: ProteinaPlan) -> TeacherSampler:
        def sample(model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Field:
            plan = options.with_steps(steps or options.steps).plan()
            x = self.process.prior(batch.like, generator)
            if plan.g is None:
                return ode(model, self.process, plan, x, batch.cond)
            return sde(model, self.process, plan, x, batch.cond, generator, noise_scale=options.noise_scale)

        return sample

    def _renoise(self, noise_scale: float) -> TeacherSampler:
        def sample(model: Any, batch: Batch, generator: Generator, *, steps: int | None = None) -> Field:
            times = LogAnchors()(steps or 16)
            return renoise(model, self.process, times, batch.like, batch.cond, generator, noise_scale=noise_scale)

        return sample

    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        return metrics.evaluate_chains(samples, seed=seed)

    def request_metrics(self, samples: Sequence[Any], seed: int = 0, **request: Any) -> dict[str, Metric]:
        """Adherence to the fold labels asked for; see `classifier.adherence`."""
        labels = self.labels(range(len(samples)), seed, **request)
        if labels is None:
            return {}
        if request["label"] == "sample" and self._lengths(range(len(samples)), seed, request) != [*map(len, samples)]:
            raise UsageError("label=sample: give the seed and length that these samples were generated with")
        from xdistill.domains.protein.classifier import adherence

        return adherence(samples, labels, seed, self.protein.classifier, self._loaded.classes)

    def headline(self) -> Sequence[str]:
        geometry = ("valid_bonds", "bond_std", "valid_angles", "no_clash", "valid")
        return (*geometry, "helix", "strand", "handedness", "pairwise_tm")

    def draw(self, ax: Any, sample: NDArray[Any]) -> None:
        """The chain as a tube in its plane of largest extent, coloured from first to last residue."""
        from matplotlib.collections import LineCollection

        plane = sample @ np.linalg.svd(sample, full_matrices=False)[2].T
        steps = np.stack([plane[:-1, :2], plane[1:, :2]], 1)
        order = np.argsort(plane[:-1, 2])
        colours = np.linspace(0, 1, len(steps))
        tube = LineCollection(list(steps[order]), array=colours[order], cmap="turbo", linewidths=2.5, capstyle="round")
        ax.add_collection(tube)
        ax.autoscale()
        ax.set_aspect("equal")
        ax.axis("off")

    def html_panels(self, rows: Sequence[Row]) -> list[Panel]:
        from xdistill.domains.protein.html_panels import panels

        return panels(rows)

    def viewer_models(self, samples: Sequence[Any]) -> list[str]:
        from xdistill.domains.protein.viewer import pdb_models

        return pdb_models(samples)

    def extra_metrics(self) -> Mapping[str, ExtraMetrics]:
        p = self.protein
        return {
            **metrics.EXTRA,
            "classifier": metrics.extra("distribution.metrics", p.classifier),
            "designability": metrics.extra("designability.measure", p.folding, p.esmfold),
        }

    def reference_samples(self, num: int, seed: int) -> list[NDArray[Any]]:
        """CA traces of the test split in a random order."""
        chains = load_embedded("test")
        order = torch.randperm(len(chains), generator=rng.generator("reference samples", seed)).tolist()
        return [chains.coords(i).copy() for i in order[:num]]

    def reference_metrics(self) -> dict[str, Metric]:
        """What held-out real chains score."""
        return dict(metrics.calibrate())

    def decode(self, sample: Field) -> list[NDArray[Any]]:
        """CA traces [n, 3] in nm, zero centre of mass; NaN where a sampler left the range of structure files."""
        sample = sample.project()
        assert isinstance(sample.layout, Padded)
        value = sample.value.detach().float().cpu()
        value = value.masked_fill(value.abs() > FARTHEST, float("nan"))
        return [v[:n].numpy() for v, n in zip(value, sample.layout.lengths.tolist(), strict=True)]

    def for_request(self, **request: Any) -> ProteinDomain:
        atoms = request.get("atoms", self.protein.atoms)
        _check_atoms(atoms)
        changed = copy.copy(self)
        changed.protein = replace(self.protein, atoms=atoms)
        return changed

    def write(self, sample: Any, path: Path) -> Path:
        path = path if codec.structure_format(path) else path.with_name(f"{path.name}.{self.protein.format}")
        codec.write_structure(path, packed.on_grid(sample), atoms=self.protein.atoms)  # type: ignore[arg-type]
        return path

    def encode(self, sample: Any, format: str) -> bytes:
        """Coordinates carry three decimals (0.001 A) in every format, as packed shards do."""
        if format not in self.formats:
            raise UsageError(f"unknown format '{format}'{nearest(format, self.formats)}")
        return codec.structure_bytes(packed.on_grid(sample), format, self.protein.atoms)  # type: ignore[arg-type]

    def load(self, path: Path) -> NDArray[Any]:
        return codec.read_structure(path)[0]

    def pack(self, samples: Sequence[Any], indices: Sequence[int]) -> bytes:
        return packed.pack(samples, indices)

    def unpack(self, data: bytes) -> dict[int, Any]:
        return packed.unpack(data)

    def filters(self) -> Mapping[str, FilterFactory]:
        return filters.FILTERS

    def design_metrics(self, sample: Any) -> dict[str, float | int | bool]:
        return filters.design_metrics(sample)

    def similarity(self, a: Any, b: Any) -> float:
        """TM-score of finite chains, normalised by the longer."""
        return tm(a, b)

    def neighbours(self, threshold: float) -> Neighbours:
        return FoldNeighbours(threshold)

    def read(self, folder: Path) -> list[NDArray[Any]]:
        """Every chain of 4 or more residues as it is: what has broken bonds is to be measured, not to be left out."""
        return [x for path in structure_files(folder) for x in codec.read_structure(path) if len(x) >= 4]

    @staticmethod
    def replay(directory: Path) -> list[Any]:
        """Replay recorded fixtures (see xdistill.testing.parity)."""
        from xdistill.domains.protein import parity, parity_flow

        kinds = {
            "denoiser_*.json": parity.replay_denoisers,
            "*.ckpt": parity.replay_checkpoints,
            "sampler*.json": parity_flow.replay_samplers,
            "sid_*.json": parity_flow.replay_sid,
        }
        return [r for pattern, replay in kinds.items() if any(directory.glob(pattern)) for r in replay(directory)]


def _check_atoms(atoms: Any) -> None:
    if atoms not in get_args(codec.Atoms):
        raise UsageError(f"atoms={atoms}: expected {' or '.join(get_args(codec.Atoms))}")
