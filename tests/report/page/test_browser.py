"""The page in a real browser, headless, on a run whose every text is hostile: nothing may happen but what is meant to."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hostile_run import AXES, HOSTILE, JUDGE, N, block_of, hostile_run, said_by, text_of, written

from apo_bench.formatting import visible
from apo_bench.report.document import Part, Report
from apo_bench.report.page.render import render
from apo_bench.report.page.samples import Samples, encoded

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITHOUT_SANDBOX = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # which Chromium refuses to root
PATIENCE = 60  # s
LOUD = ("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.windowOpen")
CONTRAST = """[...document.querySelectorAll("p, li, th, td, dt, dd, summary, caption, a, b, code, legend, label span, .sub, .sd")]
    .filter((element) => element.innerText && element.checkVisibility()).map((element) => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / (colour.startsWith("rgb") ? 255 : 1));
    const light = (colour) => numbers(colour).map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
    const behind = (part) => ["rgba(0, 0, 0, 0)", "transparent"].includes(getComputedStyle(part).backgroundColor) && part.parentElement
        ? behind(part.parentElement) : getComputedStyle(part).backgroundColor;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }).reduce((least, ratio) => Math.min(least, ratio), 21)"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


class Browser:
    """A headless Chromium with one page, spoken to over a pipe (file descriptors 3 and 4, messages that end in a zero byte)."""

    def __init__(self, profile: Path) -> None:
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()

        def hand_over() -> None:
            for number, end in ((3, fcntl.fcntl(to_child, fcntl.F_DUPFD, 20)), (4, fcntl.fcntl(from_child, fcntl.F_DUPFD, 20))):
                os.dup2(end, number)

        options = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._child = subprocess.Popen(
            [str(CHROMIUM), *options, *WITHOUT_SANDBOX, "about:blank"], preexec_fn=hand_over, pass_fds=(3, 4), stderr=subprocess.DEVNULL
        )
        os.close(to_child)
        os.close(from_child)
        self._rest, self._number, self._session = b"", 0, {}
        self.events: list[dict[str, Any]] = []
        target = next(target for target in self.ask("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        """A command's result; what the browser says meanwhile is kept in `events`."""
        self._number += 1
        os.write(self._out, json.dumps({"id": self._number, "method": method, "params": parameters, **self._session}).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser says nothing"
            self._rest += os.read(self._in, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        """Load a page afresh and wait until its samples are there."""
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && !document.getElementById('browser-state')")

    def until(self, condition: str) -> None:
        wait = f"new Promise((done) => {{ const look = () => ({condition}) ? done(true) : setTimeout(look, 10); look(); }})"
        assert self.run(wait)

    def size(self, width: int, height: int) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def shoot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def click(self, selector: str) -> None:
        """A real click, in the middle of an element that is scrolled to."""
        at = self.run(f"""(() => {{ const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", behavior: "instant"}}); const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def close(self) -> None:
        self._session = {}
        self.ask("Browser.close")
        self._child.wait(PATIENCE)
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    chromium.size(1280, 900)
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = hostile_run(tmp_path_factory.mktemp("hostile") / "run")
    path = folder / "report" / "report.html"
    path.parent.mkdir()
    path.write_text(written(folder), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Browser]:
    """The page, fresh; at the end nothing may have happened: no dialog, no error, no message, no request but for the file itself."""
    browser.events.clear()
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.size(1280, 900)
    browser.open(address)
    yield browser
    browser.run("new Promise((done) => setTimeout(done, 50))")  # whatever a text could have started would be there by now
    assert [event for event in browser.events if event["method"] in LOUD] == []
    requested = {
        event["params"]["request"]["url"].partition("#")[0] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    }
    assert requested <= {address, "about:blank"}


def listed(browser: Browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('#browse-list .item .line')].map((element) => element.textContent)")


def words(browser: Browser, where: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll('#browse-detail {where}')].map((element) => element.textContent)")


def choose(browser: Browser, control: str, value: str) -> None:
    browser.run(f"""(() => {{ const element = document.getElementById("browse-{control}"); element.value = {json.dumps(value)};
        element.dispatchEvent(new Event("input", {{bubbles: true}})); }})()""")


def link(prompt: int, **more: str) -> str:
    parameters = {"prompt": f"p{prompt}<i>", **more}
    return "#browse?" + "&".join(f"{key}={quote(value, safe='')}" for key, value in parameters.items())


def cards(browser: Browser) -> list[str]:
    return words(browser, ".card .words")


def test_every_text_is_shown_as_it_is(opened: Browser) -> None:
    """Every prompt, one after another with the keyboard, each with its turns, three responses and six verdicts' words."""
    assert listed(opened)[0].endswith(" 2")  # the last turn of a prompt
    opened.run("document.getElementById('browse-list').focus()")
    opened.press("Home")
    seen = []
    for _ in range(2 * N):
        id_ = opened.run("new URLSearchParams(location.hash.slice(8)).get('prompt')")
        place = int(id_[1:-3])
        seen.append(id_)
        turns = [f"{HOSTILE[place]} {turn}" for turn in range(3)]
        assert words(opened, ".turn .words") == [visible(turn) for turn in turns]
        assert sorted(cards(opened)) == sorted(visible(text_of(arm, 0, 1, place)) for arm in ("rjs", "golden_refresh", "apo_rjs"))
        assert words(opened, ".verdict blockquote .words") == [visible(said_by(id_, order, 0)) for order in ("ab", "ba")]
        opened.press("ArrowDown")
    assert len(set(seen)) == 2 * N


def test_filters_search_and_chips(opened: Browser) -> None:
    choose(opened, "axis", AXES[1])
    assert len(listed(opened)) == N
    choose(opened, "axis", "")
    choose(opened, "show", "judge")  # seed 0: the first response is preferred in both orders where the place is a multiple of 3
    assert len(listed(opened)) == 2 * N / 3
    assert opened.run("document.querySelector('#browse-detail .pair .flag').textContent") == "the two orders disagree"
    choose(opened, "show", "proxy")
    gaps = opened.run("[...document.querySelectorAll('#browse-list .sub')].map((element) => element.textContent.match(/proxy (\\S+)/)[1])")
    assert gaps == sorted(gaps, key=lambda gap: -float(gap))
    assert all(gap.startswith("+") for gap in gaps)
    choose(opened, "show", "all")
    choose(opened, "q", "x") if False else choose(
        opened, "search", "HYPERLINK"
    )  # as the prompt's text, and the answer's of seed 0, round 1
    assert 0 < len(listed(opened)) < 2 * N
    choose(opened, "search", "in no text whatever")
    assert listed(opened) == []
    assert "No prompt passes" in opened.run("document.getElementById('browse-detail').textContent")
    choose(opened, "search", "")
    assert len(cards(opened)) == 3
    opened.click("#browser .chips:nth-child(1) label:nth-of-type(1)")
    assert len(cards(opened)) == 2
    opened.click("#browser .chips:nth-child(2) label:nth-of-type(1)")
    opened.click("#browser .chips:nth-child(3) label:nth-of-type(3)")
    assert len(cards(opened)) == 2 * 2 * 2
    fragment = opened.run("location.hash")
    opened.open(opened.run("location.href"))  # a link restores the view
    assert len(cards(opened)) == 8
    assert opened.run("location.hash") == fragment


def test_a_deep_link_is_followed(opened: Browser, address: str) -> None:
    wanted = link(7, arms="rjs,no_such_arm", rounds="0,9", seeds="2", axis=AXES[1], q="", show="nonsense")
    opened.open(address + wanted)
    assert cards(opened) == [visible(text_of("rjs", 2, 0, 7))]
    assert opened.run("document.getElementById('browse-axis').value") == AXES[1]
    assert abs(opened.run("document.getElementById('samples').getBoundingClientRect().top")) < 900
    opened.run(f"location.hash = {json.dumps(link(2))}")
    opened.until("document.querySelector('#browse-detail code').textContent.startsWith('p2')")
    assert len(cards(opened)) == 3
    opened.run("location.hash = '#browse?prompt=%00%3Cscript%3E&seeds=__proto__&show=constructor&q=%3Cimg%20src=x%20onerror=alert(9)%3E'")
    opened.until("document.getElementById('browse-search').value.startsWith('<img')")
    assert opened.run("document.getElementById('browse-show').value") == "all"
    opened.run("location.hash = '#scores'")


def test_the_theme_switch(opened: Browser) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = opened.run(paper)
    opened.click("#theme-dark")
    dark = opened.run(paper)
    opened.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    opened.click("#theme-light")
    assert opened.run(paper) == light != dark
    opened.click("#theme-auto")
    assert opened.run(paper) == dark


def test_both_sides_name_the_same_hidden_characters(opened: Browser) -> None:
    """The script's `visible` and the writer's, on every code point below 0x10000, halves of pairs alone, and some above."""
    points = [*range(0x10000), *range(0xE0000, 0xE0090), 0x1F600]
    hidden = opened.run("[...Array(0x10000).keys(), ...Array(0x90).keys().map((point) => 0xe0000 + point), 0x1f600].filter((point) => "
                       "visible(String.fromCodePoint(point)) !== String.fromCodePoint(point))")  # fmt: skip
    assert hidden == [point for point in points if visible(chr(point)) != chr(point)]
    shown = opened.run(f"{hidden}.map((point) => visible(String.fromCodePoint(point))).join(' ')")
    assert shown == " ".join(visible(chr(point)) for point in hidden)


def test_the_policy_stops_a_mistake(browser: Browser, address: str) -> None:
    """Were the script to make html of a text, to evaluate one or to load something, the browser would refuse."""
    browser.open(address)
    attempt = "(() => {{ try {{ {}; return 'done'; }} catch (error) {{ return error.name; }} }})()"
    assert browser.run(attempt.format("document.body.innerHTML = '<b>x</b>'")) == "TypeError"
    assert browser.run("fetch('http://127.0.0.1:1/').then(() => 'done', () => 'refused')") == "refused"
    browser.events.clear()
    browser.run("""(() => { const image = new Image(); image.src = "http://127.0.0.1:1/x.png"; document.body.append(image);
        const styled = document.createElement("p"); styled.setAttribute("style", "color: red"); document.body.append(styled); })()""")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    log = " ".join(event["params"]["entry"]["text"] for event in browser.events if event["method"] == "Log.entryAdded")
    assert "violates the following Content Security Policy directive" in log


@pytest.mark.parametrize(("name", "width", "height"), [("phone", 390, 844), ("desktop", 1280, 900), ("wide", 1920, 1080)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshots(opened: Browser, address: str, tmp_path: Path, name: str, width: int, height: int, theme: str) -> None:
    """On a phone too nothing is wider than the screen, hostile texts of 400 letters included."""
    opened.size(width, height)
    opened.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    sections = ("answer", "scores", "figures", "samples", "provenance")
    for section in sections:
        opened.open(f"{address}#{section}")
        opened.shoot(tmp_path / f"{name}_{theme}_{section}.png")
    opened.run(f"location.hash = {json.dumps(link(9))}")
    opened.until("document.querySelector('#browse-detail code').textContent.startsWith('p9')")
    assert opened.run("document.documentElement.scrollWidth") <= width
    opened.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert opened.run("document.documentElement.scrollWidth") <= width
    assert opened.run(CONTRAST) >= 4.5
    columns = opened.run(
        "new Set([...document.querySelectorAll('#figures .drawn')].map((e) => Math.round(e.getBoundingClientRect().x))).size"
    )
    assert columns == (2 if width > 1536 else 1)
    assert len(list(tmp_path.glob("*.png"))) == len(sections)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))


def test_on_paper(opened: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.pdf"
    path.write_bytes(base64.b64decode(opened.ask("Page.printToPDF", printBackground=True)["data"]))
    assert path.read_bytes().startswith(b"%PDF")
    if reader := shutil.which("pdftotext"):
        text = subprocess.run([reader, str(path), "-"], capture_output=True, text=True, check=True).stdout
        assert "The answer" in text
        assert "SHA-256" in text  # folded away on the screen
        assert JUDGE in text
        assert "Search" not in text


def test_thousands_of_prompts(browser: Browser, tmp_path: Path) -> None:
    """20,000 prompts: the list holds the rows that can be seen, and the last one is reached at once."""
    n = 20_000
    texts = [f"prompt {place}" for place in range(n)]
    none: list[Any] = []
    responses = {"prompt": list(range(n)), "text": list(range(n)), "gap": [None] * n, "scores": [[0.5] * n]}
    responses |= {name: [0] * n for name in ("arm", "seed", "round", "cut")} | {"tokens": [2] * n}
    data = {
        "arms": ["a"], "axes": ["x"], "scorers": ["proxy"], "gold": "g", "texts": texts, "responses": responses,
        "prompts": {"id": texts, "axis": [0] * n, "turns": [[["user", place]] for place in range(n)]},
        "verdicts": dict.fromkeys(("judges", "prompt", "judge", "a", "b", "seeds", "rounds", "order", "choice", "failure", "words"), none),
    }  # fmt: skip
    report = Report("many", [Part("samples", "Samples", [])], {})
    path = tmp_path / "many.html"
    path.write_text(render(report, Samples(encoded(data), n, n, "")), encoding="utf-8")
    assert block_of(path.read_text(encoding="utf-8"))["texts"] == texts
    browser.open(path.as_uri())
    assert 0 < len(listed(browser)) < 40
    browser.run("document.getElementById('browse-list').focus()")
    browser.press("End")
    browser.until("[...document.querySelectorAll('#browse-list .item')].some((element) => element.textContent.startsWith('prompt 19999'))")
    assert cards(browser) == ["prompt 19999"]
    assert len(listed(browser)) < 40


def test_tables_are_copied_as_csv_markdown_and_latex(opened: Browser) -> None:
    """By hand: quotes are doubled, a formula is marked, in csv minus signs are ASCII, and what only screen readers hear is left out."""
    make = """(() => { const table = document.createElement("table");
        for (const cells of [["arm", "a_b"], ["=1+1", "\\u22120.5 ± 0.1"], ['say "x"', "1,5|6"]]) {
            const row = table.insertRow(); for (const cell of cells) row.insertCell().append(cell); }
        table.rows[1].cells[0].append(Object.assign(document.createElement("span"), { className: "heard", textContent: " highest" }));
        return tableText(table, "WAY"); })()"""
    assert opened.run(make.replace("WAY", "CSV")) == 'arm,a_b\n\'=1+1,-0.5 ± 0.1\n"say ""x""","1,5|6"'
    assert (
        opened.run(make.replace("WAY", "Markdown")) == '| arm | a\\_b |\n| --- | --- |\n| =1+1 | \u22120.5 ± 0.1 |\n| say "x" | 1,5\\|6 |'
    )
    latex = opened.run(make.replace("WAY", "LaTeX")).split("\n")
    assert latex[1:5] == ["\\begin{tabular}{lr}", "\\toprule", "arm & a\\_b \\\\", "\\midrule"]
    assert latex[5:] == ["=1+1 & $-$0.5 $\\pm$ 0.1 \\\\", 'say "x" & 1,5|6 \\\\', "\\bottomrule", "\\end{tabular}"]


def test_each_table_has_a_menu_to_copy_it_and_says_so(opened: Browser) -> None:
    opened.run("document.querySelector('.copy').open = true")
    opened.click(".copy button")
    for _ in range(50):
        if state := opened.run("document.querySelector('.copy [role=status]').textContent"):
            break
    assert state == "Copied as CSV."


def test_drawings_are_copied_as_the_tables_that_they_are(opened: Browser) -> None:
    """A forest's rows have no drawing in them, its scale is no row, and what screen readers hear of its heads is its head."""
    lines = opened.run("tableText(document.querySelector('.forest'), 'CSV')").split("\n")
    assert lines[0] == "What,Value and 95 % interval,Remark"
    assert len(lines) == 1 + opened.run("document.querySelector('.forest').tBodies[0].rows.length")
    assert lines[1].startswith("apo_rjs \u2212 golden_refresh".replace("\u2212", "-") + " primary,+")
    assert " to " in lines[1]
    assert opened.run("document.querySelectorAll('main table').length === document.querySelectorAll('table + .copy, .wide + .copy').length")
    assert opened.run("tableText(document.querySelector('.spent'), 'CSV')").startswith("Arm,Amount\n")


def test_a_link_opens_the_same_tables(opened: Browser, address: str) -> None:
    """What is opened stands in the address with the sample that is shown; loading it again opens both, and closing takes it out."""
    opened.click("#scores-by-arm-round-and-axis > summary")
    opened.until("location.hash.includes('open=')")
    assert opened.run("location.hash") == "#figures?open=scores-by-arm-round-and-axis"
    opened.click("#browse-list .item:nth-child(2)")
    fragment = opened.run("location.hash")
    assert fragment.startswith("#browse?open=scores-by-arm-round-and-axis&prompt=")
    opened.open(address + fragment)
    assert opened.run("document.querySelectorAll('main details[open]').length") == 1
    assert opened.run("location.hash") == fragment
    opened.run("document.getElementById('scores-by-arm-round-and-axis').open = false")
    opened.until("!location.hash.includes('open=')")
    opened.open(f"{address}#figures?open=scores-by-arm-round-and-axis,nothing,__proto__")
    assert opened.run("document.getElementById('scores-by-arm-round-and-axis').open")
    assert opened.run(
        "[...document.querySelectorAll('[id]')].length === new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size"
    )


def test_the_samples_are_reached_and_left_by_keyboard(opened: Browser) -> None:
    """Enter goes from the list to the chosen prompt, Escape back; a screen reader hears which option is chosen."""
    opened.run("document.getElementById('browse-list').focus()")
    opened.press("Home")
    opened.press("ArrowDown")
    heard = "document.getElementById(document.getElementById('browse-list').getAttribute('aria-activedescendant')).ariaPosInSet"
    assert opened.run(heard) == "2"
    opened.press("Enter")
    assert opened.run("document.activeElement.id") == "browse-detail"
    opened.press("Escape")
    assert opened.run("document.activeElement.id") == "browse-list"


def test_the_samples_show_the_names_of_the_report(browser: Browser, tmp_path: Path) -> None:
    """Links keep the experiment's own names."""
    folder = hostile_run(tmp_path / "run")
    tree = yaml.safe_load((folder / "experiment.yaml").read_text())
    tree["report"] = {"names": {"apo_rjs": "APO <b>", "encoder": "Gold"}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    path = folder / "page.html"
    path.write_text(written(folder), encoding="utf-8")
    browser.open(path.as_uri())
    shown = browser.run("[...document.querySelectorAll('#browser .chips:first-child label')].map((label) => label.textContent)")
    assert sorted(shown) == ["APO <b>", "golden_refresh", "rjs"]
    assert "APO <b>" in words(browser, ".card h5")
    assert "Gold" in words(browser, ".card dt")
    assert "APO <b> (round 1, seed 0) against" in words(browser, ".pair")[0]
    browser.open(path.as_uri() + link(2, arms="apo_rjs"))
    assert words(browser, ".card h5") == ["APO <b>"]
