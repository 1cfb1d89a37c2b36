"""Verdicts made into win rates: by hand, against plain loops, mirrored, and where there is nothing to say."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from verdict_frames import (
    BY_HAND,
    CHOICES,
    FIRST,
    LENGTHS,
    NAN,
    NO_AUDIT,
    SECOND,
    TIE,
    A,
    audited,
    scored,
    three_seeds,
    verdicts,
)

from apo_bench.analysis import contrasts
from apo_bench.analysis.win_rates import (
    JUDGE_AGREEMENT_COLUMNS,
    NOT_AUDITED,
    ONE_ORDER,
    SCORE_AGREEMENT_COLUMNS,
    WIN_RATE_COLUMNS,
    comparisons_from_verdicts,
    judge_agreement,
    judge_score_agreement,
    uninformative_judge,
    win_rate_as_contrast,
    win_rates,
)
from apo_bench.stats import share_interval


def only(frame: pd.DataFrame, axis: str = "all") -> Any:
    (row,) = frame[frame["axis"] == axis].itertuples()
    return row


def test_a_win_rate_by_hand():
    """Comparisons for a: 1, (1/2 + 0)/2 = 1/4, (1 + 0)/2 = 1/2, 1/2, missing; mean 2.25/4 = .5625.

    Squared deviations .4375^2 + .3125^2 + 2 * .0625^2 = .296875; error sqrt(.296875/3/4) = .157288; t(.975; 3) = 3.182446.
    d = 4 * .024740 / (.5625 * .4375) = .402116, I = 4 * 4 * .246094 = 3.9375, D = d^(I / (I + 2)) = .546540; 1/2 has the variance D / 16.
    The missing one has a loss as "ba": lost 0, won 1/2, so 2.25/5 = .45 to 2.75/5 = .55. Orders differ on p1 and p2 of four.
    First: 1 + 0 + 1/2 + 1 + 1 + 1 + 1/2 + 1/2 = 5.5 of 8. Ties: p2 and p3. Lengths differ by 2, 4, 0, 2, 12: mean 4.
    """
    result = only(win_rates(verdicts(BY_HAND, LENGTHS), audited(), ["helpful"]))
    assert (result.win_rate, result.standard_error, result.df) == pytest.approx((0.5625, 0.157288, 3), abs=1e-6)
    assert (result.ci_low, result.ci_high) == pytest.approx(share_interval(0.5625, 0.296875 / 12, 4, 3.182446), abs=1e-6)
    assert result.p_value == pytest.approx(2 * stats.t.sf(0.0625 / (0.546540 / 16) ** 0.5, 3), abs=1e-5)
    assert (result.n_seeds, result.n_clusters, result.n_comparisons, result.n_missing, result.n_dropped) == (1, 4, 4, 1, 0)
    assert (result.worst_low, result.worst_high) == pytest.approx((0.45, 0.55))
    assert (result.inconsistency_rate, result.first_position_rate, result.tie_share) == (0.5, 5.5 / 8, 0.5)
    assert (result.length_difference, result.missing_length_difference) == (4, 12)
    assert (result.missing_first_a, result.missing_first_b, result.missing_why) == (1, 0, "unparsable 1")
    assert (result.round, result.informative) == ("3", "")
    assert "these checkpoints only" in result.scope
    assert "the one tested is that of what is left only" in result.note


def test_disagree_is_tie_by_hand():
    """1/4 becomes 1/2: values 1, 1/2, 1/2, 1/2, mean .625, variance 1/64, t(.975; 3) = 3.182446. Opposite winners are 1/2 either way."""
    result = only(win_rates(verdicts(BY_HAND), audited(), ["helpful"]))
    ends = share_interval(0.625, 1 / 64, 4, 3.182446)
    assert (result.agreed_win_rate, result.agreed_low, result.agreed_high) == pytest.approx((0.625, *ends), abs=1e-6)
    assert 0 < ends[0] < 0.5 < ends[1] < 1


def test_all_sixteen_answers_to_a_comparison():
    """In each pair of choices (as "ab", as "ba") the value is the mean of both codes; only agreement in a winner survives the rule."""
    answers = {(0, f"{ab}/{ba}"): (ab, ba) for ab in CHOICES for ba in CHOICES}
    result = comparisons_from_verdicts(verdicts(answers)).set_index("prompt_id")
    expected = {
        "first/first": (0.5, 0.5), "first/tie": (0.75, 0.5), "first/second": (1, 1),
        "tie/first": (0.25, 0.5), "tie/tie": (0.5, 0.5), "tie/second": (0.75, 0.5),
        "second/first": (0, 0), "second/tie": (0.25, 0.5), "second/second": (0.5, 0.5),
    }  # fmt: skip
    for prompt, row in result.iterrows():
        assert (row["value"], row["agreed"]) == pytest.approx(expected.get(str(prompt), (NAN, NAN)), nan_ok=True), prompt


def test_a_comparison_without_a_row_is_missing():
    """p0 was asked in one order only, by a judge that asks both."""
    result = comparisons_from_verdicts(verdicts({(0, "p0"): (FIRST, SECOND), (0, "p1"): (FIRST, SECOND)}).iloc[1:]).set_index("prompt_id")
    assert result["value"].to_dict() == pytest.approx({"p0": NAN, "p1": 1}, nan_ok=True)


def test_a_comparison_that_was_not_asked_is_missing_and_said_so():
    """Two seeds, three prompts, of which seed 1 was not asked about p2: 6 comparisons, 1 missing; seed 0's of p2 is dropped.

    Had a lost it: values 1, 1, 1/2 and 1, 1, 0, mean .75; had a won it: 11/12.
    """
    win = (FIRST, SECOND)
    rows = verdicts({(0, "p0"): win, (0, "p1"): win, (0, "p2"): (TIE, TIE), (1, "p0"): win, (1, "p1"): win})
    result = only(win_rates(rows, audited(), ["helpful"], draws=100))
    assert (result.n_comparisons, result.n_missing, result.n_dropped, result.missing_why) == (4, 1, 1, "not asked 2")
    assert (result.win_rate, result.worst_low, result.worst_high) == pytest.approx((1, 0.75, 11 / 12))
    single = only(win_rates(rows[rows["prompt_id"] == "p2"], audited(), ["helpful"], draws=100))
    assert (single.n_missing, single.missing_why) == (0, "")


@pytest.mark.slow
def test_length_control_is_the_statistics_on_comparisons():
    """Lengths that follow the verdicts are explained away; a comparison whose length is unknown is left out of it and of nothing else."""
    generator = np.random.default_rng(0)
    longer = generator.normal(0, 10, 200).round()
    wins = generator.random(200) < 1 / (1 + np.exp(-longer / 10 - 0.3))
    answers = {(0, f"p{i:03}"): (FIRST, SECOND) if won else (SECOND, FIRST) for i, won in enumerate(wins)}
    lengths = {f"p{i:03}": (100 + x, 100.0) for i, x in enumerate(longer)}
    result = only(win_rates(verdicts(answers, lengths | {"p000": (NAN, 100)}), audited(), ["helpful"], draws=200))
    assert (result.n_comparisons, result.lc_n) == (200, 199)
    assert 0 < result.lc_low < result.lc_win_rate < result.lc_high < 1
    assert result.length_difference == pytest.approx(longer[1:].mean())
    none = only(win_rates(verdicts(answers).assign(length_a=NAN), audited(), ["helpful"], draws=200))
    assert (none.lc_n, none.lc_note) == (0, "no comparison has a value and both lengths")
    assert math.isnan(none.lc_win_rate)
    assert math.isnan(none.length_difference)
    assert none.win_rate == pytest.approx(wins.mean())


# what is asked of what


def recomputed(rows: pd.DataFrame) -> dict[str, float]:
    """The numbers of a row by plain loops over the rows, without the statistics."""
    codes: dict[tuple[int, str], dict[str, float]] = {}
    cluster = {}
    for seed, prompt, cluster_id, order, value in rows[["seed_a", "prompt_id", "cluster_id", "order", "value"]].to_numpy().tolist():
        codes.setdefault((seed, prompt), {})[order] = value
        cluster[prompt] = cluster_id

    def known(both: dict[str, float]) -> bool:
        return not math.isnan(both["ab"] + both["ba"])

    seeds = {seed for seed, _ in codes}
    whole = [prompt for prompt in cluster if all(known(codes[seed, prompt]) for seed in seeds)]
    means = {key: (both["ab"] + both["ba"]) / 2 for key, both in codes.items()}
    agreed = {key: both["ab"] if both["ab"] == both["ba"] else 0.5 for key, both in codes.items()}

    def rate(value: dict[tuple[int, str], float], prompts: Sequence[str]) -> float:
        clusters = sorted({cluster[prompt] for prompt in prompts})
        by_cluster = []
        for name in clusters:
            inside = [value[seed, prompt] for seed in seeds for prompt in prompts if cluster[prompt] == name]
            by_cluster.append(sum(inside) / len(inside))
        return sum(by_cluster) / len(by_cluster)

    both_known = [both for both in codes.values() if known(both)]
    filled = [{key: sum(x if math.isnan(code) else code for code in both.values()) / 2 for key, both in codes.items()} for x in (0.0, 1.0)]
    return {
        "win_rate": rate(means, whole),
        "agreed_win_rate": rate(agreed, whole),
        "worst_low": rate(filled[0], list(cluster)),
        "worst_high": rate(filled[1], list(cluster)),
        "n_comparisons": len(whole) * len(seeds),
        "n_missing": len(codes) - len(both_known),
        "n_dropped": len(both_known) - len(whole) * len(seeds),
        "tie_share": sum(both["ab"] + both["ba"] == 1 for both in both_known) / len(both_known),
        "inconsistency_rate": sum(both["ab"] != both["ba"] for both in both_known) / len(both_known),
        "first_position_rate": sum(both["ab"] + 1 - both["ba"] for both in both_known) / 2 / len(both_known),
        "missing_first_a": sum(math.isnan(both["ab"]) for both in codes.values()),
        "missing_first_b": sum(math.isnan(both["ba"]) for both in codes.values()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_win_rates_are_those_of_plain_loops(number: int):
    rows = three_seeds(np.random.default_rng(number), missing=0.05)
    result = win_rates(rows, NO_AUDIT, ["harmless", "helpful"], draws=100)
    assert list(result.columns) == WIN_RATE_COLUMNS
    for axis in ("harmless", "helpful", "all"):
        for name, value in recomputed(rows if axis == "all" else rows[rows["axis"] == axis]).items():
            assert getattr(only(result, axis), name) == pytest.approx(value), (axis, name)


@pytest.mark.slow
@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_order_of_rows_changes_nothing(number: int, order: int):
    rows = three_seeds(np.random.default_rng(number))
    shuffled = rows.sample(frac=1, random_state=order)
    for compute in (lambda x: win_rates(x, NO_AUDIT, ["harmless", "helpful"], draws=100), judge_agreement):
        pd.testing.assert_frame_equal(compute(rows), compute(shuffled), check_exact=True)


@pytest.mark.slow
@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_exchanged_arms_mirror_everything(number: int):
    """The other arm's win rates are 1 - x, its lengths the negative; what is about positions and ties stays."""
    rows = three_seeds(np.random.default_rng(number))
    names = {f"{name}_{side}": f"{name}_{exchanged}" for name in ("arm", "seed", "length") for side, exchanged in ("ab", "ba")}
    swapped = rows.rename(columns=names).assign(value=1 - rows["value"], order=rows["order"].map({"ab": "ba", "ba": "ab"}))
    plain, exchanged = (only(win_rates(x, NO_AUDIT, ["harmless", "helpful"], draws=100)) for x in (rows, swapped))
    for rate, low, high in (
        ("win_rate", "ci_low", "ci_high"),
        ("agreed_win_rate", "agreed_low", "agreed_high"),
        ("lc_win_rate", "lc_low", "lc_high"),
        ("win_rate", "worst_low", "worst_high"),
    ):
        expected = [1 - getattr(exchanged, name) for name in (rate, high, low)]
        assert [getattr(plain, name) for name in (rate, low, high)] == pytest.approx(expected, nan_ok=True), rate
    for name in ("p_value", "standard_error", "n_missing", "tie_share", "inconsistency_rate", "first_position_rate"):
        assert getattr(plain, name) == pytest.approx(getattr(exchanged, name), nan_ok=True), name
    assert plain.length_difference == pytest.approx(-exchanged.length_difference)
    assert (plain.missing_first_a, plain.missing_first_b) == (exchanged.missing_first_b, exchanged.missing_first_a)


