"""The committed living benchmark in a real browser: nothing is loaded, nothing is cut off, all of it is reached by keyboard."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from test_browser import CHROMIUM, CONTRAST, LOUD, Browser

INDEX = Path(__file__).parents[3] / "results" / "index.html"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_loads_nothing_and_can_be_read(browser: Browser, width: int, theme: str) -> None:
    """Text stands out by 4.5 to 1, WCAG 2.2's level AA, by its formula for sRGB colours."""
    browser.events.clear()
    browser.size(width, 900)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.open(INDEX.as_uri())
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(CONTRAST) >= 4.5
    requests = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in requests if url != "about:blank"} <= {INDEX.as_uri()}
    assert [event for event in browser.events if event["method"] in LOUD] == []


def test_it_is_reached_by_keyboard_and_has_an_outline(browser: Browser) -> None:
    browser.open(INDEX.as_uri())
    stops = []
    for _ in range(5):
        browser.press("Tab")
        stops.append(browser.run("document.activeElement.innerText || document.activeElement.id"))
    assert stops == ["Skip to the answers", "Answers", "Ranks", "How to read it", "theme-auto"]
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3, h4')].map((heading) => +heading.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tables = browser.run(
        "[...document.querySelectorAll('table')].map((table) => [!!table.caption, table.querySelectorAll('th:not([scope])').length])"
    )
    assert all(table == [True, 0] for table in tables), json.dumps(tables)
