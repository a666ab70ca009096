"""The report in a real browser: Chromium draws structures, follows clicks and keys, and asks no network."""

from __future__ import annotations

import base64
import re
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
    """The report in a wide window, its first structure drawn."""
    page.emulate(1200, 900)
    if page.value("location.href") != report.as_uri():
        page.problems.clear()
        page.requests.clear()
        page.open(report)
        page.wait("document.getElementById('stage').dataset.shown === '0'")
    choose(page, 0)
    select(page, "colour", "rainbow")
    return page


def choose(page: Page, index: int) -> None:
    """A click on the thumbnail of a structure."""
    page.value(f"document.querySelectorAll('.thumbnails button')[{index}].id = 'chosen'")
    page.click("#chosen")
    page.value("document.getElementById('chosen').id = ''")
    page.wait(f"document.getElementById('stage').dataset.shown === '{index}'")


def select(page: Page, menu: str, value: str) -> None:
    """An entry of a menu."""
    page.value(
        f"(m => {{ m.value = '{value}'; m.dispatchEvent(new Event('change')); }})(document.getElementById('{menu}'))"
    )


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

    def differs() -> None:
        share, image = drawn(shown)
        assert share > 0.02
        assert all((np.abs(image - other).max(-1) > 0.08).mean() > 0.02 for other in seen)
        seen.append(image)

    choose(shown, 2)
    differs()
    assert shown.value("document.querySelectorAll('[aria-pressed=true]').length") == 1
    shown.press("ArrowRight")
    shown.wait("document.getElementById('stage').dataset.shown === '3'")
    differs()
    assert "folder/of designs, no. 2" in shown.value("document.getElementById('caption').textContent")
    shown.click("#previous")
    shown.wait("document.getElementById('stage').dataset.shown === '2'")
    assert np.abs(drawn(shown)[1] - seen[1]).max() < 0.1
    assert shown.problems == []
    outside = [url for url in shown.requests if not url.startswith(("data:", report.as_uri()))]
    assert outside == []


def test_thumbnails_are_pictures_of_different_structures(shown: Page) -> None:
    """Each of its own, with colours from one end of the chain to the other, and none of it cut off at the edge."""
    images = thumbnails(shown)
    assert len(images) == 6
    for i, image in enumerate(images):
        assert all((np.abs(image - other).max(-1) > 0.3).mean() > 0.02 for other in images[:i])
        inked = image[..., 3] > 0.9
        assert 0.02 < inked.mean() < 0.6
        red, green, blue = image[inked, :3].T
        assert all((part > 0.2).any() for part in (red - green, green - red, blue - red))
        edge = np.ones_like(inked)
        edge[2:-2, 2:-2] = False
        assert not (image[..., 3] > 0)[edge].any()


def thumbnails(page: Page) -> list[np.ndarray]:
    """Their pixels [height, width, 4] in [0, 1]."""
    urls = page.value("[...document.querySelectorAll('.thumbnails canvas')].map(c => c.toDataURL())")
    return [pixels(base64.b64decode(url.split(",")[1]), channels=4) for url in urls]


def test_helices_reach_the_viewer(shown: Page, report: Path) -> None:
    """Of the chain with the highest helix content, coloured by secondary structure, much is the helix's pink."""
    contents = [int(x) for x in re.findall(r"TITLE [^,]*, ([0-9]+)% helix", report.read_text(encoding="utf-8"))]
    best = int(np.argmax(contents))
    assert contents[best] > 30
    choose(shown, best)
    before = pink(drawn(shown)[1])
    select(shown, "colour", "ss")
    assert pink(drawn(shown)[1]) > max(0.2, before + 0.1)


def pink(image: np.ndarray) -> float:
    """Its share of what is drawn."""
    red, green, blue = np.moveaxis(image, -1, 0)
    coloured = np.abs(image - image[0, 0]).max(-1) > 0.08
    return float(((red > green + 0.1) & (red > blue) & (blue > green))[coloured].mean())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_the_window_in_light_and_dark(shown: Page, width: int, dark: bool) -> None:
    shown.emulate(width, 844, dark=dark)
    shown.wait(f"innerWidth === {width}")
    assert shown.value("document.documentElement.scrollWidth") <= width
    share, image = drawn(shown)
    assert share > 0.02
    assert (image[0, 0].mean() < 0.3) == dark


def test_an_empty_canvas_is_seen_as_empty(page: Page, report: Path, tmp_path: Path) -> None:
    """The check of the first test can fail: the same page with models that hold no atom."""
    text = report.read_text(encoding="utf-8")
    assert "\\nATOM  " in text
    empty = tmp_path / "empty.html"
    empty.write_text(text.replace("\\nATOM  ", "\\nREMARK"), encoding="utf-8")
    page.open(empty)
    page.wait("document.getElementById('stage').dataset.shown === '0'")
    assert drawn(page)[0] < 0.001
    assert [float(image.max()) for image in thumbnails(page)] == [0.0] * 6
