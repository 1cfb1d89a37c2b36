"""The living benchmark over reports that are written here: what is read of each, what is combined, and what an answer could have shown."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from apo_bench.errors import InputError
from apo_bench.report.across_reports.answers import answers_of, detectable, mind_of, seeds_needed
from apo_bench.report.across_reports.committed import committed_reports
from apo_bench.report.across_reports.page import INDEX, write_site
from apo_bench.report.across_reports.ranking import NO_BUDGET, agreement, not_combined, rankings
from apo_bench.stats.power_analysis import plan_size

SCORES = {"a": [0.5, 0.9, 0.4, 1.0], "b": [0.1, 0.2, 0.3, 0.0]}
SCOPE = "new seeds and new prompts"
UNITS = ("human_pairs", "golden_responses", "flops")


def experiment(world: int = 0, **models: Any) -> dict[str, Any]:
    policy = {"path": "tiny", "training": {"learning_rate": 0.1}}
    return {
        "task": {"use": "sim_hh", "options": {"world_seed": world}},
        "models": {"policy": policy, "gold": [{"name": "gpt2", "seeds": [0]}], **models},
        "evaluation": {"sampling": {"temperature": 1.0}, "prompts": 40, "kl_prompts": 8},
        "compare": {"round": "final"},
        "budget": {"human_pairs": 600},
        "arms": {name: {"use": f"/home/a/baselines/{name}.py@Method", "rounds": 3} for name in "abcdef"},
    }


def contrast(difference: float = 0.5, p: float = 0.01, **more: Any) -> dict[str, Any]:
    return {
        "arm_a": "a", "arm_b": "b", "axis": "all", "scorer": "gpt2", "at": "final", "family": "primary", "difference": difference,
        "standard_error": 0.1, "df": 3.0, "ci_low": difference - 0.3, "ci_high": difference + 0.3, "p_value": p, "p_adjusted": p,
        "n_seeds": 4, "n_clusters": 20, "scope": SCOPE, "test": "t test", **more,
    }  # fmt: skip


def write_report(
    folder: Path,
    *contrasts: dict[str, Any],
    scores: Mapping[str, list[float]] = SCORES,
    tree: dict[str, Any] | None = None,
    used: Mapping[str, tuple[float, float]] | None = None,
    scorer: str = "gpt2",
    by_seed: bool = True,
) -> None:
    """A run's report: two axes of 10 and 30 prompts whose pooled mean is the score. `used`: human pairs and golden responses."""
    tables = folder / "report" / "tables"
    tables.mkdir(parents=True)
    (folder / "report" / "report.md").write_text("# A report\n\n- task: sim_hh\n- commit: 0123abc, with uncommitted changes\n")
    pd.DataFrame(contrasts or [contrast()]).to_csv(tables / "contrasts.csv", index=False)
    rows = [
        (arm, seed, 3, axis, scorer, value + shift, n, "x")
        for arm, values in scores.items()
        for seed, value in enumerate(values)
        for axis, shift, n in (("helpful", 0.3, 10), ("harmless", -0.1, 30))
    ]
    columns = ["arm", "seed", "round", "axis", "scorer", "mean", "n_prompts", "rows"]
    if by_seed:
        pd.DataFrame(rows, columns=columns).to_csv(tables / "arm_seeds.csv", index=False)
    summary = [
        (arm, round_, "all", scorer, np.mean(values) - (3 - round_), np.std(values, ddof=1), len(values), 40)
        for arm, values in scores.items()
        for round_ in (0, 3, 1)
    ]
    names = ["arm", "round", "axis", "scorer", "mean", "seed_sd", "n_seeds", "n_prompts"]
    pd.DataFrame(summary, columns=names).to_csv(tables / "summary.csv", index=False)
    spent = dict.fromkeys(scores, (600, 0)) if used is None else used
    budget = [(arm, arm, unit, amount, amount) for arm in spent for unit, amount in zip(UNITS, (*spent[arm], 1e9), strict=True)]
    pd.DataFrame(budget, columns=["arm_a", "arm_b", "unit", "used_a", "used_b"]).to_csv(tables / "budget.csv", index=False)
    if tree is not None:
        (folder / "report" / "rerun.yaml").write_text(yaml.safe_dump(tree))


