"""The spread over variations: numbers derived by hand, and reports of folders as variations leave them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from tiny_world import tiny_tree

from apo_bench.analysis.across_variations import CHOSEN, READ, by_level, over_levels, spread
from apo_bench.config.load import dump_experiment
from apo_bench.config.schema import Experiment
from apo_bench.report.across_variations import write

WORLDS = ["world=0", "world=1", "world=2"]


def test_three_levels_by_hand() -> None:
    """1, 2, 3: mean 2, sample SD sqrt((1 + 0 + 1) / 2) = 1, error 1 / sqrt(3), t = 2 sqrt(3) = sqrt(12), 2 degrees of freedom.

    There P(|T| < t) = t / sqrt(2 + t^2): p = 1 - sqrt(12 / 14) = 0.0742; and 0.95 = t / sqrt(2 + t^2) gives
    t^2 = 2 * 0.9025 / 0.0975, t = 4.3027, so the interval is 2 -+ 4.3027 / sqrt(3) = -0.4841 to 4.4841.
    """
    estimate = over_levels([1, 2, 3])
    assert (estimate.mean, estimate.sd) == (2, 1)
    assert estimate.p_value == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)
    half = math.sqrt(2 * 0.9025 / 0.0975) / math.sqrt(3)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((2 - half, 2 + half), abs=1e-9)
    assert estimate.test == "t test over 3 levels, each one draw"


def test_two_levels_by_hand() -> None:
    """1, 3: SD sqrt(2), error 1, one degree of freedom (Cauchy): the 95 % point is tan(0.475 pi) = 12.706. No p-value."""
    estimate = over_levels([1, math.nan, 3])
    assert estimate.sd == pytest.approx(math.sqrt(2))
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((2 - math.tan(0.475 * math.pi), 2 + math.tan(0.475 * math.pi)))
    assert math.isnan(estimate.p_value)
    assert estimate.test == "none: two levels give an interval only"


@pytest.mark.parametrize(
    ("values", "mean", "sd", "test"),
    [
        ([0.5, math.nan], 0.5, math.nan, "none: one level only"),
        ([math.nan], math.nan, math.nan, "none: no result"),
        ([0.1, 0.1, 0.1], 0.1, 0.0, "none: every level gives the same difference"),
        ([0.0, 0.0], 0.0, 0.0, "none: every level gives the same difference"),
    ],
)
def test_where_nothing_can_be_estimated(values: list[float], mean: float, sd: float, test: str) -> None:
    estimate = over_levels(values)
    assert (estimate.mean, estimate.sd) == pytest.approx((mean, sd), nan_ok=True)
    assert np.isnan([estimate.ci_low, estimate.ci_high, estimate.p_value]).all()
    assert estimate.test == test


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=8).filter(lambda values: len(set(values)) > 1))
def test_it_is_students_t_test(values: list[int]) -> None:
    estimate, other = over_levels(values), scipy_stats.ttest_1samp(values, 0)
    assert estimate.p_value == pytest.approx(other.pvalue, rel=1e-6, abs=1e-12)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx(tuple(other.confidence_interval(0.95)), rel=1e-6, abs=1e-9)


def test_spread_by_factor_by_hand() -> None:
    """Worlds 0, 1 by golds a, b: 1, 2 / 3, 6. World means 1.5, 4.5: SD 3 / sqrt(2); gold means 2, 4: SD sqrt(2). A gap leaves both open."""
    cells = {"world=0,gold=a": 1.0, "world=0,gold=b": 2.0, "world=1,gold=a": 3.0, "world=1,gold=b": 6.0}
    assert by_level(cells) == pytest.approx({"world": 3 / math.sqrt(2), "gold": math.sqrt(2)})
    assert np.isnan(list(by_level(cells | {"world=0,gold=b": math.nan}).values())).all()


def contrasts(differences: Mapping[str, float], **other: Any) -> pd.DataFrame:
    """One contrast's row in each variation, with an interval of 0.5 to each side."""
    about = {
        "arm_a": "a",
        "arm_b": "b",
        "axis": "all",
        "scorer": "truth",
        "at": "final",
        "family": "primary",
        "scope": "new seeds",
        "test": "t",
    } | other
    rows = [about | {"variation": v, "difference": d, "ci_low": d - 0.5, "ci_high": d + 0.5} for v, d in differences.items()]
    return pd.DataFrame(rows)


