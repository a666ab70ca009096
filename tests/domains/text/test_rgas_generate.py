"""Reward-guided sampling from a checkpoint: the discriminator beside the student, its calls, what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from text_student import random_denoiser, write_checkpoint

from xdistill import rng
from xdistill.cli import main
from xdistill.cli.student import beside
from xdistill.domains.text import TextDomain
from xdistill.domains.text.checkpoint import load_text_model, save_text_model
from xdistill.domains.text.discriminator import TokenDiscriminator
from xdistill.samplers.mask import grid
from xdistill.samplers.rgas import rgas, rgas_calls
from xdistill.student import Judged, Loaded, load_student

ASK = ("method=rgas", "steps=4", "num=5", "batch=2", "length=16", "prompt=She")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, its teacher and its discriminator, of random weights."""
    folder = tmp_path_factory.mktemp("rgas")
    domain = TextDomain({})
    teacher = random_denoiser(domain, seed=1)
    weights = save_text_model(teacher, folder / "teacher")
    path = write_checkpoint(folder / "student", "objective=didi", "experiment=none", f"teacher.weights={weights}")
    judge = TokenDiscriminator(teacher)
    torch.nn.init.normal_(judge.output_layer.main[2].weight_orig, generator=rng.generator("judge"))
    file = path / "roles" / "discriminator.safetensors"
    save_file({k: v.contiguous() for k, v in judge.state_dict().items()}, file)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["roles/discriminator.safetensors"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def judged(checkpoint: Path) -> Loaded:
    return beside(load_student(checkpoint), "rgas")


def generated(checkpoint: Path, out: Path, *more: str) -> list[str]:
    assert main(["generate", "domain=text", f"ckpt={checkpoint}", *ASK, *more, f"out={out}"]) == 0
    return [json.loads(line)["text"] for line in (out / "samples.jsonl").read_text().splitlines()]


def test_what_is_loaded_is_what_the_run_kept(checkpoint: Path) -> None:
    loaded = pickle.loads(pickle.dumps(judged(checkpoint)))  # as it travels to worker processes
    model = loaded.model
    assert isinstance(model, Judged)
    assert isinstance(model.discriminator, TokenDiscriminator)
    assert model.discriminator.trunk is model.teacher.net, "moved between devices with the teacher"
    stored = load_text_model(loaded.config["teacher"]["weights"]).net.state_dict()
    held = model.teacher.net.state_dict()
    assert all(torch.equal(held[name], weight) for name, weight in stored.items())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("more", [(), ("method.ratio=1.0", "method.candidates=3"), ("method.ratio=0", "batch=5")])
def test_generate(checkpoint: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    asked = [a for a in ASK if not any(a.split("=")[0] == m.split("=")[0] for m in more)]
    assert main(["generate", "domain=text", f"ckpt={checkpoint}", *asked, *more, f"out={tmp_path / 'out'}"]) == 0
    options = {"ratio": 0.5, "candidates": 4} | {
        k.removeprefix("method."): float(v) for k, v in (m.split("=") for m in more) if k.startswith("method.")
    }
    loaded = judged(checkpoint)
    domain, model = loaded.domain, loaded.model
    assert isinstance(domain, TextDomain)
    plan = domain.plan(range(5), 0, prompt="She", length=16)
    options["candidates"] = int(options["candidates"])
    z = domain.process.prior(plan.like, rng.generator("prior"))
    found = rgas(
        model, model.discriminator, domain.process, grid(4), z, plan.cond, rng.per_sample(0, range(5)), **options
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [line["ids"] for line in lines] == [list(p.ids) for p in domain.decode(found)]
    rows, calls = pq.read_table(tmp_path / "out" / "manifest.parquet"), rgas_calls(4, **options)
    assert set(rows["calls"].to_pylist()) == {calls["student"]}
    assert set(rows["discriminator_calls"].to_pylist()) == {calls["discriminator"]}
    assert set(rows["discriminator_backward_calls"].to_pylist()) == {calls["discriminator_backward"]}


def test_report_and_evaluate_name_every_kind(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated(checkpoint, tmp_path / "out")
    assert "4 network calls, 10 discriminator calls, 2 discriminator backward calls each" in capsys.readouterr().out
    table = tmp_path / "table.json"
    arguments = ["evaluate", "domain=text", f"ckpt={checkpoint}", "method=rgas", "method.candidates=2", "steps=4"]
    assert main([*arguments, "num=4", "domain.judge=ngram", "length=16", f"json={table}"]) == 0
    (row,) = json.loads(table.read_text())["rows"]
    assert row["calls"] == 4
    assert row["discriminator_calls"] == 2 + 2 * 2
    assert row["discriminator_backward_calls"] == 2


def test_a_student_without_a_judge_counts_no_judge(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = [a for a in ASK if not a.startswith("method")]
    assert main(["generate", "domain=text", f"ckpt={checkpoint}", *plain, f"out={out}"]) == 0
    assert "discriminator_calls" not in pq.read_table(out / "manifest.parquet").column_names


def test_what_cannot_be_is_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = write_checkpoint(tmp_path / "plain")
    cases = [
        (plain, ("method=rgas",), "keeps no discriminator: method=rgas needs ckpt= of a run of objective=didi"),
        (checkpoint, ("method=rgas", "method.ratoi=0.5"), "unknown option 'method.ratoi' of method=rgas: did you mean"),
        (checkpoint, ("method=rgas", "method.ratio=1.5"), "expected a ratio in [0, 1]"),
        (checkpoint, ("method=rgas", "method.candidates=many"), "method.candidates=many: expected a value such as 4"),
        (checkpoint, ("method.ratio=0.5",), "unknown option 'method.ratio' of method=ancestral"),
        (plain, ("method=dual_cache", "method.block=0"), "block=0: expected a number of tokens"),
    ]
    for path, arguments, said in cases:
        capsys.readouterr()
        command = ["generate", "domain=text", f"ckpt={path}", "num=2", "steps=2", "length=8", *arguments]
        assert main([*command, f"out={tmp_path / 'out'}"]) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert said in error
        assert len(error.splitlines()) == 1


def test_options_reach_the_caches(checkpoint: Path, tmp_path: Path) -> None:
    """A cache of one block is no cache: another number of blocks gives other texts."""
    asked = [a for a in ASK if not a.startswith("method")]
    found = []
    for block in (16, 4):
        out = tmp_path / str(block)
        method = ("method=dual_cache", f"method.block={block}", "method.inner=ancestral", f"out={out}")
        assert main(["generate", "domain=text", f"ckpt={checkpoint}", *asked, *method]) == 0
        found.append((out / "samples.jsonl").read_text())
    assert found[0] != found[1]
