"""The page: what it says, that nothing in a run can become part of it, and that its data come out as they went in."""

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hostile_run import (
    ARMS,
    AXES,
    HOSTILE,
    JUDGE,
    LONE,
    N,
    block_of,
    decoded,
    hostile_run,
    hostile_tables,
    prompt_ids,
    report_of,
    said_by,
    written,
)
from markupsafe import Markup
from run_folder import SEEDS, experiment, frame, write_run

from apo_bench.analysis import published, results
from apo_bench.errors import InputError
from apo_bench.formatting import visible
from apo_bench.report.charts import Estimate, ForestPanel
from apo_bench.report.document import Bullets, Notices, Section
from apo_bench.report.page import samples, svg
from apo_bench.report.page.svg import el
from apo_bench.report.report import report_frames
from apo_bench.report.sections.scores import final_means, standing
from apo_bench.report.text import say


class Elements(HTMLParser):
    """Every start tag with its attributes, and text by the tag that it is in."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.inside[-1] if self.inside else "", data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, *without: str) -> str:
        return "".join(text for tag, text in self.texts if tag not in without)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    """With a failed control, a sentence on controls and a warning that no hostile run would have by itself."""
    report = report_of(folder)
    answer, notice = report.parts[0], say("**The harness failed a control of its own:** {text}", text="a seed apart")
    first, limits, *rest = answer.sections[0].blocks
    assert isinstance(limits, Notices)
    opening = replace(answer.sections[0], blocks=[first, Notices([notice, *limits.items]), *rest])
    control, warning = (Bullets([say("{text}", text=text)]) for text in ("The null control found nothing <b>.", f"Judge: {LONE}"))
    sections = [opening, Section("What the controls show", [control]), Section("Warnings", [warning])]
    return written(folder, parts=[replace(answer, sections=sections), *report.parts[1:]])


@pytest.fixture(scope="module")
def elements(html: str) -> Elements:
    return Elements(html)


# What a value becomes


def test_what_is_not_markup_is_text() -> None:
    assert el("p", "<b>", Markup("<i>1</i>"), title='"&', aria_label="x", hidden=True, lang=None) == (
        '<p title="&#34;&amp;" aria-label="x" hidden>&lt;b&gt;<i>1</i></p>'
    )
    assert el("line", x1=1) == '<line x1="1"/>'


# The document


@pytest.mark.slow
def test_sections_stand_in_order(elements: Elements) -> None:
    ids = [attributes["id"] for attributes in elements.of("section") if "id" in attributes]
    assert ids == ["answer", "scores", "figures", "samples", "provenance"]
    assert [text for tag, text in elements.texts if tag == "h2"] == ["The answer", "Scores", "Figures and tables", "Samples", "Provenance"]
    for heading in ("Contrasts", "Scores by round", "Proxy, gold and truth against KL", "Budget", "Reward models by round", "Judges"):
        assert {("h3", heading), ("h4", heading)} & set(elements.texts)


@pytest.mark.slow
def test_published_numbers_have_a_section_where_they_are_asked_for(folder: Path, elements: Elements, tmp_path: Path) -> None:
    """The same cells and sentences as in report.md; published 36.43 - 35.78 = +0.65. Without them neither section nor link."""
    assert "Published numbers" not in elements.text("script", "style")
    run_folder = write_run(tmp_path / "run", hostile_tables(), experiment(report={"beside": "apo_2024"}))
    run, rows = results.read_run(run_folder), published.read_published(published.find_published("apo_2024"))
    frame = published.compare_with_published(run, report_frames(run), rows, {})
    page = Elements(written(run_folder))
    ids = [attributes["id"] for attributes in page.of("section") if "id" in attributes]
    assert ids == ["answer", "scores", "figures", "published", "samples", "provenance"]
    assert "#published" in [attributes["href"] for attributes in page.of("a")]
    assert len(page.of("caption")) == len(page.of("table"))
    assert all(attributes.get("scope") for attributes in page.of("th"))
    text = page.text("script", "style")
    assert "apo_2024 beside this run" in text
    assert "win rate, %apo_rjs \u2212 rjs35.7836.43+0.65 (\u22121.30 to +2.60)0.65" in text
    for line in published.comparison_caveats(run, rows, frame):
        assert visible(line) in text
    assert "unknown: against what they were won" in text
    assert "All responses are in tables/responses.parquet" in text


def test_no_text_becomes_an_element(elements: Elements) -> None:
    """Two scripts, ours, and links only within the page; no attribute is an event or a style."""
    assert [attributes.get("id") for attributes in elements.of("script")] == ["data", None]
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "b>", "u", "i"} & {tag for tag, _ in elements.tags}
    assert all(str(attributes["href"]).startswith("#") for attributes in elements.of("a"))
    for tag, attributes in elements.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "src", "srcdoc", "action", "xlink:href")], tag
    assert elements.inside == []
    assert len(elements.of("meta")) == 5


def test_no_hidden_character_is_left(html: str) -> None:
    assert html == html.encode("utf-8").decode("utf-8")  # no half of a pair
    assert visible(html) == html
    for hostile in (LONE, HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[6]):
        assert visible(hostile) in Elements(html).text("script", "style")


def test_its_policy_allows_its_own_style_and_script_and_nothing_else(html: str, elements: Elements) -> None:
    policy = next(attributes["content"] for attributes in elements.of("meta") if attributes.get("http-equiv"))
    hashes = {
        tag: base64.b64encode(hashlib.sha256(re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[0].encode()).digest()).decode()
        for tag in ("style", "script")
    }
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_script_never_makes_html_of_text(html: str) -> None:
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[0]
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        'setAttribute("on',
        "fetch(",
        "import(",
    ):
        assert way not in script


def test_tables_and_drawings_speak(elements: Elements) -> None:
    assert len(elements.of("caption")) == len(elements.of("table"))
    assert all(attributes.get("scope") in ("col", "row", "colgroup") for attributes in elements.of("th"))
    for attributes in elements.of("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes.get("role") == "img" and attributes.get("aria-label"))
    labels = [attributes["aria-label"] for attributes in elements.of("svg") if attributes.get("role") == "img"]
    assert any(str(label).startswith("ground_truth, all axes, by round. apo_rjs: 0: ") for label in labels)
    assert [attributes.get("type") for attributes in elements.of("input")] == ["radio"] * 3


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    first = written(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert written(tmp_path / "copy") == first


# What it says


def test_the_answer_in_words(folder: Path, elements: Elements) -> None:
    """rm_updates: 33 against 30, declared as matched; the answer stands first, then what limits it, then the numbers."""
    run = results.read_run(folder)
    row = next(row for row in report_frames(run)["contrasts"].itertuples() if row.family == "primary")
    text = " ".join(elements.text("script", "style").split())
    start = text.index("Not matched as declared: apo_rjs against golden_refresh: rm_updates 33 against 30, ratio 1.1.")
    claim = text.index("apo_rjs scored higher than golden_refresh.")
    sentence = (
        f"encoder, all axes pooled: difference {row.difference:+.3f}, 95 % interval {row.ci_low:+.3f} to {row.ci_high:+.3f}, "
        "Holm-adjusted p"
    )
    places = [text.index(part) for part in ("apo_rjs is better than golden_refresh.", "By encoder, it scores higher by ")]
    places += [text.index("The harness failed a control of its own: a seed apart"), start, claim, text.index(sentence)]
    assert places == sorted(places)
    assert "Scope: new seeds and new prompts; base policy, world and gold models as they are; 3 seeds, 12 clusters of prompts." in text
    assert "declared but not matched: rm_updates (33 against 30, ratio 1.1)." in text
    assert "matched as declared: human_pairs, golden_responses, sampled_responses, policy_updates, flops;" in text
    assert text.index("What the controls show The null control found nothing <b>.") > claim
    assert "Warnings " + visible(f"Judge: {LONE}") in text


def test_provenance(folder: Path, elements: Elements) -> None:
    text = elements.text("script", "style")
    assert "1.5 min of work over all arms and seeds (rjs 1.5 min); judges: 0.25 USD" in text
    assert "abc, without uncommitted changes" in text
    assert hashlib.sha256((folder / "tables" / "scores.parquet").read_bytes()).hexdigest() in text


def marks(values: Mapping[str, float], tests: list[tuple[str, str, float, float]]) -> dict[str, str]:
    """Each arm's mark where arms have these means, and contrasts (a, b, p, adjusted p)."""
    rows = pd.DataFrame(tests, columns=["arm_a", "arm_b", "p_value", "p_adjusted"]).assign(scorer="s", axis="x", at="final")
    rows = rows.assign(difference=rows["arm_a"].map(values) - rows["arm_b"].map(values))
    run = type("Arms", (), {"arms": tuple(values)})()
    return standing(run, rows, {(arm, "s", "x"): (value, 0.1) for arm, value in values.items()}, "s", "x")  # pyright: ignore[reportArgumentType]


