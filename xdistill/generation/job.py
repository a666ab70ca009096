"""What is to be generated: everything a worker needs, and the identity that a folder is claimed for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from xdistill import __version__, registry
from xdistill.domain import Domain
from xdistill.errors import UsageError
from xdistill.evaluation import PRECISIONS
from xdistill.generation.filters import Funnel
from xdistill.generation.plan import WorkPlan, design_sizes
from xdistill.generation.shards import PACKED, shard_name
from xdistill.student import Loaded

SHARD = 1024  # designs
FLAT = 10_000  # files of a folder; more go into a folder a shard


@dataclass(frozen=True)
class Job:
    """A request, resolved. Picklable: it travels to worker processes and to Ray actors as it is.

    options: of the objective's sampler (steps, noise_scale). request: of the domain's `plan` (lengths, labels); a value
    with an `identity` (the content of a file) stands in the job's own by that.
    shard: designs a shard, 0: `SHARD`, and one batch for requests that fit one. threads: CPU threads of a process;
    part of the identity because matrix products split over threads round differently. precision: fp32 or bf16, empty:
    as the run's. compile: see `Compiled`.

    Raises UsageError for a format, a filter or an option that the domain or the student's sampler does not know.
    """

    loaded: Loaded
    num: int
    seed: int = 0
    batch: int = 32
    shard: int = 0
    threads: int = 1
    format: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    filters: Sequence[str] = ()
    filter_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    precision: str = ""
    compile: bool = False

    def __post_init__(self) -> None:
        domain = self.domain
        if self.network_precision not in PRECISIONS:
            raise UsageError(f"precision={self.precision}: expected {' or '.join(PRECISIONS)}")
        known = [*domain.formats, *([PACKED] if domain.packed_suffix else [])]
        if self.file_format not in known:
            raise UsageError(f"unknown format '{self.file_format}'{registry.nearest(self.file_format, known)}")

    @property
    def domain(self) -> Domain:
        """The student's domain, set for the files of the request."""
        return self.loaded.domain.for_request(**self.request)

    @property
    def network_precision(self) -> str:
        """`precision`, or that of the run."""
        return self.precision or self.loaded.config["precision"]

    @property
    def file_format(self) -> str:
        """`format`, or the domain's first; packed is also called by its suffix, and the default where it is lines."""
        domain = self.loaded.domain
        if f".{self.format}" == domain.packed_suffix or (domain.packed_lines and not self.format):
            return PACKED
        return self.format or next(iter(domain.formats), PACKED)

    @property
    def shard_size(self) -> int:
        """Designs a shard, the default resolved."""
        return self.shard or (SHARD if self.num > SHARD else self.batch)

    @cached_property
    def plan(self) -> WorkPlan:
        """The designs in batches and shards; raises UsageError when the domain does not take the request."""
        sizes = design_sizes(self.loaded.domain, self.num, self.seed, self.request)
        return WorkPlan(sizes, self.batch, self.shard_size)

    @cached_property
    def funnel(self) -> Funnel:
        """The filters, built."""
        return Funnel(self.filters, self.loaded.domain, self.filter_options)

    def __getstate__(self) -> dict[str, Any]:
        """The request alone: whoever needs the plan or the filters builds them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def identity(self) -> dict[str, Any]:
        """What designs and manifest depend on, as plain JSON values; engine and workers are not in it."""
        own_precision = self.loaded.config["precision"]
        return {
            "domain": self.loaded.domain.name,
            "checkpoint": weights_hash(self.loaded.manifest),
            "num": self.num,
            "seed": self.seed,
            "batch": self.batch,
            "shard": self.shard_size,
            "threads": self.threads,
            "format": self.file_format,
            **({} if self.network_precision == own_precision else {"precision": self.precision}),
            **({"compile": True} if self.compile else {}),
            **self.options,
            **{key: getattr(value, "identity", value) for key, value in self.request.items()},
            "filters": self.funnel.description,
            "xdistill": __version__,
        }

    def file_of(self, index: int, shard: int) -> str:
        """Path of a design's file, relative to the folder."""
        if self.file_format == PACKED:
            return f"shards/{shard_name(self.loaded.domain, shard)}"
        name = f"sample_{index:06d}.{self.file_format}"
        return name if self.num <= FLAT else f"designs/{shard:06d}/{name}"


def weights_hash(manifest: Mapping[str, Any]) -> str:
    """Identity of the weights that generate, from a checkpoint's manifest."""
    files = manifest["sha256"]
    return files.get("roles/student_ema.safetensors") or files["roles/student.safetensors"]
