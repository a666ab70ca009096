"""Matplotlib figures as inline SVG that follows the page: its text colour, its fonts, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xdistill.domain import Domain

#: Readable on white and on near-black alike.
PALETTE = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#06b6d4", "#f43f5e", "#8b5cf6")
NEUTRAL = "#8b95a5"
INK, LINE = "#010203", "#040506"  # stand-ins, replaced by the page's colours
THEME: Any = {  # typed by name in new matplotlib stubs, as text in older ones
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color", "axes.labelcolor", "axes.titlecolor"), INK),
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "xdistill",  # equal figures, equal files
}


def colour(index: int | None) -> str:
    """Of source `index`; None: real data."""
    return NEUTRAL if index is None else PALETTE[index % len(PALETTE)]


def chip(colour: str) -> str:
    """A dot in a source's colour, before its name."""
    return f'<span class="chip" style="background:{colour}"></span>'


@contextmanager
def axes(width: float = 3.4, height: float = 2.5) -> Iterator[tuple[Any, Any]]:
    """A figure of so many inches and its axes, themed for `inline_svg`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(THEME):
        fig = Figure(figsize=(width, height), layout="constrained")
        yield fig, fig.subplots()


def inline_svg(fig: Any, label: str) -> str:
    """An `<svg>` element that scales to its container; label: what it shows, for those who cannot see it."""
    text = io.StringIO()
    fig.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = svg.replace(INK, "currentColor").replace(LINE, "var(--line)")
    svg = re.sub(r' id="[a-z]+[0-9]?[a-z]*_[0-9]+"', "", svg)  # figures of one page would share them
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def figure(svg: str, caption: str) -> str:
    """A captioned figure of a `figures` grid; caption is markup."""
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def figures(parts: Sequence[str]) -> str:
    """Figures side by side where the page is wide enough."""
    return f'<div class="figures">{"".join(parts)}</div>'


def gallery(domain: Domain, samples: Sequence[Any]) -> str:
    """Small drawings of samples by `Domain.draw`."""
    parts = []
    for i, sample in enumerate(samples):
        with axes(1.3, 1.3) as (fig, ax):
            domain.draw(ax, sample)
            ax.set(xticks=[], yticks=[])
            parts.append(inline_svg(fig, f"sample {i}"))
    return f'<div class="gallery">{"".join(parts)}</div>'