def test_a_row_per_contrast_with_every_variations_difference_and_sign() -> None:
    """1, 2, 3 as above; and what has a row in one world only: two missing, nothing said."""
    other = contrasts({"world=1": -1.0}, axis="helpful", family="descriptive")
    table = spread(pd.concat([contrasts(dict(zip(WORLDS, [1.0, 2.0, 3.0], strict=True))), other]), WORLDS)
    first, second = table.to_dict("records")
    assert (first["axis"], first["mean"], first["sd"], first["scope"], first["family"]) == ("all", 2, 1, "new worlds", "primary")
    assert [first[f"{name}.world=1"] for name in ("difference", "ci_low", "ci_high")] == [2, 1.5, 2.5]
    assert first["p_adjusted"] == first["p_value"] == pytest.approx(1 - math.sqrt(12 / 14))
    assert [first[f"n_{what}"] for what in ("variations", "missing", "positive", "negative")] == [3, 0, 3, 0]
    assert [second[f"n_{what}"] for what in ("variations", "missing", "positive", "negative")] == [1, 2, 0, 1]
    assert (second["mean"], second["test"]) == (-1, "none: one level only")
    assert np.isnan([second["sd"], second["difference.world=0"], second["p_value"]]).all()


def test_a_missing_difference_is_counted_and_zero_has_no_sign() -> None:
    (row,) = spread(contrasts(dict(zip(WORLDS, [0.0, math.nan, 3.0], strict=True))), WORLDS).to_dict("records")
    assert [row[f"n_{what}"] for what in ("variations", "missing", "positive", "negative")] == [2, 1, 1, 0]


def test_holm_over_the_primary_family_only() -> None:
    """Two primary rows with 1, 2, 3 and 2, 4, 6 have one p; Holm doubles both. The row at dev_best is a contrast of its own, outside."""
    parts = [
        contrasts({w: scale * (i + 1) for i, w in enumerate(WORLDS)}, axis=axis, at=at, family=family)
        for scale, axis, at, family in ((1, "x", "final", "primary"), (2, "y", "final", "primary"), (1, "x", "dev_best", "descriptive"))
    ]
    table = spread(pd.concat(parts), WORLDS)
    assert list(table["at"]) == ["final", "final", "dev_best"]
    p = 1 - math.sqrt(12 / 14)
    assert list(table["p_value"]) == pytest.approx([p, p, p])
    assert list(table["p_adjusted"]) == pytest.approx([2 * p, 2 * p, math.nan], nan_ok=True)


def test_no_test_on_an_uninformative_judge() -> None:
    rows = contrasts(dict(zip(WORLDS, [1.0, 2.0, 3.0], strict=True)), scorer="judge/coin")
    rows.loc[[0, 2], "test"] = "none: uninformative judge on helpful: accuracy 0.500 includes chance"
    (row,) = spread(rows, WORLDS).to_dict("records")
    assert math.isnan(row["p_value"])
    assert row["test"] == "none: uninformative judge in 2 of 3 variations"


def test_no_test_on_an_uninformative_gold() -> None:
    rows = contrasts(dict(zip(WORLDS, [1.0, 2.0, 3.0], strict=True)))
    rows.loc[1, "scope"] = "uninformative gold on helpful"
    (row,) = spread(rows, WORLDS).to_dict("records")
    assert math.isnan(row["p_value"])
    assert row["test"] == "none: uninformative gold in 1 of 3 variations"
    assert not math.isnan(row["ci_low"])


def test_crossed_factors_are_no_independent_draws() -> None:
    cells = {"world=0,gold=a": 1.0, "world=0,gold=b": 2.0, "world=1,gold=a": 3.0, "world=1,gold=b": 6.0}
    (row,) = spread(contrasts(cells), list(cells)).to_dict("records")
    assert (row["mean"], row["scope"]) == (3, "these levels")
    assert np.isnan([row["ci_low"], row["p_value"], row["p_adjusted"]]).all()
    assert row["test"] == "none: world and gold are crossed, so the variations are no independent draws"
    assert (row["sd_world"], row["sd_gold"]) == pytest.approx((3 / math.sqrt(2), math.sqrt(2)))


