"""The bits of a design: the same for any batch, shard, number of designs, number of processes and format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from generation_runs import content

from xdistill.cli.student import load
from xdistill.config import GenerateConfig
from xdistill.domains.protein import ProteinDomain
from xdistill.generation import Engine, Job, generate
from xdistill.generation.maker import Artist
from xdistill.student import Loaded


@pytest.fixture(scope="module")
def student() -> Loaded:
    if not ProteinDomain({}).shipped_student().exists():
        pytest.skip("this tree ships no protein student")
    return load(GenerateConfig("protein"))


def drawn(job: Job) -> dict[int, np.ndarray]:
    """All designs of a job, unrounded."""
    artist = Artist(job)
    try:
        designs = [artist.draw(job.plan[n]).designs for n in range(job.plan.shards)]
    finally:
        artist.close()
    return {i: design.sample for part in designs for i, design in part.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bits_do_not_depend_on_the_batch(student: Loaded, precision: str) -> None:
    """Widths 64 to 80; batches of 1, 5 and 32, other numbers of designs; bf16 would show a difference at 1e-2."""
    loaded = replace(student, config={**student.config, "precision": precision})
    job = Job(loaded, 14, batch=32, options={"steps": 2}, request={"length": "60-76"})
    whole = drawn(job)
    assert len(whole) == 14
    for other in (replace(job, batch=1, num=5), replace(job, batch=5, shard=3), replace(job, batch=3, num=11)):
        found = drawn(other)
        assert len(found) == other.num
        assert [i for i, x in found.items() if not np.array_equal(x, whole[i])] == []
    assert not any(np.array_equal(x, whole[i]) for i, x in drawn(replace(job, num=4, seed=1)).items())


def test_content_does_not_depend_on_the_processes(student: Loaded, tmp_path: Path) -> None:
    job = Job(student, 12, batch=4, options={"steps": 1}, request={"length": "60-64"}, format="packed")
    generate(job, tmp_path / "one")
    generate(job, tmp_path / "two", Engine(workers=2))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_designs_and_numbers_do_not_depend_on_shards_and_format(loaded: Loaded, tmp_path: Path) -> None:
    job = Job(loaded, 40, batch=8, filters=("radius", "side"))
    numbers, designs = [], []
    for n, change in enumerate(({}, {"shard": 16}, {"shard": 1000, "format": "packed"}, {"batch": 3})):
        other, out = replace(job, **change), tmp_path / str(n)
        generate(other, out)
        rows = pq.read_table(out / "manifest.parquet").drop_columns(["shard", "file", "offset", "sha256"])
        numbers.append(rows.to_pylist())
        found = sorted(out.rglob("shard_*"))
        designs.append(
            {i: x.tolist() for path in found for i, x in loaded.domain.unpack(path.read_bytes()).items()}
            or {int(p.stem[7:]): np.load(p)["sample"].tolist() for p in out.glob("*.npz")}
        )
    assert len(designs[0]) == 40
    assert all(other == numbers[0] for other in numbers)
    assert all(other == designs[0] for other in designs)


def test_many_files_are_spread_over_folders(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xdistill.generation.job.FLAT", 10)
    generate(Job(loaded, 11, batch=4, shard=8), tmp_path)
    rows = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    assert {row["file"] for row in rows} == {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.npz")}
    assert all(row["file"] == f"designs/{row['shard']:06d}/sample_{row['index']:06d}.npz" for row in rows)
