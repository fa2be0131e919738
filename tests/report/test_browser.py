from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcvideo.report.page import write_page
from tests.report.browser import needs_browser, show
from tests.report.runs import finish, make_clips, make_run

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    finish(make_run(folder), data=make_clips(tmp_path_factory.mktemp("clips")))
    return write_page(folder)


def test_the_page_renders_and_asks_for_nothing_else(page: Path, tmp_path: Path) -> None:
    shown = show(page, scratch=tmp_path, picture=tmp_path / "page.png")
    assert shown.console == []
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # text, curves, frames; an empty page has one colour


def test_a_page_that_would_load_something_is_told_by_the_browser(page: Path, tmp_path: Path) -> None:
    """The test above can fail: the policy of the page turns a request into a message."""
    leaky = tmp_path / "leaky.html"
    leaky.write_text(page.read_text().replace("</body>", '<img src="http://example.org/x.png"></body>'))
    shown = show(leaky, scratch=tmp_path, picture=tmp_path / "leaky.png", height=300)
    assert any("Content Security Policy" in line for line in shown.console)


@pytest.mark.parametrize("width", [360, 390, 1366])
def test_the_page_fits_the_screen_and_its_tables_scroll(page: Path, tmp_path: Path, width: int) -> None:
    """Nothing but the tables' own scroll areas is wider than the screen; a shadow says where these go on."""
    host = tmp_path / "host.html"
    host.write_text(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page.read_text())}"></iframe>'
        "<p id=w>not measured</p><script>onload = () => { document.getElementById('w').textContent = 'width ' + "
        "document.querySelector('iframe').contentDocument.documentElement.scrollWidth + ' cut ' + "
        "[...document.querySelector('iframe').contentDocument.querySelectorAll('table')].filter(table => { "
        "const area = table.closest('.scroll'), style = area && getComputedStyle(area); return !area || "
        "style.overflowX != 'auto' || !style.backgroundImage.includes('radial-gradient') || "
        "table.getBoundingClientRect().right - area.getBoundingClientRect().left > area.scrollWidth + 1 "
        "}).length }</script>"
    )
    shown = show(host, scratch=tmp_path, width=1500)
    assert f">width {width} cut 0</p>" in shown.dom
