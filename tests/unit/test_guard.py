"""The collapse guard on a student that always says the same, and on a healthy one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from xdistill.assemble import build_module, build_trainer
from xdistill.callbacks import Save
from xdistill.config import compose
from xdistill.domain import Domain
from xdistill.evaluation import student_sampler
from xdistill.folder import RunFolder
from xdistill.guard import Guard, fallen
from xdistill.health import diagnose
from xdistill.run import fit
from xdistill.sections import build_domain, build_objective
from xdistill.stream import Stream

QUICK = ("domain=toy", "domain.task=tokens", "objective=idlm", "strategy.accelerator=cpu", "data.batch=8")
STILL = (
    "train.steps=8",
    "train.guard_every=2",
    "optim.student.lr=0",
    "optim.critic.lr=0",
    "objective.critic_updates=1",
)
QUIET = ("logger=none", "eval.report=false", "objective.critic_warmup=0")


def run(tmp_path: Path, action: str, *, collapsed: bool) -> tuple[Guard, int, list[dict], str, list[str]]:
    """Eight steps without learning: the guard, the steps made, its rows, what it said, the checkpoints."""
    cfg = compose([*QUICK, *STILL, *QUIET, f"out={tmp_path}"])
    domain = build_domain(cfg)
    objective = build_objective(cfg, domain)
    module = build_module(cfg, domain, objective)
    with torch.no_grad():
        for role in ("student", "student_ema"):
            module.networks[role].output.weight.zero_()
            module.networks[role].output.bias.zero_()[0] = 50.0 if collapsed else 0.0  # always 0, or all alike
    folder, out = RunFolder(tmp_path), io.StringIO()
    guard = Guard(
        domain,
        student_sampler(objective),
        tmp_path / "health.jsonl",
        Console(file=out, width=300),
        action=action,
        every=cfg.train.guard_every,
    )
    save = Save(folder, {}, {}, every=100, keep=2)
    stream = Stream(domain.data(8, 0), steps=8, slots=module.slots, start=0, rank=0, world=1)
    build_trainer(cfg, [guard, save], tmp_path).fit(module, stream)
    rows = [json.loads(line) for line in guard.path.read_text().splitlines()] if guard.path.exists() else []
    return guard, module.macro_step, rows, out.getvalue(), [p.name for p in folder.checkpoints.iterdir()]


def test_a_collapsed_student_is_said_so(tmp_path: Path) -> None:
    guard, steps, rows, said, _ = run(tmp_path, "warn", collapsed=True)
    assert steps == 8
    assert [row["macro_step"] for row in rows] == [2, 4, 6, 8]
    assert all("entropy" in row["alarm"] and row["guard/entropy"] < 0.1 for row in rows)
    assert said.count("warning at macro-step") == len(said.splitlines()) == 4
    assert "100 % below the teacher's 1." in said
    assert not guard.reason
    assert any("collapse at macro-step 8" in finding for finding in diagnose(guard.path))


def test_a_collapsed_run_stops_with_a_checkpoint(tmp_path: Path) -> None:
    guard, steps, rows, said, checkpoints = run(tmp_path, "stop", collapsed=True)
    assert steps == 2
    assert len(rows) == 1
    assert "stopped at macro-step 2" in said
    assert "entropy" in guard.reason
    assert checkpoints == ["step_2"]


@pytest.mark.parametrize("action", ["stop", "off"])
def test_a_healthy_student_is_left_alone(tmp_path: Path, action: str) -> None:
    guard, steps, rows, said, checkpoints = run(tmp_path, action, collapsed=False)
    assert steps == 8
    assert not said
    assert not guard.reason
    assert [row["alarm"] for row in rows] == ([""] * 4 if action == "stop" else [])
    assert checkpoints == ["step_8"]


def test_off_is_off_when_it_collapses(tmp_path: Path) -> None:
    assert run(tmp_path, "off", collapsed=True)[1:4] == (8, [], "")


def test_five_per_cent() -> None:
    assert not fallen({"entropy": 3.81, "distinct": 1.2}, {"entropy": 4.0, "distinct": 1.0}, 0.05)
    assert fallen({"entropy": 3.79, "distinct": 1.0}, {"entropy": 4.0, "distinct": 1.0}, 0.05).startswith(
        "entropy 3.79 is 5 %"
    )


def test_a_domain_that_watches_nothing_has_no_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xdistill.domains.toy import ToyTokens

    monkeypatch.setattr(ToyTokens, "watched", ())
    assert Domain.watched == ()
    assert run(tmp_path, "stop", collapsed=True)[1:4] == (8, [], "")


def test_fit_has_a_guard(tmp_path: Path) -> None:
    """By default it warns; its rows stand in the run's health record."""
    cfg = compose([*QUICK, *STILL, *QUIET, f"out={tmp_path / 'run'}"])
    assert cfg.train.guard == "warn"
    rows = [json.loads(line) for line in (fit(cfg) / "health.jsonl").read_text().splitlines()]
    assert [row["macro_step"] for row in rows if "guard/entropy" in row] == [2, 4, 6, 8]


def test_text_that_repeats_itself_loses_both_numbers() -> None:
    from xdistill.domains.text import TextDomain
    from xdistill.domains.text.passage import decode
    from xdistill.state import Tokens

    domain = TextDomain({})
    ids = torch.stack([torch.arange(64) * 7 % 900, torch.full((64,), 5)])
    lively, dull = decode(Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), domain.tokenizer)
    assert fallen(domain.watch([dull]), domain.watch([lively]), domain.watch_fall).count("below") == 2
    assert set(domain.watch([lively])) == set(domain.watched)
