"""Judges together: what stands in the report is what the statistics say of the same comparisons."""

import numpy as np
import pandas as pd
import pytest
from verdict_frames import NO_AUDIT, A, B, audited, three_seeds, verdicts

from apo_bench.analysis.across_judges import across_judges, judge_ranking
from apo_bench.analysis.win_rates import comparisons_from_verdicts, win_rates
from apo_bench.report.markdown import section_lines
from apo_bench.report.sections.across_judges import across_section, ranking_section
from apo_bench.stats import davidson, win_rate_across_judges

JUDGES = ("x", "y", "z")


def judged() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.concat([three_seeds(rng, missing=0.02, judge=judge) for judge in JUDGES], ignore_index=True)


def rates(judgments: pd.DataFrame, *informative: str) -> pd.DataFrame:
    audit = pd.concat([audited(judge, axis) for judge in informative for axis in ("harmless", "helpful", "all")] or [NO_AUDIT])
    return win_rates(judgments, audit, ["harmless", "helpful"], draws=100)


def test_informative_judges_are_averaged() -> None:
    """x and y are informative, z was not audited: the rows are those of x and y, and equal the estimator's on their comparisons."""
    judgments = judged()
    table = across_judges(judgments, rates(judgments, "x", "y"))
    assert list(table["axis"]) == ["all", "harmless", "helpful"]
    own = comparisons_from_verdicts(judgments[judgments["judge"] != "z"]).rename(columns={"seed_a": "seed"})
    expected = win_rate_across_judges(own[["judge", "seed", "prompt_id", "cluster_id", "value"]])
    row = table[table["axis"] == "all"].iloc[0]
    assert (row["judges"], row["n_judges"], row["p_value"]) == ("x, y", 2, pytest.approx(np.nan, nan_ok=True))
    for name in ("mean", "ci_low", "ci_high", "judge_sd", "these_low", "n_dropped"):
        assert row[name] == pytest.approx(getattr(expected, name))
    text = "\n".join(section_lines([across_section(table)], "##"))
    assert "| x, y |" in text
    assert "none: two judges give an interval only" in text


def test_nothing_stands_across_judges_where_fewer_than_two_are_informative() -> None:
    judgments = judged()
    table = across_judges(judgments, rates(judgments, "x"))
    assert table.empty
    assert across_section(table).blocks == []


def third_arm(judgments: pd.DataFrame) -> pd.DataFrame:
    """The same with a third arm, which meets both others."""
    first, second = (judgments.assign(arm_a=a, arm_b="third", value=judgments["value"].to_numpy()[::-1]) for a in (A, B))
    return pd.concat([judgments, first, second], ignore_index=True)


def test_arms_are_ranked_by_davidson_where_there_are_ties() -> None:
    judgments = third_arm(judged())
    table = judge_ranking(judgments, rates(judgments, "x"))
    assert set(table["judge"]) == set(JUDGES)  # those that were not audited too
    own = comparisons_from_verdicts(judgments[judgments["judge"] == "y"]).dropna(subset=["agreed"])
    battles = own[["arm_a", "arm_b", "cluster_id"]].rename(columns={"arm_a": "a", "arm_b": "b"}).assign(value=own["agreed"])
    expected = davidson(battles, cluster="cluster_id")
    rows = table[table["judge"] == "y"]
    assert list(rows["arm"]) == list(expected.strengths["model"])
    for name in ("strength", "ci_low", "ci_high"):
        assert rows[name].to_numpy() == pytest.approx(expected.strengths[name].to_numpy())
    assert (rows["tie"].iloc[0], rows["n_ties"].iloc[0]) == pytest.approx((expected.tie, expected.n_ties))
    assert "Davidson, t intervals from clusters' scores" in "\n".join(section_lines([ranking_section(table)], "##"))


def test_two_arms_have_no_ranking_and_a_judge_without_ties_has_bradley_and_terrys() -> None:
    judgments = judged()
    assert judge_ranking(judgments, rates(judgments, "x")).empty
    rng = np.random.default_rng(1)
    decided = verdicts({(0, f"p{i}"): [("first", "second"), ("second", "first")][rng.integers(2)] for i in range(30)})
    table = judge_ranking(third_arm(decided), rates(third_arm(decided)))
    assert table["test"].str.startswith("Bradley-Terry").all()
    assert table["tie"].isna().all()
    assert table["note"].str.contains("no battle is a tie").all()


def test_of_several_rounds_the_last_counts() -> None:
    """Round 10 comes after round 9, whatever their spelling."""
    last = third_arm(judged()).assign(round="10")
    early = last.assign(round="9", value=0.5)
    both = pd.concat([last, early], ignore_index=True)
    pd.testing.assert_frame_equal(judge_ranking(both, rates(last, "x")), judge_ranking(last, rates(last, "x")))