def test_levels_that_were_chosen_are_not_tested() -> None:
    """Intervals of the tests' cells are the difference -+ 1: of 0.5, 2 and -3 one lies above 0 and one below."""
    cells = {"quality=0.5": 0.5, "quality=0.9": 2.0, "quality=1.0": -3.0}
    rows = contrasts(cells)
    rows[["ci_low", "ci_high"]] = np.column_stack([rows["difference"] - 1, rows["difference"] + 1])
    (row,) = spread(rows, list(cells)).to_dict("records")
    assert (row["test"], row["scope"]) == (CHOSEN, "these levels")
    assert np.isnan([row["ci_low"], row["ci_high"], row["p_value"], row["p_adjusted"]]).all()
    assert [row[name] for name in ("n_variations", "n_positive", "n_negative", "n_above", "n_below")] == [3, 2, 1, 1, 1]


# --- folders ---------------------------------------------------------------------------------------------------------------------


def variation(folder: Path, rows: pd.DataFrame, gold: str = "linear", failures: tuple[Mapping[str, Any], ...] = ()) -> None:
    """What a run leaves behind, as far as it is read; `a` ends in round 2, `b` in round 1, at the difference's halves."""
    (folder / "report" / "tables").mkdir(parents=True)
    tree = tiny_tree()
    tree["models"]["gold"][0]["name"] = gold
    (folder / "experiment.yaml").write_text(dump_experiment(Experiment.model_validate_json(json.dumps(tree))))
    (folder / "manifest.json").write_text(json.dumps({"failures": list(failures)}))
    rows[[column for column in rows if column in READ]].to_csv(folder / "report" / "tables" / "contrasts.csv", index=False)
    scores = [
        (arm, round_, row.axis, row.scorer, sign * float(row.difference) * round_ / last)  # pyright: ignore[reportArgumentType]
        for row in rows.itertuples()
        for arm, last, sign in ((row.arm_a, 2, 0.5), (row.arm_b, 1, -0.5))
        for round_ in range(last + 1)
    ]
    summary = pd.DataFrame(scores, columns=["arm", "round", "axis", "scorer", "mean"]).assign(seed_sd=0.1)
    summary.to_csv(folder / "report" / "tables" / "summary.csv", index=False)


LEVELS = {label: {"world": place} for place, label in enumerate(WORLDS)}


@pytest.mark.slow
def test_the_report_says_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    """World 1 has no report, an arm failed in world 2; arms may be called as tables spell a gap."""
    for label, difference in (("world=0", 1.0), ("world=2", 3.0)):
        failures = ({"arm": "null", "seed": 1, "message": "budget | exceeded"},) if label == "world=2" else ()
        variation(tmp_path / label, contrasts({label: difference}, arm_a="null", arm_b="1").drop(columns="at"), failures=failures)
    path = write(tmp_path, "mine", LEVELS)
    assert path == tmp_path / "report" / "report.md"
    text = path.read_text()
    assert text.startswith("# mine: world varied\n")
    assert (
        "- **No test of `null` against `1`** (truth, all axes pooled): mean difference +2.000 over 2 variations (SD 1.414), 95 % interval "
        "\u221210.706 to +14.706; two levels give an interval only. Higher in 2, lower in 0, missing in 1."
    ) in text
    assert "- world=1: no report; it is missing below." in text
    assert "- world=2: failed: null, seed 1: budget \\| exceeded" in text
    assert "- 1 of 1 rows lack a difference in at least one variation; column missing counts them." in text
    assert "| `null` \u2212 `1` | all | truth | primary | +1.000 (+0.500 to +1.500) | - | +3.000 (+2.500 to +3.500) |" in text
    assert "| `null` | all | truth | 0.500 | - | 1.500 | 1.000 | 0.707 | 1 |" in text  # round 2: half of 1 and of 3
    assert "| `1` | all | truth | \u22120.500 | - | \u22121.500 | \u22121.000 | 0.707 | 1 |" in text
    assert "| `world=0` | 0 | linear | 0 | [report](../world=0/report/report.md) |" in text
    assert "| `world=1` | 1 | - | 0 | none |" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differences", "sentence"),
    [
        ([1.0, 1.1, 1.2], "**`a` scored higher than `b`** (truth, all axes pooled): mean difference +1.100"),
        ([-1.0, -1.1, -1.2], "**`a` scored lower than `b`** (truth, all axes pooled): mean difference \u22121.100"),
        ([1.0, 2.0, 3.0], "**No difference between `a` and `b` could be shown** (truth, all axes pooled): mean difference +2.000"),
        ([math.nan] * 3, "**No result for `a` against `b`** (truth, all axes pooled)."),
    ],
)
def test_the_answer(tmp_path: Path, differences: list[float], sentence: str) -> None:
    for label, difference in zip(WORLDS, differences, strict=True):
        variation(tmp_path / label, contrasts({label: difference}))
    assert f"\n- {sentence}" in write(tmp_path, "mine", LEVELS).read_text()


