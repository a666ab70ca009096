"""A text in a figure."""

from __future__ import annotations

import textwrap
from typing import Any

COLUMNS, LINES = 52, 11


def draw_passage(ax: Any, text: str) -> None:
    """Wrap a text into matplotlib axes; what does not fit is cut."""
    lines = textwrap.wrap(text, COLUMNS) or ["(no text)"]
    shown = lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1][: COLUMNS - 2] + " …"]
    shown = [line.replace("$", r"\$") for line in shown]  # a pair of them would be read as mathematics
    ax.text(0, 1, "\n".join(shown), va="top", fontsize=5.5, family="serif", transform=ax.transAxes)
    ax.set_axis_off()
