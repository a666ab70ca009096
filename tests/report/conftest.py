"""A small report of real chains, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xdistill.domains.protein import ProteinDomain
from xdistill.domains.protein.chains import load_embedded
from xdistill.evaluation import Row
from xdistill.html_report import write_html

SOURCES = ("runs/<student> & co", "folder/of designs")


@pytest.fixture(scope="session")
def domain() -> ProteinDomain:
    return ProteinDomain({})


@pytest.fixture(scope="session")
def rows(domain: ProteinDomain) -> list[Row]:
    """Two sources of three short chains; one sample of the second has no coordinates."""
    val = load_embedded("val")
    short = [val.coords(int(i)) for i in np.argsort(val.lengths.tolist())[:6]]
    lost = np.full((40, 3), np.nan, np.float32)
    samples = {SOURCES[0]: short[:3], SOURCES[1]: [lost, *short[3:]]}
    return [Row(name, domain.metrics(x), x, calls=8, seconds=0.5) for name, x in samples.items()]


@pytest.fixture(scope="session")
def report(rows: list[Row], domain: ProteinDomain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    return write_html(path, "Title <b>", rows, domain, domain.reference_metrics())
