"""The protein panels of an HTML report: CA dihedral maps, length and secondary structure, diversity matrices."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdistill.domains.protein import geometry
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.clusters import tm_matrix
from xdistill.domains.protein.codec import NM
from xdistill.evaluation import Row
from xdistill.html_figure import axes, chip, colour, figure, figures, inline_svg
from xdistill.html_report import REAL, Panel

Array = NDArray[np.float64]
ANGLES, DIHEDRALS = (70.0, 165.0), (-180.0, 180.0)  # degrees
COMPARED = 20  # chains of a source in its diversity matrix
Group = tuple[str, str, list[Array]]  # name, colour, chains in Angstrom


def panels(rows: Sequence[Row]) -> list[Panel]:
    """What a structural biologist looks at first; chains with NaN or infinity are left out of all of it."""
    groups = [(r.name, colour(i), _finite([np.asarray(s) * NM for s in r.samples])) for i, r in enumerate(rows)]
    groups = [g for g in groups if g[2]]
    if not groups:
        return []
    real = load_embedded("test")
    shown: list[Group] = [*groups, (REAL, colour(None), _finite([real.coords(i) * NM for i in range(len(real))]))]
    return [
        Panel("Angles of the chain", dihedral_maps(shown)),
        Panel("Length and secondary structure", histograms(shown)),
        Panel("Diversity", diversity_matrices(groups)),
    ]


def dihedral_maps(groups: Sequence[Group]) -> str:
    """The CA analogue of a Ramachandran plot: virtual angle at i against virtual dihedral i-1..i+2, as densities."""
    parts = []
    for name, tint, chains in groups:
        angle = np.concatenate([geometry.virtual_angles(x)[:-1] for x in chains])
        dihedral = np.concatenate([geometry.virtual_dihedrals(x) for x in chains])
        density = np.histogram2d(dihedral, angle, bins=(72, 48), range=(DIHEDRALS, ANGLES))[0] / len(angle)
        with axes(3.3, 2.7) as (fig, ax):
            _shade(ax, np.sqrt(density / 0.02), tint, (*ANGLES, *DIHEDRALS), aspect="auto")
            ax.set(xlabel="CA angle (°)", ylabel="CA dihedral (°)", yticks=range(-180, 181, 90))
            label = f"{name}: density of CA angle and dihedral"
            parts.append(figure(inline_svg(fig, escape(label)), _caption(name, tint, f"n = {len(angle):,} residues")))
    note = (
        "α helices lie near (91°, +50°), β strands near (120°, −170°); a spot near −50° would be left-handed helix. "
        "Shade: square root of the density, one scale for all."
    )
    return f'{figures(parts)}<p class="note">{note}</p>'


def histograms(groups: Sequence[Group]) -> str:
    """Length, helix, strand and radius of gyration over the chains of each source."""
    sse = [[geometry.secondary_structure(x) for x in chains] for _, _, chains in groups]
    quantities = {
        "length (residues)": [[float(len(x)) for x in chains] for _, _, chains in groups],
        "helix (fraction of residues)": [[s.count("a") / len(s) for s in source] for source in sse],
        "strand (fraction of residues)": [[s.count("b") / len(s) for s in source] for source in sse],
        "Rg / 2.2 n^0.38 Å": [[geometry.compactness(x) for x in chains] for _, _, chains in groups],
    }
    parts = []
    for label, values in quantities.items():
        edges = np.histogram_bin_edges(np.concatenate(values), bins=18)
        with axes(3.0, 2.3) as (fig, ax):
            for (_, tint, _), v in zip(groups, values, strict=True):
                style: dict[str, Any] = {"histtype": "step", "lw": 1.8, "zorder": 2}
                if tint == colour(None):
                    style = {"histtype": "stepfilled", "alpha": 0.35, "zorder": 1}
                ax.hist(v, edges, weights=np.full(len(v), 1 / len(v)), color=tint, **style)
            ax.set(xlabel=label, ylabel="share of chains")
            parts.append(figure(inline_svg(fig, f"distribution of {label}"), ""))
    legend = " &ensp; ".join(_caption(name, tint, f"n = {len(chains):,} chains") for name, tint, chains in groups)
    return f'{figures(parts)}<p class="note">{legend}</p>'


def diversity_matrices(groups: Sequence[Group]) -> str:
    """Pairwise TM-scores of the first chains of each source, similar ones side by side."""
    parts = []
    for name, tint, chains in groups:
        tm = by_likeness(tm_matrix([x / NM for x in chains[:COMPARED]]))
        off = tm[np.triu_indices(len(tm), 1)]
        said = f"mean {off.mean():.2f}, {np.mean(off > 0.5):.0%} above 0.5, " if len(off) else ""
        with axes(3.0, 2.6) as (fig, ax):
            _shade(ax, (tm - 0.1) / 0.7, tint, (0, len(tm), 0, len(tm)), aspect="equal")
            ticks = range(0, len(tm) + 1, 5)
            ax.set(xlabel="chain", ylabel="chain", xticks=ticks, yticks=ticks)
            label = escape(f"{name}: pairwise TM-scores")
            parts.append(figure(inline_svg(fig, label), _caption(name, tint, f"{said}n = {len(tm)} chains")))
    note = (
        "TM-score of each pair under the best sequential alignment, normalised by the longer chain, similar chains "
        "side by side; shade from 0.1 to 0.8. Above 0.5 two chains share a fold. Diversity over all chains, with its "
        "interval, is in the table."
    )
    return f'{figures(parts)}<p class="note">{note}</p>'


def by_likeness(similarity: Array) -> Array:
    """A similarity matrix [c, c] reordered so that neighbours are alike."""
    laplacian = np.diag(similarity.sum(1)) - similarity
    order = np.argsort(np.linalg.eigh(laplacian)[1][:, min(1, len(similarity) - 1)])
    return similarity[np.ix_(order, order)]


def _shade(ax: Any, value: Array, tint: str, extent: tuple[float, ...], aspect: str) -> None:
    """Values in [0, 1] as opacity of one colour, so that zero is the page's own background."""
    from matplotlib.colors import to_rgb

    image = np.empty((*value.shape, 4))
    image[..., :3], image[..., 3] = to_rgb(tint), np.clip(value, 0, 1)
    ax.imshow(image, origin="lower", extent=extent, aspect=aspect, interpolation="nearest")


def _caption(name: str, tint: str, what: str) -> str:
    return f"{chip(tint)}{escape(name)} <i>{what}</i>"


def _finite(chains: Sequence[Array]) -> list[Array]:
    return [x.astype(np.float64) for x in chains if np.isfinite(x).all()]