@pytest.mark.slow
def test_rounds_chosen_by_seed_are_one_row_and_several_of_one_seed_are_several():
    rows = three_seeds(np.random.default_rng(1), missing=0.0)
    chosen = rows.assign(round=rows["seed_a"].map({0: "1/2", 1: "3/2", 2: "3/2"}))
    result = win_rates(chosen, NO_AUDIT, ["harmless"], draws=100)
    assert only(result).round == "1+3/2"
    assert only(result).n_seeds == 3
    both = pd.concat([rows.assign(round="1"), rows.assign(round="2")])
    assert win_rates(both, NO_AUDIT, ["harmless"], draws=100)["round"].tolist() == ["1", "1", "2", "2"]


@pytest.mark.slow
def test_pairs_and_judges_do_not_mix():
    parts = [
        three_seeds(np.random.default_rng(i), judge=judge, arm_a=arm) for i, (judge, arm) in enumerate((("x", A), ("y", A), ("x", "rjs")))
    ]
    result = win_rates(pd.concat(parts), NO_AUDIT, ["harmless", "helpful"], draws=100)
    assert result[["arm_a", "judge"]].drop_duplicates().to_numpy().tolist() == [[A, "x"], [A, "y"], ["rjs", "x"]]
    alone = pd.concat([win_rates(part, NO_AUDIT, ["harmless", "helpful"], draws=100) for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(result, alone)


# where there is nothing, or little, to say


def test_two_seeds_have_an_interval_and_no_p_value():
    rows = three_seeds(np.random.default_rng(3), missing=0.0)
    result = only(win_rates(rows[rows["seed_a"] < 2], NO_AUDIT, ["harmless"], draws=100))
    assert (result.n_seeds, result.test) == (2, "none: two seeds give an interval only")
    assert math.isnan(result.p_value)
    assert result.ci_low < result.win_rate < result.ci_high


def test_all_missing_is_a_row_with_a_reason():
    result = only(win_rates(verdicts({(0, f"p{i}"): (None, FIRST) for i in range(3)}), audited(), ["helpful"]))
    assert (result.n_comparisons, result.n_missing, result.missing_first_a, result.missing_first_b) == (0, 3, 3, 0)
    assert result.test.startswith("none: 0 cluster(s) with a comparison in every seed")
    assert all(math.isnan(getattr(result, name)) for name in ("win_rate", "p_value", "lc_win_rate", "agreed_win_rate", "tie_share"))


@pytest.mark.slow
def test_what_the_statistics_refuse_is_a_row_with_their_reason():
    rows = verdicts({(seed, f"p{i}"): (FIRST, TIE) for seed in range(2) for i in range(3)})
    twice = only(win_rates(pd.concat([rows, rows]), audited(), ["helpful"]))
    assert "rows repeat" in twice.test
    tangled = only(win_rates(rows.assign(seed_b=0), audited(), ["helpful"]))
    assert "seeds must map one to one" in tangled.test
    assert only(win_rates(rows, audited(), ["other"]), "other").test == "none: there is no comparison"


def test_no_verdicts_at_all():
    empty = verdicts(BY_HAND).iloc[:0]
    assert list(win_rates(empty, NO_AUDIT, ["helpful"]).columns) == WIN_RATE_COLUMNS
    assert list(judge_agreement(empty).columns) == JUDGE_AGREEMENT_COLUMNS
    scores = pd.DataFrame(columns=["arm", "seed", "round", "prompt_id", "scorer", "value"])
    assert list(judge_score_agreement(empty, scores).columns) == SCORE_AGREEMENT_COLUMNS
    assert list(judge_score_agreement(verdicts(BY_HAND), scores).columns) == SCORE_AGREEMENT_COLUMNS


def test_outside_verdicts_in_one_order_are_comparisons():
    """Each comparison has one row, in whichever order it was shown: values 1, 0 (second, as "ab"), 1 (second, as "ba"), 1/2."""
    rows = verdicts({(0, "p0"): (FIRST, None), (0, "p1"): (SECOND, None), (0, "p2"): (None, SECOND), (0, "p3"): (None, TIE)})
    result = only(win_rates(rows.dropna(subset=["value"]), NO_AUDIT, ["helpful"]))
    assert (result.win_rate, result.agreed_win_rate, result.n_comparisons, result.n_missing) == (0.625, 0.625, 4, 0)
    assert result.note == ONE_ORDER
    assert math.isnan(result.first_position_rate)
    assert math.isnan(result.inconsistency_rate)


# the judge's own standing


def test_an_uninformative_judge_makes_no_claim():
    rows = three_seeds(np.random.default_rng(4), missing=0.0)
    chance = pd.concat([audited(axis="harmless"), audited(axis="helpful", accuracy=(0.55, 0.45, 0.65)), audited(axis="all")])
    result = win_rates(rows, chance, ["harmless", "helpful"], draws=100)
    good, bad, pooled = (only(result, axis) for axis in ("harmless", "helpful", "all"))
    assert (good.informative, good.p_value >= 0) == ("", True)
    for row in (bad, pooled):
        assert row.test == f"none: {row.informative}"
        assert row.informative
        assert math.isnan(row.p_value)
        assert row.ci_low < row.win_rate < row.ci_high


def test_an_axis_that_was_not_audited_is_held_to_all_that_was():
    bad = pd.concat([audited(axis=axis, accuracy=(0.5, 0.4, 0.6)) for axis in ("overall", "all")])
    assert uninformative_judge(bad, "judge", "helpful", ["helpful"])
    assert uninformative_judge(bad, "judge", "all", ["helpful"])
    assert not uninformative_judge(pd.concat([audited(axis="overall"), audited(axis="all")]), "judge", "helpful", ["helpful"])
    assert uninformative_judge(bad, "other", "helpful", ["helpful"]) == NOT_AUDITED


def test_a_judge_that_was_not_audited_is_tested_and_named():
    result = only(win_rates(verdicts(BY_HAND), NO_AUDIT, ["helpful"]))
    assert (result.informative, result.p_value > 0) == (NOT_AUDITED, True)
    assert win_rate_as_contrast(result._asdict())["test"].endswith("; judge not audited")


def test_a_win_rate_as_a_contrast():
    """.5625 is .0625 above 1/2; one comparison is missing and none was left out."""
    row = only(win_rates(verdicts(BY_HAND), audited(), ["helpful"]))._asdict()
    result = win_rate_as_contrast(row)
    assert set(result) == set(contrasts.COLUMNS)
    assert (result["scorer"], result["difference"], result["p_superior"], result["n_dropped"]) == ("judge/judge", 0.0625, 0.5625, 1)
    assert (result["ci_low"], result["ci_high"]) == pytest.approx((row["ci_low"] - 0.5, row["ci_high"] - 0.5))
    assert [result[name] for name in ("standard_error", "df", "p_value")] == [row[name] for name in ("standard_error", "df", "p_value")]
    assert math.isnan(result["hedges_g"])
    nothing = win_rate_as_contrast(only(win_rates(verdicts({(0, "p0"): (None, None)}), audited(), ["helpful"]))._asdict())
    assert math.isnan(nothing["difference"])
    assert nothing["n_dropped"] == 1


# judges against each other, and against scores


def test_agreement_of_two_judges_by_hand():
    """x: a, a, b, b; y: a, b, b, b: they agree on 3 of 4, by chance on 1/2 * 1/4 + 1/2 * 3/4 = 1/2; kappa (3/4 - 1/2) / (1/2) = 1/2.

    A fifth comparison has no verdict of y, a sixth was not asked of y.
    """
    a, b = (FIRST, SECOND), (SECOND, FIRST)
    x = {(0, "p0"): a, (0, "p1"): a, (0, "p2"): b, (0, "p3"): b, (0, "p4"): a, (0, "p5"): a}
    y = {(0, "p0"): a, (0, "p1"): b, (0, "p2"): b, (0, "p3"): b, (0, "p4"): (None, SECOND)}
    result = only(judge_agreement(pd.concat([verdicts(x, judge="x"), verdicts(y, judge="y")])))
    assert (result.judge, result.other, result.n, result.n_missing, result.n_clusters) == ("x", "y", 4, 1, 4)
    assert (result.kappa, result.raw) == (0.5, 0.75)


def test_agreement_is_sklearns_kappa():
    x, y = (three_seeds(np.random.default_rng(i), judge=judge) for i, judge in enumerate("xy"))
    result = judge_agreement(pd.concat([x, y]))
    both = [comparisons_from_verdicts(judged).set_index("prompt_id")["value"].to_numpy() for judged in (x, y)]
    known = ~np.isnan(both[0] + both[1])
    expected = cohen_kappa_score(*(np.sign(judged[known] - 0.5).astype(int) for judged in both))
    assert only(result).kappa == pytest.approx(expected)
    assert only(result).n == known.sum() == only(result, "helpful").n + only(result, "harmless").n
    assert only(result).ci_low < expected < only(result).ci_high


def test_judges_without_a_comparison_in_common():
    x, y = verdicts({(0, "p0"): (FIRST, SECOND)}, judge="x"), verdicts({(0, "p1"): (FIRST, SECOND)}, judge="y")
    result = only(judge_agreement(pd.concat([x, y])))
    assert (result.n, result.n_missing, result.note) == (0, 0, "no comparison was put to both")
    lost = verdicts({(0, "p0"): (FIRST, None)}, judge="z")
    assert "no item has both labels" in only(judge_agreement(pd.concat([x, lost]))).note


def test_against_scores_by_hand():
    """Comparisons 1, 1/4, 1/2, 1/2 and one missing; gold says a, a, b, equal, a: right, wrong, half, left out, missing: 1.5 of 3.

    Three clusters with deviations 1/2, -1/2, 0: variance 3/2 * 1/2 / 9 = 1/12, t(.975; 2) = 4.302653. Truth has a score of both
    responses for p0 only: 1 of 1, Wilson's interval of it, from 1 / (1 + 1.96^2).
    """
    gold = scored({"p0": (2, 1), "p1": (2, 1), "p2": (0, 1), "p3": (1, 1), "p4": (2, 1)})
    truth = scored({"p0": (1, 0), "p1": (1, NAN)}, "ground_truth")
    result = judge_score_agreement(verdicts(BY_HAND), pd.concat([gold, truth]))
    row, other = (only(result[result["scorer"] == name]) for name in ("gold", "ground_truth"))
    assert (row.agree, row.n, row.n_equal, row.n_missing, row.n_clusters) == (0.5, 3, 1, 1, 3)
    assert (row.ci_low, row.ci_high) == pytest.approx(share_interval(0.5, 1 / 12, 3, 4.302653), abs=1e-6)
    assert (other.agree, other.n, other.n_missing) == (1, 1, 4)
    assert (other.ci_low, other.ci_high) == pytest.approx((1 / (1 + 1.959964**2), 1), abs=1e-6)


def test_scores_are_those_of_the_round_that_was_judged():
    """ "3/1": arm_a's round 3 against arm_b's round 1; scores of other rounds are not looked at."""
    scores = pd.concat([scored({"p0": (2, 1)}, rounds=(3, 1)), scored({"p0": (0, 9)}, rounds=(1, 3))])
    rows = verdicts({(0, "p0"): (FIRST, SECOND)}, round="3/1")
    assert only(judge_score_agreement(rows, scores)).agree == 1
    assert only(judge_score_agreement(rows.assign(round="final"), scores)).n_missing == 1
