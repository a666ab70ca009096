"""What each verb prints, saves and returns on good input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Outcome

from xdistill import __version__, registry
from xdistill.cli import VERBS


def test_help_and_version(xdistill: Callable[..., Outcome]) -> None:
    assert xdistill("--version").out.strip() == f"xdistill {__version__}"
    shown = xdistill("--help")
    assert shown.code == 0
    assert all(verb in shown.out for verb in VERBS)
    assert xdistill().code == 2
    for verb in VERBS:
        helped = xdistill(verb, "--help")
        assert helped.code == 0
        assert f"xdistill {verb}" in helped.out


def test_list_names_everything_registered(xdistill: Callable[..., Outcome]) -> None:
    out = xdistill("list").out
    names = [*registry.names("domains"), *registry.names("objectives")]
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert set(lines) == set(names)
    assert all(len(line.split()) > 3 for line in lines.values())


def test_evaluate(xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
    samples, table = tmp_path / "samples", tmp_path / "deep" / "table.json"
    xdistill("generate", "domain=toy", f"ckpt={finished}", "num=20", f"out={samples}")
    shown = xdistill(
        "evaluate", "domain=toy", f"ckpt={finished},{finished / 'checkpoints' / 'step_2'}", f"dir={samples}", "num=20",
        f"json={table}",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    assert "mmd2" in shown.out
    report = json.loads(table.read_text())
    newest, older, folder = report["rows"]
    assert newest["n"] == folder["n"] == 20
    assert newest["calls"] == 4
    assert folder["calls"] is None
    for row in (newest, older, folder):
        m = row["metrics"]["mmd2"]
        assert m["low"] <= m["value"] <= m["high"]
    # The files are the very samples that `evaluate` draws from the same checkpoint and seed.
    assert folder["metrics"]["mmd2"]["value"] == pytest.approx(newest["metrics"]["mmd2"]["value"], abs=1e-6)
    assert older["metrics"]["mmd2"]["value"] != newest["metrics"]["mmd2"]["value"]
    assert report["real"]["mmd2"]["value"] < newest["metrics"]["mmd2"]["value"]
    assert report["seed"] == 0


def test_the_shipped_student_has_a_name(xdistill: Callable[..., Outcome], tmp_path: Path, monkeypatch: Any) -> None:
    """`ckpt=shipped` is what generate takes when told nothing; its table lies with the user, not in the package."""
    monkeypatch.chdir(tmp_path)
    asked = ("domain=protein", "num=2", "length=40", "steps=1")
    for out, more in {"a": (), "b": ("ckpt=shipped",)}.items():
        assert xdistill("generate", *asked, f"out={out}", *more).code == 0
    assert [p.read_bytes() for p in sorted(Path("a").glob("*.pdb"))] == [
        p.read_bytes() for p in sorted(Path("b").glob("*.pdb"))
    ]
    shown = xdistill("evaluate", *asked, "ckpt=shipped")
    assert shown.code == 0, shown.err
    assert [row["name"] for row in json.loads(Path("evaluation.json").read_text())["rows"]] == ["shipped student"]
    missing = xdistill("evaluate", "domain=toy", "ckpt=shipped")
    assert missing.code == 2
    assert "domain 'toy' ships no student" in missing.err


def test_evaluate_takes_keys_of_the_domain(xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
    command = ("evaluate", "domain=toy", f"ckpt={finished}", "teacher=reference", "num=8", f"json={tmp_path}/a.json")
    shown = xdistill(*command, "domain.teacher_steps=5", "domain.radius=3")
    assert shown.code == 0, shown.err
    teacher, far = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert teacher["calls"] == 5
    assert xdistill(*command, "domain.radius=1.5").code == 0
    near = json.loads((tmp_path / "a.json").read_text())["rows"][1]
    assert far["metrics"]["mmd2"]["value"] > 2 * near["metrics"]["mmd2"]["value"], "the run's domain changes too"


def test_evaluate_teacher_samplers(xdistill: Callable[..., Outcome], tmp_path: Path) -> None:
    table, page = tmp_path / "table.json", tmp_path / "table.html"
    shown = xdistill(
        "evaluate", "domain=toy", "teacher=all", "teacher_steps=3", "num=8", "metrics=full", f"json={table}",
        f"html={page}",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    rows = json.loads(table.read_text())["rows"]
    assert {row["name"]: row["calls"] for row in rows} == {"teacher (reference)": 3, "teacher (euler)": 3}
    assert "teacher (euler)" in page.read_text()


def test_evaluate_reads_packed_shards_in_index_order(tmp_path: Path) -> None:
    from xdistill.domains.toy import ToyDomain
    from xdistill.evaluation import read_samples
    from xdistill.generation.shards import shard_name, write_shard

    domain = ToyDomain({})
    samples = domain.decode(domain.data(8, seed=1).batch(0, 0, 1).like)
    for number, indices in enumerate([[4, 5, 6, 7], [0, 1, 2, 3]]):
        write_shard(tmp_path / shard_name(domain, number), domain, [samples[i] for i in indices], indices)
    found = read_samples(domain, tmp_path)
    assert [a.tolist() for a in found] == [s.tolist() for s in samples]


def test_unknown_metrics_and_samplers_are_named(xdistill: Callable[..., Outcome]) -> None:
    metrics = xdistill("evaluate", "domain=protein", "teacher=ode", "metrics=novlety")
    assert metrics.code == 2
    assert "novelty" in metrics.err
    sampler = xdistill("evaluate", "domain=toy", "teacher=eular")
    assert sampler.code == 2
    assert "euler" in sampler.err


def test_bench(xdistill: Callable[..., Outcome], finished: Path, tmp_path: Path) -> None:
    shown = xdistill(
        "bench", "domain=toy", f"ckpt={finished}", "teacher_steps=15", "steps=2", "repeats=2", "batch=4", "num=8",
        f"json={tmp_path / 'bench.json'}",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["rows"]["teacher"]["calls"] == 15
    student = report["rows"]["student, 2 calls"]
    assert student["calls"] == 2
    assert len(student["all_seconds"]) == 2
    ratio = report["rows"]["teacher"]["seconds"] / student["seconds"]
    assert report["speedup_2_calls"] == student["speedup"] == pytest.approx(ratio)
    assert student["quality"]["score"]["n"] == 8
    assert set(student["verdict"]) == set(student["quality"])
    assert "torch" in report["hardware"]


def test_doctor_of_this_machine(xdistill: Callable[..., Outcome]) -> None:
    shown = xdistill("doctor")
    assert shown.code == 0, shown.out
    assert "torch" in shown.out
    assert "checksum matches" in shown.out


def test_doctor_finds_a_changed_asset(tmp_path: Path) -> None:
    from xdistill.cli.doctor import _asset

    file = tmp_path / "weights"
    file.write_bytes(b"changed")
    assert _asset("weights", file, "0" * 64).ok is False
    assert _asset("weights", tmp_path / "gone", "0" * 64).ok is False


def test_every_shipped_file_has_a_checksum_that_holds() -> None:
    from xdistill.cli.doctor import assets

    found = {f.what: f.ok for f in assets()}
    assert [name for name, ok in found.items() if ok is not True] == []
    assert {"speech/asterisk_en", "text/mini_teacher.safetensors", "toy/mixture.safetensors"} <= set(found)


def test_doctor_of_a_teacher(xdistill: Callable[..., Outcome]) -> None:
    shown = xdistill("doctor", "teacher", "domain=toy")
    assert shown.code == 0, shown.out
    assert "time_sign" in shown.out


def test_doctor_of_a_run(xdistill: Callable[..., Outcome], toy_run: Path) -> None:
    rows = [{"macro_step": i, "student/gap": 0.1 if i < 20 else 1.0, "skipped": {}} for i in range(40)]
    (toy_run / "health.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sick = xdistill("doctor", "run", toy_run)
    assert sick.code == 1
    assert "critic lag" in " ".join(sick.out.split())
    (toy_run / "health.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    assert xdistill("doctor", "run", toy_run).code == 0


def test_debug_shows_the_traceback(xdistill: Callable[..., Outcome]) -> None:
    assert "Traceback" in xdistill("fit", "domain=toi", "--debug").err
    assert "Traceback" not in xdistill("fit", "domain=toi").err


def test_unforeseen_error_is_one_line(xdistill: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "list", ("no_such_module", ""))
    outcome = xdistill("list")
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert "--debug" in outcome.err
