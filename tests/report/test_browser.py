"""The report in a real browser: Chromium draws structures, follows clicks and keys, and asks no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Page, find, pixels

BROWSER = find()
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: install one (Debian: chromium) or set XDISTILL_CHROMIUM"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    assert BROWSER
    with Page(BROWSER) as page:
        yield page


@pytest.fixture
def shown(page: Page, report: Path) -> Page:
    """The report, its first structure and all thumbnails drawn."""
    page.problems.clear()
    page.requests.clear()
    page.emulate(1200, 900)
    page.open(report)
    page.wait("document.getElementById('stage').dataset.thumbnails === '6'")
    return page


def drawn(page: Page) -> tuple[float, np.ndarray]:
    """The share of the canvas that is not background, and its pixels."""
    image = pixels(page.png("#stage canvas"))[12:-12, 12:-12]
    assert min(image.shape[:2]) > 200
    return float((np.abs(image - image[0, 0]).max(-1) > 0.08).mean()), image


def test_a_structure_is_drawn_and_clicks_and_keys_choose_another(shown: Page, report: Path) -> None:
    share, first = drawn(shown)
    assert 0.02 < share < 0.7
    assert np.ptp(first.reshape(-1, 3)[:, 0]) > 0.5  # colours, not a grey blur
    seen = [first]

    def moved_to(index: int) -> None:
        shown.wait(f"document.getElementById('stage').dataset.shown === '{index}'")
        share, image = drawn(shown)
        assert share > 0.02
        assert all((np.abs(image - other).max(-1) > 0.08).mean() > 0.02 for other in seen)
        seen.append(image)

    shown.click(".thumbnails button:nth-child(3)")
    moved_to(2)
    assert shown.value("document.querySelectorAll('[aria-pressed=true]').length") == 1
    shown.press("ArrowRight")
    moved_to(3)
    assert "folder/of designs, no. 2" in shown.value("document.getElementById('caption').textContent")
    shown.click("#previous")
    shown.wait("document.getElementById('stage').dataset.shown === '2'")
    assert np.abs(drawn(shown)[1] - seen[1]).max() < 0.1
    _choose(shown, "colour", "ss")
    assert (np.abs(drawn(shown)[1] - seen[1]).max(-1) > 0.08).mean() > 0.01
    assert shown.problems == []
    outside = [url for url in shown.requests if not url.startswith(("data:", report.as_uri()))]
    assert outside == []


def _choose(page: Page, menu: str, value: str) -> None:
    page.value(
        f"(m => {{ m.value = '{value}'; m.dispatchEvent(new Event('change')); }})(document.getElementById('{menu}'))"
    )


def test_thumbnails_are_pictures_of_different_structures(shown: Page) -> None:
    images = shown.value("[...document.querySelectorAll('.thumbnails img')].map(i => i.naturalWidth && i.src)")
    assert len(set(images)) == len(images) == 6
    assert all(images)


def test_helices_and_strands_reach_the_viewer_as_ribbons(shown: Page) -> None:
    _choose(shown, "style", "trace")
    trace = drawn(shown)[0]
    _choose(shown, "style", "cartoon")
    assert drawn(shown)[0] > 1.3 * trace


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_the_window_in_light_and_dark(shown: Page, width: int, dark: bool) -> None:
    shown.emulate(width, 844, dark=dark)
    shown.wait(f"innerWidth === {width}")
    assert shown.value("document.documentElement.scrollWidth") <= width
    page = pixels(shown.png())
    assert page.shape[1] == width
    assert (page.mean() < 0.3) == dark
    assert drawn(shown)[0] > 0.02


def test_an_empty_canvas_is_seen_as_empty(page: Page, report: Path, tmp_path: Path) -> None:
    """The check of the first test can fail: the same page with models that hold no atom."""
    text = report.read_text(encoding="utf-8")
    assert "ATOM  " in text
    empty = tmp_path / "empty.html"
    empty.write_text(text.replace("ATOM  ", "REMARK"), encoding="utf-8")
    page.open(empty)
    page.wait("document.getElementById('stage').dataset.shown === '0'")
    assert drawn(page)[0] < 0.001