def test_the_best_and_what_cannot_be_told_from_it() -> None:
    """By hand: c is highest; a was tested against it either way round; b only against a, and d in a test without a p: no mark."""
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.5}
    tests = [("c", "a", 0.01, 0.06), ("a", "b", 0.9, 0.9), ("c", "d", math.nan, math.nan)]
    assert marks(values, tests) == {"c": "highest", "a": "alike"}
    assert marks(values, [("a", "c", 0.01, 0.04)]) == {"c": "highest", "a": "lower"}
    assert marks(values, [("a", "c", 0.06, math.nan)]) == {"c": "highest", "a": "alike"}
    assert marks({"a": 1.0, "b": 1.0}, [("a", "b", 1.0, 1.0)]) == {"a": "highest", "b": "highest"}


def test_the_main_table_has_the_means_of_the_tables(folder: Path, elements: Elements) -> None:
    """Every cluster is one prompt here, so a seed's mean is the plain mean of its prompts."""
    run = results.read_run(folder)
    rows = run.tables["scores"]
    rows = rows[(rows["arm"] == "apo_rjs") & (rows["round"] == 1) & (rows["scorer"] == "ground_truth")]
    by_seed = rows.groupby("seed")["value"].mean()
    mean, sd = final_means(run)["apo_rjs", "ground_truth", "all"]
    assert (mean, sd) == pytest.approx((by_seed.mean(), by_seed.std()))
    text = elements.text("script", "style")
    assert f"{mean:.3f} ▲ highest mean ± {sd:.3f}" in text
    assert "3.100 ± 0.100" in text  # KL of apo_rjs: 3.0, 3.1, 3.2
    assert "apo_rjs1312" in text  # round 1, 3 seeds, 12 clusters