def test_gold_models_of_other_names_share_an_office(tmp_path: Path) -> None:
    """Two levels of gold with other names are both "gold"; with one name they keep it."""
    for label, gold in (("gold=x", "x"), ("gold=y", "y")):
        variation(tmp_path / label, contrasts({label: 1.0}, scorer=gold), gold=gold)
    write(tmp_path, "mine", {"gold=x": {"gold": {"name": "x"}}, "gold=y": {"gold": {"name": "y"}}})
    (row,) = pd.read_csv(tmp_path / "report" / "tables" / "spread.csv").to_dict("records")
    assert (row["scorer"], row["n_variations"]) == ("gold", 2)
    assert "| `a` | all | gold | 0.500 | 0.500 |" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
def test_the_same_reports_give_the_same_bytes(tmp_path: Path) -> None:
    for label, difference in zip(WORLDS, [1.0, 2.0, 4.0], strict=True):
        variation(tmp_path / label, contrasts({label: difference}))

    def written() -> dict[str, bytes]:
        write(tmp_path, "mine", LEVELS)
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in (tmp_path / "report").rglob("*.*")}

    first = written()
    assert set(first) == {
        f"report/{name}"
        for name in (
            "report.md",
            "report.html",
            "report.json",
            "tables/spread.csv",
            "figures/spread.png",
            "figures/spread.svg",
            "figures/spread.pdf",
        )
    }
    assert written() == first


def test_the_page_over_levels(tmp_path: Path) -> None:
    """1, 2, 3: mean 2 with interval -0.484 to 4.484; drawn once per level and once for the mean. World 1 has a page of its own."""
    hostile = "<img src=x>&"
    for label, difference in zip(WORLDS, [1.0, 2.0, 3.0], strict=True):
        variation(tmp_path / label, contrasts({label: difference}, scorer=hostile))
    (tmp_path / "world=1" / "report" / "report.html").write_text("its own")
    write(tmp_path, "mine", LEVELS)
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "mine: world varied" in html
    text = re.sub("<[^>]*>", "", html)
    assert (
        "No difference between a and b could be shown. &lt;img src=x&gt;&amp;, all axes pooled: mean difference +2.000 over 3 variations "
        "(SD 1.000), 95 % interval \u22120.484 to +4.484"
    ) in text
    assert hostile not in html
    assert html.count('class="interval primary"') == 1
    assert html.count('class="dot"') == 4
    assert "+2.000 (\u22120.484 to +4.484)" in text  # in the table
    assert re.findall(r'<a href="([^"#]*)">', html) == ["../world%3D1/report/report.html"]
    assert "world=0: no page" in text
    assert html.count("<caption>") == html.count("<table")
    assert html.count("<script") == 1  # tables can be copied


def test_the_page_where_nothing_is_left(tmp_path: Path) -> None:
    write(tmp_path, "mine", LEVELS)
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "no variation has a report" in html
    assert html.count("No results.") == 2


def test_where_each_arm_scores_highest_along_a_setting(tmp_path: Path) -> None:
    """At the last round `a` scores half of the difference and `b` minus half: +-0.2 and -+0.3, around the initial policy's 0."""
    levels = {"quality=0.5,noise=0.1": {"quality": 0.5, "noise": 0.1}, "quality=1.0,noise=0.1": {"quality": 1.0, "noise": 0.1}}
    for label, difference in zip(levels, (0.4, -0.6), strict=True):
        variation(tmp_path / label, contrasts({label: difference}))
    text = write(tmp_path, "map", levels).read_text()
    assert "`a` against `b` at each level" in text
    assert (tmp_path / "report" / "figures" / "by_level.png").is_file()
    rows = [line.replace(" ", "").strip("|").split("|") for line in text.splitlines() if line.startswith("| quality=")]
    highest = [row for row in rows if row[2:3] in (["`a`"], ["`b`"])]
    assert [row[2:6] for row in highest] == [["`a`", "0.200", "initialpolicy", "+0.200"], ["`b`", "0.300", "initialpolicy", "+0.300"]]
