"""What the results tools share: rows kept in a JSON record, shown as Markdown beside it, made again by `--check`.

A row has the key "method/seed/calls"; those of "teacher" are "teacher: sampler/-/calls" and stand first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xdistill.machine import hardware

Record = dict[str, Any]
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One results table.

    path: of the record, a JSON file; the Markdown stands beside it. runs: folder of the students' runs. settings: what
    all rows have in common. make: (method, seed, numbers of calls, record, runs) -> rows, trained and measured; the
    method "teacher" stands for the baselines. check: prints (recorded rows, rows made again), says whether they agree.
    text: the Markdown of a record. saved: what else to do with a new record, such as a picture.
    """

    path: Path
    runs: Path
    settings: Mapping[str, Any]
    methods: Sequence[str]
    seeds: Sequence[int]
    calls: Sequence[int]
    make: Callable[[str, int, Sequence[int], Record, Path], Rows]
    check: Callable[[Rows, Rows], bool]
    text: Callable[[Record], str]
    saved: Callable[[Record], None] = lambda record: None
    indent: int | None = None

    def load(self) -> Record:
        """The record, or a new one; ends the program when it was made with other settings."""
        record = json.loads(self.path.read_text()) if self.path.exists() else {"settings": self.settings, "rows": {}}
        if record["settings"] != self.settings:
            raise SystemExit(f"{self.path} was made with other settings: move it away to start a new table")
        return record

    def add(self, rows: Rows) -> Record:
        """The record with these rows, written atomically; it is read again, for another process may have added some."""
        record = self.load()
        record["rows"] |= rows
        record["hardware"] = hardware()
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=self.indent) + "\n")
        part.rename(self.path)
        self.path.with_suffix(".md").write_text(self.text(record))
        self.saved(record)
        return record

    def main(self, doc: str | None) -> None:
        """The command line: fill in what the record lacks, or make rows again and compare (exit code 1: outside)."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--method", choices=["teacher", *self.methods], help="only this one")
        parser.add_argument("--seed", type=int, choices=self.seeds, help="only this one")
        parser.add_argument("--calls", type=int, choices=self.calls, help="only this one")
        parser.add_argument("--check", action="store_true", help="train and measure again in a fresh folder, compare")
        args = parser.parse_args()
        torch.set_num_threads(1)
        record, calls = self.load(), self.calls if args.calls is None else [args.calls]
        for method in [args.method] if args.method else ["teacher", *self.methods]:
            for seed in self.seeds[:1] if method == "teacher" else self.seeds if args.seed is None else [args.seed]:
                if args.check:
                    known = {**record, "rows": {}} if method == "teacher" else record
                    again = self.make(method, seed, calls, known, self.runs.with_name(f"{self.runs.name}_check"))
                    if not self.check(record["rows"], again):
                        raise SystemExit(1)
                elif missing := [k for k in calls if not recorded(record, method, seed, k)]:
                    record = self.add(self.make(method, seed, missing, record, self.runs))
        print(self.text(record))


def recorded(record: Record, method: str, seed: int, calls: int) -> bool:
    """Whether the row is there; of the teacher, any at so many calls."""
    if method != "teacher":
        return f"{method}/{seed}/{calls}" in record["rows"]
    return any(key.startswith("teacher: ") and key.endswith(f"/{calls}") for key in record["rows"])


def inside(label: str, old: Mapping[str, float], new: float) -> bool:
    """Whether a value made again lies within the recorded interval; prints both."""
    good = old["low"] - 1e-9 <= new <= old["high"] + 1e-9
    print(f"{label} {new:8.4f}  recorded {old['value']:.4f} [{old['low']:.4f}, {old['high']:.4f}]", end="")
    print("" if good else "  OUTSIDE")
    return good


def grouped(record: Record) -> list[tuple[tuple[str, int], list[dict[str, Any]]]]:
    """((method, calls), rows of its seeds), the teacher's first."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for key, row in record["rows"].items():
        method, _, calls = key.rsplit("/", 2)
        groups.setdefault((method, int(calls)), []).append(row)
    return sorted(groups.items(), key=lambda group: (not group[0][0].startswith("teacher"), group[0]))


def cell(values: Sequence[float], interval: Sequence[float] = ()) -> str:
    """Mean and, of several seeds, their range; of one the `interval` (low, high), if any. "-": none or not a number."""
    if not values or any(v != v for v in values):
        return "-"
    ends = (min(values), max(values)) if len(values) > 1 else interval
    return f"{statistics.fmean(values):.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def markdown(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*table, *(f"| {' | '.join(map(str, line))} |" for line in lines)]) + "\n"
