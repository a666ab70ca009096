"""Options that change the bits or the files: precision, compile, atoms of a shortlist; a folder read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xdistill import compiled, rng
from xdistill.cli import main
from xdistill.compiled import Compiled, check_compiler
from xdistill.domains.protein import ProteinDomain
from xdistill.errors import UsageError
from xdistill.evaluation import read_samples
from xdistill.generation import Job
from xdistill.generation.maker import Artist
from xdistill.student import Loaded


def test_a_shortlist_holds_the_atoms_asked_for_and_is_not_read_twice(tmp_path: Path) -> None:
    if not ProteinDomain({}).shipped_student().exists():
        pytest.skip("this tree ships no protein student")
    request = ("num=4", "length=40", "steps=1", "atoms=backbone", "keep=2", "by=length", "format=pdb")
    assert main(["generate", "domain=protein", *request, f"out={tmp_path}"]) == 0
    kept = sorted((tmp_path / "shortlist").iterdir())
    assert len(kept) == 2
    for path in kept:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
        assert " CB  ALA" in path.read_text()
    assert len(read_samples(ProteinDomain({}), tmp_path)) == 4
    assert len(read_samples(ProteinDomain({}), tmp_path / "shortlist")) == 2


def test_identity_tells_what_changes_bits(loaded: Loaded) -> None:
    job = Job(loaded, 4)
    assert job.identity() == replace(job, precision="fp32").identity()
    assert replace(job, precision="bf16").identity()["precision"] == "bf16"
    assert replace(job, compile=True).identity()["compile"] is True
    with pytest.raises(UsageError, match="precision=fp16: expected fp32 or bf16"):
        replace(job, precision="fp16")


def test_precision_reaches_the_network(loaded: Loaded) -> None:
    seen, job = [], Job(loaded, 4, options={"steps": 1})
    hook = loaded.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for precision in ("fp32", "bf16"):
        artist = Artist(replace(job, precision=precision))
        artist.draw(job.plan[0])
        artist.close()
    hook.remove()
    assert seen == [False, True]


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_checkpoint: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler \(no-such-compiler\)"):
        check_compiler("cpu")
    given = ["generate", "domain=toy", f"ckpt={toy_checkpoint}", "compile=true", f"out={tmp_path / 'x'}"]
    assert main(given) == 2
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs Triton"):
        check_compiler("cuda")


@pytest.mark.slow
def test_compiled_network_draws_the_same(loaded: Loaded) -> None:
    try:
        check_compiler("cpu")
    except UsageError as error:
        pytest.skip(str(error))
    plan = loaded.domain.plan(range(6), 0)
    x = loaded.domain.process.prior(plan.like, rng.per_sample(0, range(6)))
    t = torch.full((6,), 0.5)
    network = Compiled(loaded.model, "cpu")
    with torch.no_grad():
        expected, found = loaded.model(x, t, plan.cond), network(x, t, plan.cond)
    torch.testing.assert_close(found.value, expected.value, atol=1e-5, rtol=1e-5)
    assert network.kind is loaded.model.kind
    job, drawn = Job(loaded, 6), []
    for one in (job, replace(job, compile=True)):
        artist = Artist(one)
        drawn.append(artist.draw(job.plan[0]).designs)
        artist.close()
    assert [d.calls for d in drawn[0].values()] == [d.calls for d in drawn[1].values()]
    for i, design in drawn[0].items():
        torch.testing.assert_close(torch.as_tensor(drawn[1][i].sample), torch.as_tensor(design.sample))
