"""Samples that are read, not looked at: side by side in the terminal, and as blocks in an HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.table import Table
from rich.text import Text

from xdistill.domain import Domain
from xdistill.evaluation import Row


def side_by_side(rows: Sequence[Row], domain: Domain, each: int = 2) -> Table:
    """A column a source and a line a sample, the same sample number of all sources in each."""
    shown = Table(title="samples side by side", show_lines=True, expand=True)
    for row in rows:
        calls = "" if row.calls is None else f", {row.calls:g} calls"
        shown.add_column(row.name + calls, ratio=1, overflow="fold")
    for i in range(min([each, *(row.n for row in rows)])):
        shown.add_row(*[Text(domain.sample_text(row.samples[i]) or "") for row in rows])
    return shown


def as_html(domain: Domain, samples: Sequence[object]) -> str:
    """Blocks of text."""
    return "".join(f"<blockquote>{escape(domain.sample_text(s) or '')}</blockquote>" for s in samples)
