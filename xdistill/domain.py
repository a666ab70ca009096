"""The contract of a domain: it knows a modality, its data and its networks, and no objective."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from xdistill.errors import UsageError
from xdistill.exchange import (
    DataReport,
    DataSource,
    ExtraMetrics,
    Filter,
    FilterFactory,
    Metric,
    ModelMetrics,
    Neighbours,
    Recorder,
    TeacherSampler,
    Verdict,
)
from xdistill.models import Batch
from xdistill.process import Process

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from xdistill.curves import Axes
    from xdistill.evaluation import Row
    from xdistill.html_report import Panel

__all__ = [
    "DataReport",
    "DataSource",
    "Domain",
    "ExtraMetrics",
    "Filter",
    "FilterFactory",
    "Metric",
    "ModelMetrics",
    "Neighbours",
    "Recorder",
    "TeacherSampler",
    "Verdict",
    "clone",
]


class Domain(ABC):
    """One modality. `cfg` is the domain's own resolved configuration section.

    teacher_weights: `shipped` or a path. data_path: a folder of the user's own data, None for what ships with the
    domain. request_keys: what `generate` may ask of a sample beyond its number, key -> help. file_keys: those that
    concern its file alone (see `for_request`), which `extract` takes too. text_keys: those whose value stays a text.
    formats: suffixes that `write` and `encode` know, the default first. packed_suffix: of packed shards, none when the
    domain packs no samples. packed_lines: a packed file holds one sample a line, in the packed order, and is what
    generate writes unless told otherwise. ranking: what a shortlist may rank by, column of the manifest -> `low` or
    `high` is better. design_columns: what `design_metrics` returns. blocks: networks take the conditioning of
    `xdistill.blocks`. any_length: samples may be longer than what networks were trained on (their objective says so).
    watched: what `watch` returns. watch_fall: share of the teacher's numbers of these that a student may lose.
    licence: of the weights in use, where it binds what is made of them. calls_vary: one forward pass may call the
    network more than once, as often as the batch demands.
    """

    name: str
    process: Process
    teacher_weights: str = "shipped"
    data_path: str | None = None
    data_report: DataReport | None = None
    licence: str | None = None
    calls_vary: bool = False
    request_keys: Mapping[str, str] = MappingProxyType({})
    file_keys: Sequence[str] = ()
    text_keys: Sequence[str] = ()
    formats: Sequence[str] = ()
    packed_suffix: str = ""
    packed_lines: bool = False
    blocks: bool = False
    any_length: bool = False
    ranking: Mapping[str, str] = MappingProxyType({})
    design_columns: Sequence[str] = ()
    watched: Sequence[str] = ()
    watch_fall: float = 0.05

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = cfg

    @abstractmethod
    def teacher(self) -> nn.Module:
        """The many-step network, weights loaded, satisfying the process's model protocol."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A freshly initialised network of the teacher's architecture (what `flow_matching` trains)."""

    def weak_teacher(self, weights: str) -> nn.Module:
        """The weak network of autoguidance."""
        raise UsageError(f"domain '{self.name}' has no weak network: use guidance=none or cfg")

    @abstractmethod
    def describe(self, module: nn.Module) -> dict[str, Any]:
        """What `from_description` needs to build a network of this architecture: plain JSON values."""

    @abstractmethod
    def from_description(self, description: Mapping[str, Any]) -> nn.Module:
        """An uninitialised network; weights of a checkpoint are loaded into it, strictly."""

    def shipped_student(self) -> Path | None:
        """The checkpoint that `generate` uses when none is given."""
        return None

    def student(self, teacher: nn.Module) -> nn.Module:
        """A trainable copy of the teacher; called after the teacher's weights are loaded."""
        return clone(teacher)

    def flow_map(self, network: nn.Module) -> nn.Module:
        """`network` with a second time input (`FlowMapModel`), as it is where it has one.

        The new input's effect is zero until it is trained: average and instantaneous velocity start equal.
        """
        raise UsageError(f"domain '{self.name}' has no networks with a second time input: choose another objective")

    def told(self, network: nn.Module, scale: float) -> nn.Module:
        """`network` with a guidance scale as an input, whose effect is zero until it is trained.

        scale: what it takes where its condition tells none (`models.told`).
        """
        raise UsageError(f"domain '{self.name}' tells no network a guidance scale: leave guidance.range out")

    def critic(self, teacher: nn.Module) -> nn.Module:
        """The fake score: a trainable copy of the teacher."""
        return clone(teacher)

    def discriminator(self, teacher: nn.Module) -> nn.Module:
        """A network (x_t, t, cond) -> logits [B] for adversarial objectives."""
        raise UsageError(f"domain '{self.name}' offers no discriminator: use an objective without one")

    @abstractmethod
    def data(self, batch_size: int, seed: int) -> DataSource:
        """Real training data."""

    @abstractmethod
    def null_data(self, batch_size: int, seed: int) -> DataSource:
        """Data-free batches: lengths and conditions only."""

    def open_request(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
        """The request as it travels to workers, its files read, and the number of samples it asks for by itself."""
        return dict(request), None

    def most_steps(self, **request: Any) -> int | None:
        """Network calls of which each can reveal something, None where a sample may always take more."""
        return None

    @abstractmethod
    def plan(self, indices: Sequence[int], seed: int, **request: Any) -> Batch:
        """Lengths and conditions of samples `indices`; sample i depends on (seed, i) and the request alone."""

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with what `model` (maybe wrapped) computes once for all calls of a sampler; equal results."""
        return batch

    @abstractmethod
    def teacher_samplers(self) -> Mapping[str, TeacherSampler]:
        """The teacher's own samplers by name; `reference` is the many-step one it is published with."""

    @abstractmethod
    def metrics(self, samples: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        """Quality of decoded samples, proxies named as such; the entry `score` (higher is better) picks `best`."""

    def request_metrics(self, samples: Sequence[Any], seed: int = 0, **request: Any) -> dict[str, Metric]:
        """How well samples 0.. do what `plan` was asked for (`generate`'s request keys); empty without a request."""
        return {}

    def paired_metrics(self, samples: Sequence[Any], reference: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        """How far samples are from `reference`, one by one: the teacher's of the same noise and the same request.

        Where noise decides a sample, the sharpest measure of distillation; empty where samples cannot be compared.
        """
        return {}

    def extra_metrics(self) -> Mapping[str, ExtraMetrics]:
        """Costly metrics that `evaluate metrics=` may name, cheapest first."""
        return {}

    def model_metrics(self) -> Mapping[str, ModelMetrics]:
        """Further metrics that `metrics=` may name and that need the model itself."""
        return {}

    #: What `evaluate curve=` sweeps, and its axes; None: nothing.
    curve_axes: Axes | None = None

    def curve_rows(self, samples: Sequence[Any]) -> NDArray[np.float64]:
        """[n, 4] x sum, x count, y sum, y count of each decoded sample (see `xdistill.curves`)."""
        raise UsageError(f"domain '{self.name}' has no curve of quality against diversity")

    def reference_samples(self, num: int, seed: int) -> list[Any]:
        """At most `num` held-out real samples, to measure `extra_metrics` of; empty when the domain has none."""
        return []

    def reference_metrics(self) -> dict[str, Metric]:
        """What real data scores, to compare with; empty when the domain has none."""
        return {}

    def headline(self) -> Sequence[str]:
        """The metrics that a summary shows, most important first."""
        return ("score",)

    #: Metrics in which `bench` compares student and teacher; those of `compared_extra` come from `extra_metrics`.
    compared: Sequence[str] = ("score",)
    compared_extra: Sequence[str] = ()
    #: What `bench` counts, the elements in it, how many samples `bench` draws at once, the first for its table.
    unit: str = "elements"
    unit_elements: float = 1.0
    bench_batches: Sequence[int] = (16,)

    def rivals(self) -> Mapping[str, tuple[nn.Module, TeacherSampler]]:
        """Networks of other kinds that make the same samples, each with its sampler, for `bench` to compare with."""
        return {}

    def approximations(self, model: nn.Module, steps: int, batch: Batch, seed: int) -> dict[str, Mapping[str, float]]:
        """Method -> numbers that say what it changes, of sampler methods that approximate this student."""
        return {}

    #: What `bench` asks of `plan` when it times a forward.
    forward_request: Mapping[str, Any] = MappingProxyType({})

    def forward_variants(self, module: nn.Module) -> Mapping[str, AbstractContextManager[Any]]:
        """Contexts in which `module` computes the same in other ways, the plain one first, the one in use last."""
        return {}

    def sample_text(self, sample: Any) -> str | None:
        """What a report shows of one decoded sample to read; None: samples are drawn."""
        return None

    def draw(self, ax: Any, sample: Any) -> None:
        """Draw one decoded sample into a matplotlib axes."""
        raise UsageError(f"domain '{self.name}' draws no samples")

    def html_panels(self, rows: Sequence[Row]) -> list[Panel]:
        """Panels that this modality adds to an HTML report of these sources."""
        return []

    def viewer_models(self, samples: Sequence[Any]) -> list[str]:
        """PDB text of each sample for the report's 3D viewer; empty when the modality is not molecular."""
        return []

    #: Folder beside the final table into which `fit` writes the first samples of each of its rows; none: nowhere.
    examples: str = ""

    def render(self, sample: Any) -> Any:
        """What a user gets of a decoded sample where making it takes time worth telling (sound): `bench` times it."""
        return None

    @abstractmethod
    def decode(self, sample: Any) -> list[Any]:
        """A batch of states -> one plain object a sample (a CA trace, a point set, a text)."""

    def partial(self, state: Any) -> str:
        """The first sample of a batch that is still being drawn, as text for a terminal."""
        raise UsageError(f"domain '{self.name}' shows no unfinished samples: leave out stream=true")

    def notice(self, **request: Any) -> str | None:
        """What `generate` says before it serves a request: what the user has to know, or nothing."""
        return None

    def parts(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], int] | None:
        """For stream=true: an opened request whose samples 0..n-1, one after the other, are the one that is asked for,
        and n. None: a sample has no parts, `partial` shows it.
        """
        return None

    def recorder(self, out: str) -> Recorder:
        """What joins the parts of a streamed sample in the file `out`, or on the standard output (`-`)."""
        raise UsageError(f"domain '{self.name}' streams no samples: leave out stream=true")

    @abstractmethod
    def write(self, sample: Any, path: Path) -> Path:
        """Write one decoded sample atomically; returns the final path (with the format's suffix)."""

    def for_request(self, **request: Any) -> Domain:
        """The domain whose `write` and `encode` do what a request asks of files; raises UsageError when they cannot."""
        return self

    def encode(self, sample: Any, format: str) -> bytes:
        """The content of the file that `write` writes, a function of the sample as `unpack(pack(...))` returns it.

        Raises UsageError for an unknown format, XDistillError for a sample that it cannot hold.
        """
        raise UsageError(f"domain '{self.name}' encodes no samples")

    @abstractmethod
    def read(self, folder: Path) -> list[Any]:
        """Decoded samples from a folder of files written by anyone in this domain's formats."""

    def load(self, path: Path) -> Any:
        """The sample of one file that `write` wrote."""
        raise UsageError(f"domain '{self.name}' reads no single files")

    def pack(self, samples: Sequence[Any], indices: Sequence[int]) -> bytes:
        """One self-contained compressed file of many decoded samples; equal input gives equal bytes."""
        raise UsageError(f"domain '{self.name}' packs no samples: choose one of format={', '.join(self.formats)}")

    def unpack(self, data: bytes) -> dict[int, Any]:
        """Index -> sample of a packed file, in the packed order; raises XDistillError when it is damaged."""
        raise UsageError(f"domain '{self.name}' packs no samples: choose one of format={', '.join(self.formats)}")

    def filters(self) -> Mapping[str, FilterFactory]:
        """The filters that `generate filter=` may name, cheapest first."""
        return {}

    def design_metrics(self, sample: Any) -> dict[str, float | int | bool]:
        """Cheap numbers of one decoded sample for the manifest, `design_columns`, whatever state the sample is in."""
        return {}

    def watch(self, samples: Sequence[Any]) -> dict[str, float]:
        """Numbers of decoded samples that fall when their source collapses (`xdistill.guard`); cheap."""
        return {}

    def similarity(self, a: Any, b: Any) -> float:
        """How alike two samples are: symmetric, in [0, 1], 1 for equal ones."""
        raise UsageError(f"domain '{self.name}' cannot compare samples: leave out diversity=")

    def neighbours(self, threshold: float) -> Neighbours:
        """An empty collection that tells whether a sample's similarity to any of its own exceeds `threshold`."""
        return Neighbours(self.similarity, threshold)


def clone(module: nn.Module) -> nn.Module:
    """A deep copy with its own parameters, all of them trainable."""
    return copy.deepcopy(module).requires_grad_(True)