# The samples


def test_the_data_come_out_as_they_went_in(folder: Path, html: str) -> None:
    data = block_of(html)
    texts, prompts, rows = data["texts"], data["prompts"], data["responses"]
    assert prompts["id"] == [id_ for axis in sorted(AXES) for id_, own, _ in sorted(prompt_ids()) if own == axis]
    given = {
        (response.arm, response.seed, response.round, response.prompt_id): response
        for response in hostile_tables()["responses"].itertuples()
    }
    scores = hostile_tables()["scores"].set_index(["arm", "seed", "round", "prompt_id", "scorer"])["value"]
    assert len(rows["prompt"]) == len(given) == 3 * 3 * 2 * 12
    for place in range(len(given)):
        key = (data["arms"][rows["arm"][place]], rows["seed"][place], rows["round"][place], prompts["id"][rows["prompt"][place]])
        response = given.pop(key)
        assert (texts[rows["text"][place]], rows["tokens"][place], rows["cut"][place]) == (response.text, 9, response.finish == "length")
        for scorer, values in zip(data["scorers"], rows["scores"], strict=True):
            assert values[place] == pytest.approx(scores[(*key, scorer)], rel=1e-3)
    assert data["scorers"] == ["proxy", "encoder", "ground_truth", "refusal"]
    for id_, turns in zip(prompts["id"], prompts["turns"], strict=True):
        assert [(role, texts[text]) for role, text in turns] == [
            (role, f"{HOSTILE[int(id_[1:-3])]} {turn}") for turn, role in enumerate(("user", "assistant", "user<b>"))
        ]


