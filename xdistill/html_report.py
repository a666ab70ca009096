"""One self-contained HTML file that shows what `evaluate` found: numbers, the domain's plots, structures in 3D."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from xdistill import passages
from xdistill.domain import Domain, Metric
from xdistill.evaluation import Row
from xdistill.html_figure import chip, colour, gallery

ASSETS = Path(__file__).parent / "assets"
VIEWER_VERSION = "2.5.5"  # of 3Dmol.js, see tools/vendor_3dmol.py
VIEWER_SHA256 = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"
MODELS_EACH, MODELS_BYTES = 24, 3_500_000  # structures of a source, text of all of them
ARROWS = {"high": ("↑", "higher is better"), "low": ("↓", "lower is better"), "none": ("", "")}
REAL = "real data, held out"


@dataclass(frozen=True)
class Panel:
    """A titled piece of a report; html is trusted markup without references to other files."""

    title: str
    html: str


def write_html(path: Path, title: str, rows: Sequence[Row], domain: Domain, real: Mapping[str, Metric]) -> Path:
    """Write the report of `rows` to `path`, atomically; it opens in a browser without a network.

    Every number stands with its n and its interval; what real data scores comes last. A domain adds plots
    (`html_panels`) and structures (`viewer_models`: the first 24 of a source, fewer when there are many sources; an
    empty text stands for a sample that cannot be shown).
    Samples of a domain without structures are shown as `Domain.draw` draws them. real: what real data scores.
    """
    groups = _models(rows, domain)
    panels = [Panel("Quality", metrics_table(rows, real))]
    panels += [Panel("Structures", _viewer(groups))] if groups else gallery_panel(rows, domain)
    panels += domain.html_panels(rows)
    page = Template((ASSETS / "report.html").read_text()).substitute(
        title=escape(title),
        domain=escape(domain.name),
        summary=_summary(rows),
        css=(ASSETS / "report.css").read_text(),
        panels="\n".join(f"<section><h2>{escape(p.title)}</h2>\n{p.html}\n</section>" for p in panels),
        scripts=_scripts(groups) if groups else "",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    return part.rename(path)


def metrics_table(rows: Sequence[Row], real: Mapping[str, Metric]) -> str:
    """A line a metric, a column a source: value, interval, n, and a mark on a scale that the line shares."""
    columns = [(row.name, colour(i), row.metrics) for i, row in enumerate(rows)]
    columns += [(REAL, colour(None), real)] if real else []
    head = "".join(f'<th scope="col">{chip(c)}{escape(name)}</th>' for name, c, _ in columns)
    body = []
    for name in dict.fromkeys(name for row in rows for name in row.metrics):
        metrics = [(c, m.get(name)) for _, c, m in columns]
        arrow, meaning = ARROWS[next(m.better for _, m in metrics if m)]
        known = [x for _, m in metrics if m for x in (m.low, m.value, m.high) if math.isfinite(x)]
        scale = (min(known, default=0.0), max(known, default=1.0))
        cells = "".join(_cell(m, c, scale) for c, m in metrics)
        body.append(f'<tr><th scope="row">{escape(name)} <span title="{meaning}">{arrow}</span></th>{cells}</tr>')
    for name, key in (("network calls a sample", "calls"), ("seconds a sample", "seconds")):
        values = [getattr(row, key) for row in rows]
        if any(v is not None for v in values):
            cells = "".join("<td>–</td>" if v is None else f"<td><b>{v:.3g}</b></td>" for v in values)
            body.append(f'<tr><th scope="row">{name}</th>{cells}{"<td></td>" if real else ""}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">metric</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<p class="note">Value, bootstrap 95 % interval and number of samples behind it. '
        "↑ higher is better, ↓ lower is better; no arrow: a description.</p>"
    )


def gallery_panel(rows: Sequence[Row], domain: Domain, each: int = 12) -> list[Panel]:
    """The first samples of every source as text, or as the domain draws them; nothing when it has structures."""
    readable = type(domain).sample_text is not Domain.sample_text
    drawn = type(domain).draw is not Domain.draw and type(domain).viewer_models is Domain.viewer_models
    if not readable and not drawn:
        return []
    shown = passages.as_html if readable else gallery
    heads = (f"<h3>{chip(colour(i))}{escape(row.name)}</h3>" for i, row in enumerate(rows))
    parts = [head + shown(domain, row.samples[:each]) for head, row in zip(heads, rows, strict=True)]
    return [Panel("Samples", "".join(parts))]


def _cell(m: Metric | None, colour: str, scale: tuple[float, float]) -> str:
    if m is None:
        return "<td>–</td>"
    low, span = scale[0], (scale[1] - scale[0]) or 1.0
    a, v, b = ((x - low) / span * 92 + 4 if math.isfinite(x) else 4.0 for x in (m.low, m.value, m.high))
    mark = (
        f'<svg class="mark" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" style="color:{colour}">'
        f'<line x1="{a:.1f}" x2="{b:.1f}" y1="4" y2="4"/><rect x="{v - 1.2:.1f}" y="0" width="2.4" height="8"/></svg>'
    )
    interval = f"[{m.low:.3g}, {m.high:.3g}] <i>n = {m.n:,}</i>"
    return f"<td><b>{m.value:.3g}</b> <small>{interval}</small>{mark}</td>"


def _summary(rows: Sequence[Row]) -> str:
    items = (f"<li>{chip(colour(i))}{escape(row.name)} <i>n = {row.n:,}</i></li>" for i, row in enumerate(rows))
    return f'<ul class="sources">{"".join(items)}</ul>'


def _models(rows: Sequence[Row], domain: Domain) -> list[dict[str, Any]]:
    groups = []
    for i, row in enumerate(rows):
        texts = domain.viewer_models(row.samples[:MODELS_EACH])
        budget, kept = MODELS_BYTES // len(rows), []
        for index, text in enumerate(texts):
            budget -= len(text)
            if text and budget >= 0:
                kept.append((index, text))
        if kept:
            groups.append({"name": row.name, "colour": colour(i), "of": row.n, "models": kept})
    return groups


def _viewer(groups: Sequence[Mapping[str, Any]]) -> str:
    shown = sum(len(g["models"]) for g in groups)
    return Template((ASSETS / "viewer.html").read_text()).substitute(shown=shown, of=sum(g["of"] for g in groups))


def _scripts(groups: Sequence[Mapping[str, Any]]) -> str:
    models = json.dumps(groups).replace("<", "\\u003c")
    viewer, page = ((ASSETS / name).read_text(encoding="utf-8") for name in ("3Dmol-min.js", "report.js"))
    licence = (ASSETS / "3Dmol.LICENSE.txt").read_text(encoding="utf-8").replace("--", "- -")
    return (
        f"<!-- 3Dmol.js {VIEWER_VERSION}\n{licence}-->\n<script>{viewer}</script>\n"
        f'<script type="application/json" id="models">{models}</script>\n<script>{page}</script>'
    )
