"""An HTML report without a browser: all numbers with n and interval, nothing from outside, nothing unescaped."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from xdistill.domain import Metric
from xdistill.domains.protein import ProteinDomain, viewer
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.geometry import secondary_structure
from xdistill.domains.toy import ToyDomain
from xdistill.evaluation import Row
from xdistill.html_report import ASSETS, MODELS_EACH, VIEWER_SHA256, write_html

MODELS = re.compile(r'<script type="application/json" id="models">(.*?)</script>', re.S)


def body(path: Path) -> str:
    """The page without its scripts, styles and comments."""
    return re.sub(r"<(script|style)\b.*?</\1>|<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.S)


def models(path: Path) -> list[dict]:
    found = MODELS.search(path.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def test_the_page_needs_nothing_from_outside(report: Path) -> None:
    page = body(report)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(http" not in page
    assert "default-src 'none'" in page
    assert not list(report.parent.glob(".*"))
    assert report.stat().st_size < 1_000_000


def test_every_number_stands_with_its_interval_and_n(report: Path, rows: list[Row], domain: ProteinDomain) -> None:
    table = ElementTree.fromstring(re.sub(r"&\w+;", "", re.search(r"<table>.*?</table>", body(report), re.S)[0]))
    head = [cell.text or "".join(cell.itertext()) for cell in table.findall("thead/tr/th")]
    assert len(head) == 1 + len(rows) + 1
    assert head[-1] == "real data, held out"
    columns = [*(r.metrics for r in rows), domain.reference_metrics()]
    lines = {"".join(tr.find("th").itertext()).split()[0]: tr.findall("td") for tr in table.findall("tbody/tr")}
    for name in {name for row in rows for name in row.metrics}:
        for cell, metrics in zip(lines[name], columns, strict=True):
            m = metrics.get(name)
            said = "".join(cell.itertext()).strip()
            assert said == (f"{m.value:.3g} [{m.low:.3g}, {m.high:.3g}] n = {m.n}" if m else "–")


def test_arrows_say_the_direction(report: Path) -> None:
    shown = dict(re.findall(r'<th scope="row">(\w+) <span title="([^"]*)">', body(report)))
    assert shown["score"] == "higher is better"
    assert shown["bond_std"] == "lower is better"
    assert shown["helix"] == ""


def test_names_are_text_and_not_markup(report: Path, rows: list[Row]) -> None:
    page = body(report)
    assert "<title>Title &lt;b&gt;</title>" in page
    assert "<student>" not in page
    assert page.count(escape(rows[0].name)) >= 4
    assert "</script" not in MODELS.search(report.read_text(encoding="utf-8"))[1]


def test_protein_panels_show_every_source(report: Path) -> None:
    page = body(report)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Quality", "Structures", "Angles of the chain", "Length and secondary structure", "Diversity"]
    assert page.count('<svg role="img"') == 3 + 4 + 2


def test_a_sample_without_coordinates_is_left_out_under_its_number(report: Path, rows: list[Row]) -> None:
    groups = models(report)
    assert [g["name"] for g in groups] == [r.name for r in rows]
    assert [[i for i, _ in g["models"]] for g in groups] == [[0, 1, 2], [1, 2, 3]]
    assert [g["of"] for g in groups] == [3, 4]


def test_a_model_is_the_chain_turned_but_never_mirrored() -> None:
    x = load_embedded("val").coords(0)
    lines = viewer.pdb_models([x])[0].splitlines()
    ca = np.array([[float(s[k : k + 8]) for k in (30, 38, 46)] for s in lines if s[12:16].strip() == "CA"])
    assert len(ca) == len(x)
    a, b = ca - ca.mean(0), 10 * (x - x.mean(0)).astype(np.float64)
    rotation = np.linalg.lstsq(b, a, rcond=None)[0]
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-3)
    assert np.abs(b @ rotation - a).max() < 2e-3
    assert (np.diff(np.ptp(ca, axis=0)) < 0).all()  # wide, less high, flat
    spans = [(s[:5], int(s[21:25]), int(s[33:37])) for s in lines if s.startswith("HELIX")]
    spans += [(s[:5], int(s[22:26]), int(s[33:37])) for s in lines if s.startswith("SHEET")]
    found = ["c"] * len(x)
    for kind, first, last in spans:
        found[first - 1 : last] = ("a" if kind == "HELIX" else "b") * (last - first + 1)
    assert "".join(found) == secondary_structure(ca)
    assert {s[12:16].strip() for s in lines if s.startswith("ATOM")} == {"N", "CA", "C", "O"}


class Molecules(ToyDomain):
    """Samples are numbers; a model is so many characters."""

    def viewer_models(self, samples: list[int]) -> list[str]:
        return ["x" * n for n in samples]


def test_many_and_large_structures_keep_the_file_small(tmp_path: Path) -> None:
    metric = {"score": Metric(1, 0, 2, 50)}
    rows = [Row(f"s{i}", metric, [100] * 50) for i in range(2)] + [Row("large", metric, [200_000] * 50)]
    groups = models(write_html(tmp_path / "many.html", "many", rows, Molecules({}), {}))
    assert [len(g["models"]) for g in groups[:2]] == [MODELS_EACH, MODELS_EACH]
    assert 0 < len(groups[2]["models"]) < 10
    assert (tmp_path / "many.html").stat().st_size < 5_000_000


def test_a_domain_without_structures_shows_its_drawings(tmp_path: Path) -> None:
    domain = ToyDomain({})
    samples = [np.random.default_rng(i).normal(size=(1, 2)).astype(np.float32) for i in range(64)]
    row = Row("points", domain.metrics(samples), samples)
    page = write_html(tmp_path / "toy.html", "toy", [row], domain, {})
    assert "<h2>Samples</h2>" in body(page)
    assert body(page).count('<svg role="img"') == 12
    assert "3Dmol" not in page.read_text(encoding="utf-8")


def test_samples_that_all_lack_coordinates_are_a_table(tmp_path: Path, domain: ProteinDomain) -> None:
    lost = [np.full((40, 3), np.nan, np.float32)] * 3
    rows, real = [Row("lost", domain.metrics(lost), lost)], {"score": Metric(0.5, 0.4, 0.6, 9, "high")}
    page = body(write_html(tmp_path / "table.html", "table", rows, domain, real))
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Quality"]
    assert "0.5 [0.4, 0.6] n = 9" in re.sub(r"<[^>]+>", "", page)


def test_the_viewer_is_the_published_one() -> None:
    assert sha256((ASSETS / "3Dmol-min.js").read_bytes()).hexdigest() == VIEWER_SHA256
    assert "BSD-3-Clause" in (ASSETS / "3Dmol.LICENSE.txt").read_text(encoding="utf-8")