def test_verdicts_have_both_orders_and_the_judges_words(html: str) -> None:
    data = block_of(html)
    verdicts, texts, ids = data["verdicts"], data["texts"], data["prompts"]["id"]
    assert verdicts["judges"] == [JUDGE]
    assert len(verdicts["order"]) == 2 * 3 * 12
    for place, prompt in enumerate(verdicts["prompt"]):
        order, seed = ("ab", "ba")[verdicts["order"][place]], verdicts["seeds"][place][0]
        assert texts[verdicts["words"][place]] == said_by(ids[prompt], order, seed)
        assert (data["arms"][verdicts["a"][place]], data["arms"][verdicts["b"][place]]) == ("apo_rjs", "golden_refresh")
        assert verdicts["rounds"][place] == [1, 1]
    missing = [place for place, choice in enumerate(verdicts["choice"]) if choice is None]
    assert [texts[verdicts["failure"][place]] for place in missing] == ["<b>timed out</b>"]
    assert "of an earlier judge" not in texts


def test_the_gap_between_proxy_and_gold(tmp_path: Path) -> None:
    """Two prompts: the proxy prefers the first, gold the second. Each is 1/sqrt(2) SDs from its mean, so the gaps are sqrt(2) and -sqrt(2).

    In the other arm gold does not vary, so there is no gap.
    """
    scores = [
        (arm, 0, 0, f"p{place}", f"p{place}", "x", scorer, value)
        for arm, values in (("rjs", {"proxy": (5, 1), "encoder": (10, 20)}), ("apo_rjs", {"proxy": (5, 1), "encoder": (1, 1)}))
        for scorer, pair in values.items()
        for place, value in enumerate(map(float, pair))
    ]
    responses = [(arm, 0, 0, f"p{place}", "t", 1, "eos") for arm in ("rjs", "apo_rjs") for place in (0, 1)]
    tables = {"scores": frame("scores", scores), "ledger": frame("ledger", [])}
    tables["responses"] = pd.DataFrame(responses, columns=["arm", "seed", "round", "prompt_id", "text", "tokens", "finish"])
    folder = write_run(tmp_path / "run", tables)
    rows = samples.answers(folder, results.read_run(folder))
    gaps = {(row.arm, row.prompt_id): row.gap for row in rows.itertuples()}
    assert [gaps["rjs", "p0"], gaps["rjs", "p1"]] == pytest.approx([2**0.5, -(2**0.5)])
    assert rows.loc[rows["arm"] == "apo_rjs", "gap"].isna().all()


@pytest.mark.slow
def test_a_page_that_would_be_too_large_holds_some_prompts_and_says_so(folder: Path) -> None:
    whole = samples.read_samples(folder, results.read_run(folder))
    assert whole is not None
    assert (whole.n_prompts, whole.n_all) == (12, 12)
    limit = len(whole.block) // 2
    html = written(folder, limit=limit)
    kept = block_of(html)["prompts"]["id"]
    assert 0 < len(kept) < 12
    assert len(samples.encoded(block_of(html))) <= limit
    first = sorted((id_ for id_, _, _ in prompt_ids()), key=lambda id_: hashlib.sha256(id_.encode()).hexdigest())[: len(kept)]
    assert set(kept) == set(first)
    assert f"it holds {len(kept)} of 12 prompts, chosen by a hash of their ids" in Elements(html).text("script")
    assert written(folder, limit=limit) == html


@pytest.mark.slow
def test_aggregates_only_leaves_out_every_text(folder: Path) -> None:
    html = written(folder, aggregates_only=True)
    assert 'id="data"' not in html
    assert html.count("<script") == 1  # tables can be copied
    assert "aggregates only" in html
    for place in range(2 * N):
        assert f"|apo_rjs 0 1 {place}" not in html
        assert f"|ab 0|{visible(LONE)}" not in html


