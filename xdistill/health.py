"""Numerical safety: count skipped updates, stop a run that no longer learns, and read a health log afterwards."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from xdistill.errors import XDistillError


class Diverged(XDistillError):
    """Too many updates in a row were not finite; the last good checkpoint is intact."""


@dataclass
class Health:
    """Counts of skipped updates by role; `limit` in a row end the run with a diagnosis."""

    limit: int = 20
    skipped: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    in_a_row: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def record(self, role: str, skipped: bool, why: str = "") -> None:
        """Note one update; raises Diverged after `limit` consecutive skips of a role."""
        if not skipped:
            self.in_a_row[role] = 0
            return
        self.skipped[role] += 1
        self.in_a_row[role] += 1
        if self.in_a_row[role] >= self.limit:
            raise Diverged(
                f"stopped: {self.limit} updates of '{role}' in a row were skipped ({why}); likely causes: learning "
                f"rate of '{role}' too high, bf16 at very small t, or non-finite data. The last good checkpoint is "
                f"intact: lower optim.{role}.lr or set precision=fp32, then resume=auto"
            )

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Plain counts."""
        return {"skipped": dict(self.skipped), "in_a_row": dict(self.in_a_row)}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        """Restore `state_dict`."""
        self.skipped.update(state["skipped"])
        self.in_a_row.update(state["in_a_row"])


def diagnose(log: Path) -> list[str]:
    """Likely causes of trouble, from a run's `health.jsonl` (objectives spec 10); empty when it looks well."""
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    if not rows:
        return ["no health record yet: the run wrote nothing before it ended"]
    findings = []
    skipped = sum(rows[-1].get("skipped", {}).values())
    if skipped > 0.01 * rows[-1]["macro_step"]:
        findings.append(f"{skipped} updates were skipped as not finite: lower the learning rate, or precision=fp32")
    gap = [r["student/gap"] for r in rows if math.isfinite(r.get("student/gap", math.nan))]
    if len(gap) >= 8:
        early, late = _mean(gap[len(gap) // 4 : len(gap) // 2]), _mean(gap[-len(gap) // 4 :])
        if late > 2 * early:
            findings.append(
                "the teacher-critic gap more than doubled: critic lag (more critic updates, higher critic lr)"
            )
    spread = [r["student/spread"] for r in rows if "student/spread" in r]
    if len(spread) >= 8 and spread[-1] < 0.5 * spread[0]:
        findings.append(
            "the spread of the student's samples halved: collapse (lower student lr, alpha toward 1, more steps)"
        )
    if alarms := [r for r in rows if r.get("alarm")]:
        step, what = alarms[-1]["macro_step"], alarms[-1]["alarm"]
        findings.append(f"collapse at macro-step {step}: {what} (lower student lr, or train.guard=stop)")
    return findings


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