# What is read


def test_a_report_of_older_code_is_listed_with_what_it_lacks(tmp_path: Path) -> None:
    write_report(tmp_path / "old", by_seed=False)
    write_report(tmp_path / "new", tree=experiment())
    (tmp_path / "new" / "report" / "report.html").write_text("page")
    old, new = sorted(committed_reports(tmp_path), key=lambda report: report.name, reverse=True)
    assert (old.task, old.commit, old.link) == ("sim_hh", "0123abc", "old/report/report.md")
    assert old.lacks == ("tables/arm_seeds.csv", "rerun.yaml", "report.html")
    assert (new.link, new.lacks) == ("new/report/report.html", ())
    assert old.date == ""  # of a commit that no repository has


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("tables/contrasts.csv", "arm_a,arm_b\na,b\n", r"contrasts\.csv: column axis is missing"),
        ("tables/summary.csv", 'arm\n"a\n', r"summary\.csv: no table"),
        ("rerun.yaml", "- 1\n", r"rerun\.yaml: an experiment is needed, got list"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: str, pattern: str, tmp_path: Path) -> None:
    write_report(tmp_path / "run")
    (tmp_path / "run" / "report" / name).write_text(content)
    with pytest.raises(InputError, match=pattern):
        committed_reports(tmp_path)