@pytest.mark.slow
def test_without_responses_judges_or_prompts(tmp_path: Path) -> None:
    tables = hostile_tables()
    few = {name: tables[name] for name in ("scores", "ledger")}
    html = written(write_run(tmp_path / "few", few))
    assert "This run kept no responses." in html
    assert "Judges</h3>" not in html
    unknown = experiment(task="no_such_task")
    folder = write_run(tmp_path / "unknown", few | {"responses": tables["responses"]}, unknown)
    page_samples = samples.read_samples(folder, results.read_run(folder))
    assert page_samples is not None
    assert "no_such_task" in page_samples.without_prompts
    assert decoded(page_samples.block)["prompts"]["turns"] == [[]] * 12


def test_a_run_of_which_nothing_is_left(tmp_path: Path) -> None:
    failures = [{"arm": arm, "seed": seed, "message": "out of memory"} for arm in ARMS for seed in SEEDS]
    html = written(write_run(tmp_path / "run", {}, failures=failures))
    assert "No result for" in html


def test_a_table_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "tables" / "prompts.parquet"
    pd.read_parquet(path).drop(columns="role").to_parquet(path)
    with pytest.raises(InputError, match=r"prompts\.parquet: column role is missing"):
        written(tmp_path / "run")


def test_encoded_is_what_any_gzip_reads_and_has_no_time_in_it() -> None:
    import gzip

    block = samples.encoded({"a": ["\ud800<", None, 1.5]})
    raw = base64.b64decode(block)
    assert raw[4:8] == bytes(4)  # the time, in a gzip header
    assert json.loads(gzip.decompress(raw)) == {"a": ["\ud800<", None, 1.5]}


# Colours


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_formula_for_contrast() -> None:
    """Black on white is 21 to 1; #767676 is the lightest grey that passes on white, at 4.54 to 1 (WCAG's own example)."""
    assert 1.05 / (luminance("#000") + 0.05) == pytest.approx(21)
    assert 1.05 / (luminance("#767676") + 0.05) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_by_4_5_to_1(theme: str) -> None:
    """Of each colour that the style gives to text, on both backgrounds; WCAG 2.2, level AA."""
    style = (Path(samples.__file__).parent / "page.css").read_text(encoding="utf-8")
    colours = {name: {"light": light, "dark": dark} for name, light, dark in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", style)}
    texts = set(re.findall(r"[ {;]color: var\(--(\w+)\)", style)) | set(re.findall(r"svg text \{ fill: var\(--(\w+)\)", style))
    assert texts == {"ink", "soft", "accent", "warn"}
    assert not re.findall(r"[ {;]color: (?!var|light-dark)(\S+)", style)
    for text in sorted(texts):
        for behind in ("paper", "raised"):
            dark, light = sorted(luminance(colours[name][theme]) for name in (text, behind))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, behind)


# Drawings


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),  # a quarter of the range is 0.25, the next step 0.5
        (-0.43, 0.38, [-0.5, 0, 0.5]),  # 0.2025: 0.5
        (0, 1000, [0, 500, 1000]),
        (0.1, 0.47, [0.1, 0.2, 0.3, 0.4, 0.5]),  # 0.0925: 0.1
        (0, 0, [-0.5, 0, 0.5]),  # as from -0.5 to 0.5
        (3, 3, [1, 2, 3, 4, 5]),  # as from 1.5 to 4.5: 0.75, so 1
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_an_interval_is_drawn_where_it_is() -> None:
    """On a scale from 0 to 2, drawn between 2 % and 98 % of the width: 1 is at 50 %, 0.5 at 26 %, 1.5 at 74 %."""
    panel = ForestPanel("", ())
    drawn = svg.interval(Estimate("", 1.0, 0.5, 1.5), panel, [0, 1, 2])
    assert 'cx="50%"' in drawn
    assert 'x1="26%" x2="74%"' in drawn
    assert 'x1="2%" x2="2%"' in drawn
    assert "circle" not in svg.interval(Estimate("", math.nan, math.nan, math.nan), panel, [0, 2])


def test_series_differ_in_more_than_colour() -> None:
    keys = [svg.key(place) for place in range(14)]
    styles = {(*re.findall(r'<path d="([^"]+)"', key), *re.findall(r'stroke-dasharray="([^"]*)"', key)) for key in keys}
    assert len(styles) == 14
