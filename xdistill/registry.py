"""Domains and objectives by name, through entry points; the built-ins register the same way as anybody's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from xdistill.errors import UsageError


def names(kind: str) -> list[str]:
    """Registered names of a kind (`domains` or `objectives`), sorted; nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=f"xdistill.{kind}")})


def load(kind: str, name: str) -> type[Any]:
    """Import the class registered under `name`; raises UsageError naming the nearest one."""
    for entry in entry_points(group=f"xdistill.{kind}"):
        if entry.name == name:
            return entry.load()
    raise UsageError(f"unknown {kind[:-1]} '{name}'{nearest(name, names(kind))}")


def nearest(word: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'? (known: a, b, c)` for an error message; without a near one only the list."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f": did you mean '{close[0]}'?" if close else ""
    return f"{hint} (known: {', '.join(choices)})"


def call(target: Any, options: Mapping[str, Any], what: str, *args: Any, **fixed: Any) -> Any:
    """Call `target(*args, **fixed, **options)`; an option it does not know is a UsageError naming the nearest."""
    known = [p.name for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known += [p.name for p in inspect.signature(target).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for key in options:
        if key not in known or key in fixed:
            raise UsageError(f"unknown option '{key}' of {what}{nearest(key, set(known) - set(fixed))}")
    return target(*args, **fixed, **options)