def test_a_folder_without_reports(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder NAME/report"):
        write_site(tmp_path)


# Ranks


def test_two_arms_by_seed_have_the_paired_t_interval(tmp_path: Path) -> None:
    """Of two arms the family is one contrast, so its interval is the paired t interval over seeds; pooled means of .3 x 10 and -.1 x 30
    prompts are the scores themselves.
    """
    write_report(tmp_path / "run", tree=experiment())
    tables, left_out = rankings(committed_reports(tmp_path))
    assert (len(tables), left_out) == (1, ())
    best, other = tables[0].table.to_dict("records")
    assert (best["arm"], other["arm"], other["n_seeds"], other["flops"]) == ("a", "b", 4, 1e9)
    assert best["mean"] == pytest.approx(np.mean(SCORES["a"]))
    interval = stats.ttest_rel(SCORES["b"], SCORES["a"]).confidence_interval()
    assert (other["difference"], other["ci_low"], other["ci_high"]) == pytest.approx((-0.55, interval.low, interval.high))
    assert tables[0].is_paired


def test_two_arms_without_scores_by_seed_have_an_unpaired_interval(tmp_path: Path) -> None:
    """Of means and SDs over four seeds each: t with Welch's degrees of freedom, of the last round. Equal degrees of freedom on both sides
    make this the formula of Satterthwaite alone.
    """
    write_report(tmp_path / "run", by_seed=False)
    (table,), _ = rankings(committed_reports(tmp_path))
    interval = stats.ttest_ind(SCORES["b"], SCORES["a"], equal_var=False).confidence_interval()
    other = table.table.to_dict("records")[1]
    assert (other["ci_low"], other["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert not table.is_paired


def test_ranks_are_as_sure_as_the_intervals(tmp_path: Path) -> None:
    """c is far below both others in every seed; a and b cross."""
    scores = {"c": [-9.0, -9.2, -9.1, -9.3], "a": [0.0, 1.0, 0.0, 1.1], "b": [1.0, 0.0, 1.0, 0.0]}
    write_report(tmp_path / "run", scores=scores, tree=experiment())
    (table,), _ = rankings(committed_reports(tmp_path))
    assert [(row["arm"], row["rank_low"], row["rank_high"]) for row in table.table.to_dict("records")] == [
        ("a", 1, 2),
        ("b", 1, 2),
        ("c", 3, 3),
    ]


@pytest.mark.slow
def test_experiments_that_share_a_method_share_a_table_and_others_do_not(tmp_path: Path) -> None:
    """b's settings are the same in both, folders aside, so it is one method; those of a differ in the third. World 1 is elsewhere."""
    other, third = experiment(), experiment()
    other["arms"]["b"]["use"] = "baselines/b.py@Method"
    third["arms"]["a"]["rounds"] = 4
    write_report(tmp_path / "first", tree=experiment())
    write_report(tmp_path / "second", scores={"b": SCORES["b"], "d": [0.3, 0.4, 0.2, 0.6]}, tree=other)
    write_report(tmp_path / "third", scores={"a": SCORES["a"], "e": SCORES["b"]}, tree=third)
    write_report(tmp_path / "elsewhere", tree=experiment(world=1))
    write_report(tmp_path / "old")
    tables, _ = rankings(committed_reports(tmp_path))
    assert sorted((table.reports, sorted(table.table["arm"])) for table in tables) == [
        (("elsewhere",), ["a", "b"]),
        (("first", "second"), ["a", "b", "d"]),
        (("old",), ["a", "b"]),
        (("third",), ["a", "e"]),
    ]
    table = next(table for table in tables if len(table.reports) > 1)
    assert dict(zip(table.table["arm"], table.table["report"], strict=True)) == {"a": "first", "b": "first, second", "d": "second"}
    assert agreement(table) == ["With the same scores in each of first, second that has them: b."]
    (sentences,) = not_combined(tables).values()
    assert "Not combined: old." in sentences[0]
    assert sentences[1:] == [
        "Experiments of another task are not combined.",
        "Not combined with one another: first, second; third. No method is in two of these with the same settings.",
    ]


def test_a_method_that_scores_otherwise_in_another_report_is_named(tmp_path: Path) -> None:
    """Its 4th seed is higher by .25, and a 5th seed is the second report's alone; the first's scores count, as both have 4 shared."""
    write_report(tmp_path / "first", tree=experiment())
    write_report(tmp_path / "second", scores={"b": [*SCORES["b"][:3], 0.25], "d": [0.3, 0.4, 0.2, 0.6]}, tree=experiment())
    ((table,), _) = rankings(committed_reports(tmp_path))
    (sentence,) = agreement(table)
    assert sentence.startswith("b scores otherwise in second than in first, by up to 0.250 in their 4 shared seeds")
    assert dict(zip(table.table["arm"], table.table["mean"], strict=True))["b"] == pytest.approx(np.mean(SCORES["b"]))


def test_arms_of_one_name_and_other_settings_are_labelled_by_their_reports(tmp_path: Path) -> None:
    other = experiment()
    other["arms"]["a"]["rounds"] = 4
    write_report(tmp_path / "first", tree=experiment())
    write_report(tmp_path / "second", tree=other)
    ((table,), _) = rankings(committed_reports(tmp_path))
    assert sorted(table.table["label"]) == ["a (first)", "a (second)", "b"]


def test_few_seeds_do_not_cost_the_others_theirs(tmp_path: Path) -> None:
    """8 seeds: an arm with 4 of them costs half and is in the table, which is then of 4; those with 3 stand in one of their own."""
    many, half, few = [0.1 * step for step in (3, 1, 4, 1, 5, 9, 2, 6)], [0.2, 0.1, 0.5, 0.3], [0.4, 0.7, 0.6]
    scores = {"a": many, "b": few, "c": many[::-1], "d": half, "e": few[::-1]}
    write_report(tmp_path / "run", scores=scores, tree=experiment())
    tables, left_out = rankings(committed_reports(tmp_path))
    assert left_out == ()
    assert [(sorted(table.table["arm"]), set(table.table["n_seeds"])) for table in tables] == [(["a", "c", "d"], {4}), (["b", "e"], {3})]


def test_budgets_are_kept_apart(tmp_path: Path) -> None:
    """600 and 615 human pairs are within 5 %; golden responses make another budget, and so does one that is not known."""
    scores = {name: [0.1, 0.3, 0.2, 0.5] for name in "abcde"}
    used = {"a": (600, 0), "b": (615, 0), "c": (600, 48), "d": (600, 50)}
    write_report(tmp_path / "run", scores=scores, used=used, tree=experiment())
    tables, left_out = rankings(committed_reports(tmp_path))
    assert [(table.budget, sorted(table.table["arm"])) for table in tables] == [
        ("600 human pairs, 0 golden responses", ["a", "b"]),
        ("600 human pairs, 48 golden responses", ["c", "d"]),
    ]
    assert [(item.arm, item.reason) for item in left_out] == [("e", f"alone with {NO_BUDGET} at 4 seeds")]


def test_what_a_report_does_not_test_is_not_ranked(tmp_path: Path) -> None:
    write_report(tmp_path / "blind", contrast(p=math.nan, test="none: the gold model is uninformative"), tree=experiment())
    write_report(tmp_path / "short", scores={"a": [0.1, 0.2], "b": [0.2, 0.4]}, tree=experiment())
    tables, left_out = rankings(committed_reports(tmp_path))
    assert tables == ()
    assert {(item.report, item.reason) for item in left_out} == {
        ("blind", "by gpt2: the gold model is uninformative"),
        ("short", "fewer than three seeds"),
    }


# Answers


@pytest.mark.parametrize("df", [2.0, 2.4, 9.0, 150.0])
def test_what_is_detectable_is_detected_with_that_power(df: float) -> None:
    """By SciPy's noncentral t distribution, which is another code than its inverse."""
    critical = stats.t.ppf(0.975, df)
    assert 1 - stats.nct.cdf(critical, df, detectable(0.1, df) / 0.1) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_seeds_needed_are_those_of_the_power_analysis(paired: bool) -> None:
    """By `plan_size`, where all variance is the seeds': an SD of .3 of paired differences, or of each arm's scores."""
    size = plan_size(0.2, seed_sd=0.3, method_prompt_sd=0, residual_sd=0, n_clusters=3, paired=paired, alpha=0.01)
    error = 0.3 * math.sqrt((1 if paired else 2) / 5)
    needed = seeds_needed(-0.2, error, 5, 0.01, arms=1 if paired else 2)
    assert size.n_seeds is not None
    assert abs(needed - size.n_seeds) <= 1
    assert math.isnan(seeds_needed(0.0, error, 5))


def test_what_would_change_a_ranking(tmp_path: Path) -> None:
    """b crosses a; c is lower by about 9.5 in every seed, so that its interval's half-width is what new seeds would have to stay within."""
    scores = {"c": [-9.0, -9.2, -9.1, -9.3], "a": [0.0, 1.0, 0.0, 1.1], "b": [1.0, 0.0, 1.0, 0.0]}
    write_report(tmp_path / "run", scores=scores, tree=experiment())
    ((table,), _) = rankings(committed_reports(tmp_path))
    _, b, c = table.table.to_dict("records")
    needed = seeds_needed(b["difference"], b["standard_error"], 4, table.alpha)
    assert plain(mind_of(table)) == (
        f"b is not told from a: to show its difference, {b['difference']:+.3f}, in four of five experiments takes about {needed:,} seeds. "
        f"a over c is the least sure of what is shown: 4 new seeds in which they differ by less than "
        f"{(c['ci_high'] - c['ci_low']) / 2:.3f}, not by {-c['difference']:.3f}, would not show it."
    )


def test_answers_name_what_would_change_them(tmp_path: Path) -> None:
    rows = contrast(), contrast(-0.1, 0.4, arm_a="c"), contrast(0.2, math.nan, arm_a="d", test="none: two seeds give an interval only")
    write_report(tmp_path / "run", *rows)
    shown, level, untested = answers_of(committed_reports(tmp_path)[0])
    size = f"±{detectable(0.1, 3.0, 0.05 / 3):.3f}"
    assert plain(shown.claim.headline) == "a scored higher than b"
    assert plain(shown.mind).startswith("New seeds with an interval wholly below +0.200")
    assert size in plain(shown.mind)
    assert plain(level.question) == "Does c score higher than b?"
    assert plain(level.mind).startswith(f"New seeds that show a difference. One of {size} would have been shown")
    needed = seeds_needed(-0.1, 0.1, 4, 0.05 / 3)
    assert plain(level.mind).endswith(f"One of its own size, -0.100, takes at least {needed} seeds.")
    assert plain(untested.mind).startswith("Any test")
    assert [(answer.is_tested, answer.is_shown) for answer in (shown, level, untested)] == [(True, True), (True, False), (False, False)]


def test_a_report_over_variations(tmp_path: Path) -> None:
    """SE of three levels' mean: .3 / sqrt(3), with two degrees of freedom. Its date is that of its newest variation."""
    write_report(tmp_path / "worlds" / "world=1", tree=experiment())
    row = contrast(p=0.2) | {"mean": 0.5, "sd": 0.3, "n_variations": 3, "n_positive": 2, "n_negative": 1, "n_missing": 0}
    (tmp_path / "worlds" / "report" / "tables").mkdir(parents=True)
    pd.DataFrame([row]).to_csv(tmp_path / "worlds" / "report" / "tables" / "spread.csv", index=False)
    (tmp_path / "worlds" / "report" / "report.md").write_text("# worlds")
    reports = committed_reports(tmp_path)
    assert [report.name for report in reports] == ["worlds", "worlds/world=1"]
    (answer,) = answers_of(reports[0])
    assert plain(answer.question) == "Does a score higher than b, over 3 variations?"
    assert f"±{detectable(0.3 / math.sqrt(3), 2):.3f}" in plain(answer.mind)
    assert reports[0].lacks == ("report.html",)


def test_an_audit(tmp_path: Path) -> None:
    """.5 + 2.80 x .5 / sqrt(30) = .756."""
    (tmp_path / "judge" / "report").mkdir(parents=True)
    row = {
        "judge": "small",
        "data": "hh.jsonl",
        "axis": "all",
        "metric": "accuracy",
        "value": 0.7,
        "ci_low": 0.52,
        "ci_high": 0.83,
        "n": 30,
    }
    pd.DataFrame([row, row | {"n": 1, "ci_low": math.nan}]).to_csv(tmp_path / "judge" / "report" / "audit.csv", index=False)
    (tmp_path / "judge" / "report" / "audit.md").write_text("# An audit")
    (report,) = committed_reports(tmp_path)
    many, single = answers_of(report)
    assert plain(many.claim.headline) == "small sides with people"
    assert "0.756" in plain(many.mind)
    assert plain(single.mind) == "More comparisons: with 1 no accuracy can be told from 1/2."
    assert report.lacks == ("commit",)


def plain(text: Any) -> str:
    return "".join(span.text for span in text)


# The page


@pytest.mark.slow
def test_the_page_loads_nothing_and_no_name_becomes_markup(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    write_report(tmp_path / "run", contrast(arm_a=hostile), scores={hostile: SCORES["a"], "b": SCORES["b"]}, tree=experiment())
    page = write_site(tmp_path).read_text(encoding="utf-8")
    assert write_site(tmp_path) == tmp_path / INDEX
    assert (tmp_path / INDEX).read_text(encoding="utf-8") == page
    assert "<img" not in page
    assert "&lt;img" in page
    assert not any(sign in page for sign in ("<script", "http://", "https://", "url(", "@import"))
    assert "1 declared comparison: 1 shows a difference, 0 do not." in page
