"""Players of a speech report in a real browser: sounds load, play and are reached by keyboard, offline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Page, find

from xdistill.domains.speech import SpeechDomain
from xdistill.domains.speech.metrics import recordings
from xdistill.evaluation import Row
from xdistill.html_report import write_html

BROWSER = find()
SOURCES = ("teacher <32>", "student")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    domain = SpeechDomain({})
    one = [replace(s, mel=s.mel[:60]) for s in recordings("vocos")[:2]]
    quiet = [replace(s, mel=s.mel - 1) for s in one]
    rows = [Row(name, domain.metrics(x), x) for name, x in zip(SOURCES, (one, quiet), strict=True)]
    return write_html(tmp_path_factory.mktemp("players") / "report.html", "speech", rows, domain, {})


def test_every_source_and_the_recording_has_a_player_with_a_name(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert page.count("<audio controls") == 2 * 3
    assert 'aria-label="teacher &lt;32&gt;, sentence 2"' in page
    assert "media-src data:" in page
    assert len(page) < 1_500_000


@pytest.mark.timeout(900)
@pytest.mark.skipif(BROWSER is None, reason="no Chromium: install one (Debian: chromium) or set XDISTILL_CHROMIUM")
def test_sounds_load_and_play_by_keyboard(report: Path) -> None:
    assert BROWSER
    with Page(BROWSER) as page:
        page.emulate(1200, 900)
        page.open(report)
        page.wait("[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)")
        lengths = page.value("[...document.querySelectorAll('audio')].map(a => a.duration)")
        assert len(lengths) == 6
        assert lengths[1] == pytest.approx(59 * 256 / 24000, abs=0.01)
        assert min(lengths) > 0.5
        page.value("document.querySelector('audio').focus()")
        assert page.value("document.activeElement.tagName") == "AUDIO"
        assert page.value("[...document.querySelectorAll('figure img')].every(i => i.naturalWidth > 100)")
        assert page.value("document.documentElement.scrollWidth <= innerWidth")
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith(("data:", report.as_uri()))] == []
