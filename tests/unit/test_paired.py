"""Distances to the teacher's samples of the same noise: `evaluate metrics=paired`, the final table, example files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from xdistill.bench import Setting, cost, quality
from xdistill.cli.evaluate import choose_metrics
from xdistill.domain import Metric
from xdistill.domains.toy import ToyDomain
from xdistill.errors import XDistillError
from xdistill.evaluation import Row
from xdistill.measured import PAIRED, Measuring, Source
from xdistill.report import examples
from xdistill.state import Field


class Paired(ToyDomain):
    """Teachers whose samples are all ones plus noise, students that add a shift to it."""

    unit_elements = 4.0
    examples = "files"

    def paired_metrics(self, samples: Sequence[Any], reference: Sequence[Any], seed: int = 0) -> dict[str, Metric]:
        gap = float(
            np.mean([np.abs(np.asarray(a) - np.asarray(b)).mean() for a, b in zip(samples, reference, strict=True)])
        )
        return {"paired": Metric(gap, gap, gap, len(samples), "low")}

    def teacher_samplers(self) -> dict[str, Any]:
        return {"reference": lambda model, batch, gen, *, steps=None: shifted(model, batch, gen, 0.0)}

    def render(self, sample: Any) -> Any:
        return sample


class Counted(nn.Module):
    """Loads of the teacher."""

    loads = 0


def shifted(model: Any, batch: Any, generators: Any, by: float) -> Any:
    noise = torch.stack([torch.randn(batch.like.value.shape[1:], generator=g) for g in generators])
    return Field(noise + by, batch.like.layout)


def load() -> nn.Module:
    Counted.loads += 1
    return Counted()


def student(name: str, domain: ToyDomain, by: float, taught: str) -> Source:
    def sampler() -> Any:
        return lambda model, batch, gen: shifted(model, batch, gen, by)

    return Source(name, domain, model=nn.Identity(), sampler=sampler, teacher=load, taught=taught)


def test_students_of_one_teacher_share_its_samples_and_differ_by_their_own_shift() -> None:
    domain, before = Paired({}), Counted.loads
    measuring = Measuring(6, 3, 4, [PAIRED], {}, torch.device("cpu"))
    found = [measuring.row(student("s", domain, by, "one")).metrics["paired"].value for by in (0.0, 0.5)]
    assert np.allclose(found, [0.0, 0.5], atol=1e-6)
    assert Counted.loads == before + 1
    measuring.row(student("other", domain, 0.0, "two"))
    assert Counted.loads == before + 2
    files = Source("folder", domain, samples=domain.reference_samples(2, 0) or [np.zeros((4, 2), np.float32)])
    assert PAIRED not in measuring.row(files).metrics


def test_only_domains_that_pair_samples_offer_the_metric() -> None:
    assert choose_metrics(Paired({}), "paired", Console()) == [PAIRED]
    assert PAIRED not in choose_metrics(ToyDomain({}), "full", Console())


def test_bench_pairs_with_its_first_row_and_counts_units_and_rendering() -> None:
    domain = Paired({})
    domain.compared = ("paired",)  # type: ignore[misc]
    setting = Setting((4,), 1, 0, 0, "fp32", torch.device("cpu"), {})
    ones = [np.ones((4, 2), np.float32)] * 3
    assert quality(domain, [x + 2 for x in ones], setting, ones)[0]["paired"].value == 2

    def sampler(model: Any, batch: Any, gen: Any) -> Any:
        model(batch.like.value)
        return shifted(model, batch, gen, 0.0)

    found = cost(domain, nn.Identity(), sampler, setting, 4, cold=True)
    elements = float(domain.plan(range(4), 0).like.elements.double().mean())
    assert np.isclose(found["elements_per_second"], elements / 4 / found["seconds"])
    assert found["rendered_per_second"] < found["elements_per_second"]


def test_the_first_samples_of_each_row_become_files_and_a_broken_one_a_line(tmp_path: Path) -> None:
    class Picky(Paired):
        def write(self, sample: Any, path: Path) -> Path:
            if not np.isfinite(sample).all():
                raise XDistillError("not finite")
            return super().write(sample, path)

    good, bad = np.zeros((4, 2), np.float32), np.full((4, 2), np.nan, np.float32)
    rows = [Row("teacher (a,b)", {}, [good] * 6), Row("student", {}, [bad, good])]
    console = Console(record=True, width=120)
    written = examples(Picky({}), rows, tmp_path, console)
    names = [p.name for p in written if not p.name.startswith("real")]
    assert names == [*(f"teacher_a_b_{i}.npz" for i in range(4)), "student_1.npz"]
    assert all(p.is_file() and p.parent == tmp_path / "files" for p in written)
    assert "no example 0 of student: not finite" in console.export_text()
    assert examples(ToyDomain({}), rows, tmp_path / "none", console) == []
