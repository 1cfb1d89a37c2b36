"""Verdicts made into win rates: by hand, against plain loops, mirrored, and where there is nothing to say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

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
from apo_bench.judging.verdicts import value_of

A, B, NAN = "apo_rjs", "golden_refresh", math.nan
AUDIT = ["judge", "axis", "metric", "value", "ci_low", "ci_high", "n", "n_missing"]
FIRST, TIE, SECOND = "first", "tie", "second"
CHOICES = (FIRST, TIE, SECOND, None)
Asked = Mapping[tuple[int, str], Sequence[Any]]  # (seed, prompt) -> the choice as "ab" and as "ba"


def verdicts(asked: Asked, lengths: Mapping[str, tuple[float, float]] | None = None, **fixed: Any) -> pd.DataFrame:
    """Rows of both orders. A prompt is its own cluster; lengths are 10 and 10 unless given; a missing verdict is unparsable."""
    rows = []
    for (seed, prompt), choices in asked.items():
        length_a, length_b = (lengths or {}).get(prompt, (10, 10))
        for order, choice in zip(("ab", "ba"), choices, strict=True):
            one = {"arm_a": A, "arm_b": B, "seed_a": seed, "seed_b": seed, "round": "3", "prompt_id": prompt, "cluster_id": prompt}
            one |= {"axis": "helpful", "judge": "judge", "order": order, "verdict": choice, "value": value_of(order, choice)}
            rows.append(one | {"failure": "" if choice else "unparsable", "length_a": length_a, "length_b": length_b} | fixed)
    return pd.DataFrame(rows)


def audited(judge: str = "judge", axis: str = "helpful", **metrics: tuple[float, float, float]) -> pd.DataFrame:
    good = {"accuracy": (0.8, 0.7, 0.9), "kappa": (0.6, 0.4, 0.8), "consistency": (0.9, 0.8, 1.0)} | metrics
    return pd.DataFrame([(judge, axis, metric, *values, 100, 0) for metric, values in good.items()], columns=AUDIT)


NO_AUDIT = pd.DataFrame(columns=AUDIT)


def only(frame: pd.DataFrame, axis: str = "all") -> Any:
    (row,) = frame[frame["axis"] == axis].itertuples()
    return row


BY_HAND: Asked = {
    (0, "p0"): (FIRST, SECOND),
    (0, "p1"): (TIE, FIRST),
    (0, "p2"): (FIRST, FIRST),
    (0, "p3"): (TIE, TIE),
    (0, "p4"): (None, FIRST),
}
LENGTHS = {"p0": (10, 8), "p1": (12, 8), "p2": (8, 8), "p3": (10, 8), "p4": (20, 8)}


def test_a_win_rate_by_hand():
    """Comparisons for a: 1, (1/2 + 0)/2 = 1/4, (1 + 0)/2 = 1/2, 1/2, missing; mean 2.25/4 = .5625.

    Squared deviations .4375^2 + .3125^2 + 2 * .0625^2 = .296875; error sqrt(.296875/3/4) = .157288; t(.975; 3) = 3.182446.
    The missing one has a loss as "ba": lost 0, won 1/2, so 2.25/5 = .45 to 2.75/5 = .55. Orders differ on p1 and p2 of four.
    First: 1 + 0 + 1/2 + 1 + 1 + 1 + 1/2 + 1/2 = 5.5 of 8. Ties: p2 and p3. Lengths differ by 2, 4, 0, 2, 12: mean 4.
    """
    found = only(win_rates(verdicts(BY_HAND, LENGTHS), audited(), ["helpful"]))
    assert (found.win_rate, found.standard_error, found.df) == pytest.approx((0.5625, 0.157288, 3), abs=1e-6)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.5625 - 3.182446 * 0.157288, 0.5625 + 3.182446 * 0.157288), abs=1e-5)
    assert found.p_value == pytest.approx(stats.ttest_1samp([1, 0.25, 0.5, 0.5], 0.5).pvalue)
    assert (found.n_seeds, found.n_clusters, found.n_comparisons, found.n_missing, found.n_dropped) == (1, 4, 4, 1, 0)
    assert (found.worst_low, found.worst_high) == pytest.approx((0.45, 0.55))
    assert (found.inconsistency_rate, found.first_position_rate, found.tie_share) == (0.5, 5.5 / 8, 0.5)
    assert (found.length_difference, found.missing_length_difference) == (4, 12)
    assert (found.missing_first_a, found.missing_first_b, found.missing_why) == (1, 0, "unparsable 1")
    assert (found.round, found.informative) == ("3", "")
    assert "these checkpoints only" in found.scope
    assert "the one tested is that of what is left only" in found.note


def test_disagree_is_tie_by_hand():
    """1/4 becomes 1/2: values 1, 1/2, 1/2, 1/2, mean .625, error .25/2, t(.975; 3) = 3.182446. Two opposite winners are 1/2 either way."""
    found = only(win_rates(verdicts(BY_HAND), audited(), ["helpful"]))
    assert (found.agreed_win_rate, found.agreed_low, found.agreed_high) == pytest.approx((0.625, 0.227194, 1.022806), abs=1e-6)


def test_all_sixteen_answers_to_a_comparison():
    """In each pair of choices (as "ab", as "ba") the value is the mean of both codes; only agreement in a winner survives the rule."""
    asked = {(0, f"{ab}/{ba}"): (ab, ba) for ab in CHOICES for ba in CHOICES}
    found = comparisons_from_verdicts(verdicts(asked)).set_index("prompt_id")
    expected = {
        "first/first": (0.5, 0.5), "first/tie": (0.75, 0.5), "first/second": (1, 1),
        "tie/first": (0.25, 0.5), "tie/tie": (0.5, 0.5), "tie/second": (0.75, 0.5),
        "second/first": (0, 0), "second/tie": (0.25, 0.5), "second/second": (0.5, 0.5),
    }  # fmt: skip
    for prompt, row in found.iterrows():
        assert (row["value"], row["agreed"]) == pytest.approx(expected.get(str(prompt), (NAN, NAN)), nan_ok=True), prompt


def test_a_comparison_without_a_row_is_missing():
    """p0 was asked in one order only, by a judge that asks both."""
    found = comparisons_from_verdicts(verdicts({(0, "p0"): (FIRST, SECOND), (0, "p1"): (FIRST, SECOND)}).iloc[1:]).set_index("prompt_id")
    assert found["value"].to_dict() == pytest.approx({"p0": NAN, "p1": 1}, nan_ok=True)


def test_a_comparison_that_was_not_asked_is_missing_and_said_so():
    """Two seeds, three prompts, of which seed 1 was not asked about p2: 6 comparisons, 1 missing; seed 0's of p2 is dropped.

    Had a lost it: values 1, 1, 1/2 and 1, 1, 0, mean .75; had a won it: 11/12.
    """
    win = (FIRST, SECOND)
    rows = verdicts({(0, "p0"): win, (0, "p1"): win, (0, "p2"): (TIE, TIE), (1, "p0"): win, (1, "p1"): win})
    found = only(win_rates(rows, audited(), ["helpful"], draws=100))
    assert (found.n_comparisons, found.n_missing, found.n_dropped, found.missing_why) == (4, 1, 1, "not asked 2")
    assert (found.win_rate, found.worst_low, found.worst_high) == pytest.approx((1, 0.75, 11 / 12))
    one = only(win_rates(rows[rows["prompt_id"] == "p2"], audited(), ["helpful"], draws=100))
    assert (one.n_missing, one.missing_why) == (0, "")


def test_length_control_is_the_statistics_on_comparisons():
    """Lengths that follow the verdicts are explained away; a comparison whose length is unknown is left out of it and of nothing else."""
    generator = np.random.default_rng(0)
    longer = generator.normal(0, 10, 200).round()
    wins = generator.random(200) < 1 / (1 + np.exp(-longer / 10 - 0.3))
    asked = {(0, f"p{i:03}"): (FIRST, SECOND) if won else (SECOND, FIRST) for i, won in enumerate(wins)}
    lengths = {f"p{i:03}": (100 + x, 100.0) for i, x in enumerate(longer)}
    found = only(win_rates(verdicts(asked, lengths | {"p000": (NAN, 100)}), audited(), ["helpful"], draws=200))
    assert (found.n_comparisons, found.lc_n) == (200, 199)
    assert 0 < found.lc_low < found.lc_win_rate < found.lc_high < 1
    assert found.length_difference == pytest.approx(longer[1:].mean())
    none = only(win_rates(verdicts(asked).assign(length_a=NAN), audited(), ["helpful"], draws=200))
    assert (none.lc_n, none.lc_note) == (0, "no comparison has a value and both lengths")
    assert math.isnan(none.lc_win_rate)
    assert math.isnan(none.length_difference)
    assert none.win_rate == pytest.approx(wins.mean())


# what is asked of what


def three_seeds(generator: np.random.Generator, *, missing: float = 0.1, **fixed: Any) -> pd.DataFrame:
    """Two axes, 12 prompts in 8 clusters, 3 seeds, verdicts at random, some missing for one of two reasons."""
    asked = {(seed, f"p{i:02}"): [CHOICES[x] for x in generator.integers(0, 3, 2)] for seed in range(3) for i in range(12)}
    found = verdicts(asked, **fixed)
    lost = generator.random(len(found)) < missing
    place = found["prompt_id"].str[1:].astype(int)
    return found.assign(
        cluster_id="c" + (place % 8).astype(str),
        axis=np.where(place < 7, "harmless", "helpful"),
        value=found["value"].where(~lost),
        verdict=found["verdict"].where(~lost, None),
        failure=np.where(lost, np.where(place < 4, "refused", "unparsable"), ""),
        length_a=20 + place,
        length_b=generator.integers(10, 40, len(found) // 2).repeat(2),
    )


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


@pytest.mark.parametrize("number", range(5))
def test_win_rates_are_those_of_plain_loops(number: int):
    rows = three_seeds(np.random.default_rng(number), missing=0.05)
    found = win_rates(rows, NO_AUDIT, ["harmless", "helpful"], draws=100)
    assert list(found.columns) == WIN_RATE_COLUMNS
    for axis in ("harmless", "helpful", "all"):
        for name, value in recomputed(rows if axis == "all" else rows[rows["axis"] == axis]).items():
            assert getattr(only(found, axis), name) == pytest.approx(value), (axis, name)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_order_of_rows_changes_nothing(number: int, order: int):
    rows = three_seeds(np.random.default_rng(number))
    shuffled = rows.sample(frac=1, random_state=order)
    for made in (lambda x: win_rates(x, NO_AUDIT, ["harmless", "helpful"], draws=100), judge_agreement):
        pd.testing.assert_frame_equal(made(rows), made(shuffled), check_exact=True)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_exchanged_arms_mirror_everything(number: int):
    """The other arm's win rates are 1 - x, its lengths the negative; what is about positions and ties stays."""
    rows = three_seeds(np.random.default_rng(number))
    names = {f"{name}_{side}": f"{name}_{other}" for name in ("arm", "seed", "length") for side, other in ("ab", "ba")}
    swapped = rows.rename(columns=names).assign(value=1 - rows["value"], order=rows["order"].map({"ab": "ba", "ba": "ab"}))
    one, other = (only(win_rates(x, NO_AUDIT, ["harmless", "helpful"], draws=100)) for x in (rows, swapped))
    for rate, low, high in (
        ("win_rate", "ci_low", "ci_high"),
        ("agreed_win_rate", "agreed_low", "agreed_high"),
        ("lc_win_rate", "lc_low", "lc_high"),
        ("win_rate", "worst_low", "worst_high"),
    ):
        expected = [1 - getattr(other, name) for name in (rate, high, low)]
        assert [getattr(one, name) for name in (rate, low, high)] == pytest.approx(expected, nan_ok=True), rate
    for name in ("p_value", "standard_error", "n_missing", "tie_share", "inconsistency_rate", "first_position_rate"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), nan_ok=True), name
    assert one.length_difference == pytest.approx(-other.length_difference)
    assert (one.missing_first_a, one.missing_first_b) == (other.missing_first_b, other.missing_first_a)


def test_rounds_chosen_by_seed_are_one_row_and_several_of_one_seed_are_several():
    rows = three_seeds(np.random.default_rng(1), missing=0.0)
    chosen = rows.assign(round=rows["seed_a"].map({0: "1/2", 1: "3/2", 2: "3/2"}))
    found = win_rates(chosen, NO_AUDIT, ["harmless"], draws=100)
    assert only(found).round == "1+3/2"
    assert only(found).n_seeds == 3
    both = pd.concat([rows.assign(round="1"), rows.assign(round="2")])
    assert win_rates(both, NO_AUDIT, ["harmless"], draws=100)["round"].tolist() == ["1", "1", "2", "2"]


def test_pairs_and_judges_do_not_mix():
    parts = [
        three_seeds(np.random.default_rng(i), judge=judge, arm_a=arm) for i, (judge, arm) in enumerate((("x", A), ("y", A), ("x", "rjs")))
    ]
    found = win_rates(pd.concat(parts), NO_AUDIT, ["harmless", "helpful"], draws=100)
    assert found[["arm_a", "judge"]].drop_duplicates().to_numpy().tolist() == [[A, "x"], [A, "y"], ["rjs", "x"]]
    alone = pd.concat([win_rates(part, NO_AUDIT, ["harmless", "helpful"], draws=100) for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(found, alone)


# where there is nothing, or little, to say


def test_two_seeds_have_an_interval_and_no_p_value():
    rows = three_seeds(np.random.default_rng(3), missing=0.0)
    found = only(win_rates(rows[rows["seed_a"] < 2], NO_AUDIT, ["harmless"], draws=100))
    assert (found.n_seeds, found.test) == (2, "none: two seeds give an interval only")
    assert math.isnan(found.p_value)
    assert found.ci_low < found.win_rate < found.ci_high


def test_all_missing_is_a_row_with_a_reason():
    found = only(win_rates(verdicts({(0, f"p{i}"): (None, FIRST) for i in range(3)}), audited(), ["helpful"]))
    assert (found.n_comparisons, found.n_missing, found.missing_first_a, found.missing_first_b) == (0, 3, 3, 0)
    assert found.test.startswith("none: 0 cluster(s) with a comparison in every seed")
    assert all(math.isnan(getattr(found, name)) for name in ("win_rate", "p_value", "lc_win_rate", "agreed_win_rate", "tie_share"))


def test_what_the_statistics_refuse_is_a_row_with_their_reason():
    rows = verdicts({(seed, f"p{i}"): (FIRST, TIE) for seed in range(2) for i in range(3)})
    twice = only(win_rates(pd.concat([rows, rows]), audited(), ["helpful"]))
    assert "rows repeat" in twice.test
    tangled = only(win_rates(rows.assign(seed_b=0), audited(), ["helpful"]))
    assert "seeds must map one to one" in tangled.test
    assert only(win_rates(rows, audited(), ["other"]), "other").test == "none: no comparison was asked"


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
    found = only(win_rates(rows.dropna(subset=["value"]), NO_AUDIT, ["helpful"]))
    assert (found.win_rate, found.agreed_win_rate, found.n_comparisons, found.n_missing) == (0.625, 0.625, 4, 0)
    assert found.note == ONE_ORDER
    assert math.isnan(found.first_position_rate)
    assert math.isnan(found.inconsistency_rate)


# the judge's own standing


def test_an_uninformative_judge_makes_no_claim():
    rows = three_seeds(np.random.default_rng(4), missing=0.0)
    chance = pd.concat([audited(axis="harmless"), audited(axis="helpful", accuracy=(0.55, 0.45, 0.65)), audited(axis="all")])
    found = win_rates(rows, chance, ["harmless", "helpful"], draws=100)
    good, bad, pooled = (only(found, axis) for axis in ("harmless", "helpful", "all"))
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
    found = only(win_rates(verdicts(BY_HAND), NO_AUDIT, ["helpful"]))
    assert (found.informative, found.p_value > 0) == (NOT_AUDITED, True)
    assert win_rate_as_contrast(found._asdict())["test"].endswith("; judge not audited")


def test_a_win_rate_as_a_contrast():
    """.5625 is .0625 above 1/2; one comparison is missing and none was left out."""
    row = only(win_rates(verdicts(BY_HAND), audited(), ["helpful"]))._asdict()
    found = win_rate_as_contrast(row)
    assert set(found) == set(contrasts.COLUMNS)
    assert (found["scorer"], found["difference"], found["p_superior"], found["n_dropped"]) == ("judge/judge", 0.0625, 0.5625, 1)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((row["ci_low"] - 0.5, row["ci_high"] - 0.5))
    assert [found[name] for name in ("standard_error", "df", "p_value")] == [row[name] for name in ("standard_error", "df", "p_value")]
    assert math.isnan(found["hedges_g"])
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
    found = only(judge_agreement(pd.concat([verdicts(x, judge="x"), verdicts(y, judge="y")])))
    assert (found.judge, found.other, found.n, found.n_missing, found.n_clusters) == ("x", "y", 4, 1, 4)
    assert (found.kappa, found.raw) == (0.5, 0.75)


def test_agreement_is_sklearns_kappa():
    x, y = (three_seeds(np.random.default_rng(i), judge=judge) for i, judge in enumerate("xy"))
    found = judge_agreement(pd.concat([x, y]))
    both = [comparisons_from_verdicts(one).set_index("prompt_id")["value"].to_numpy() for one in (x, y)]
    known = ~np.isnan(both[0] + both[1])
    expected = cohen_kappa_score(*(np.sign(one[known] - 0.5).astype(int) for one in both))
    assert only(found).kappa == pytest.approx(expected)
    assert only(found).n == known.sum() == only(found, "helpful").n + only(found, "harmless").n
    assert only(found).ci_low < expected < only(found).ci_high


def test_judges_without_a_comparison_in_common():
    x, y = verdicts({(0, "p0"): (FIRST, SECOND)}, judge="x"), verdicts({(0, "p1"): (FIRST, SECOND)}, judge="y")
    found = only(judge_agreement(pd.concat([x, y])))
    assert (found.n, found.n_missing, found.note) == (0, 0, "no comparison was asked of both")
    lost = verdicts({(0, "p0"): (FIRST, None)}, judge="z")
    assert "no item has both labels" in only(judge_agreement(pd.concat([x, lost]))).note


def scored(values: Mapping[str, tuple[float, float]], scorer: str = "gold", rounds: tuple[int, int] = (3, 3)) -> pd.DataFrame:
    rows = [
        (arm, 0, round_, prompt, scorer, x)
        for prompt, both in values.items()
        for arm, round_, x in zip((A, B), rounds, both, strict=True)
        if not math.isnan(x)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "round", "prompt_id", "scorer", "value"])


def test_against_scores_by_hand():
    """Comparisons 1, 1/4, 1/2, 1/2 and one missing; gold says a, a, b, equal, a: right, wrong, half, left out, missing: 1.5 of 3.

    Three clusters with deviations 1/2, -1/2, 0: error sqrt(3/2 * 1/2) / 3 = .288675, t(.975; 2) = 4.302653. Truth has a score of both
    responses for p0 only: 1 of 1, Wilson's interval of it, from 1 / (1 + 1.96^2).
    """
    gold = scored({"p0": (2, 1), "p1": (2, 1), "p2": (0, 1), "p3": (1, 1), "p4": (2, 1)})
    truth = scored({"p0": (1, 0), "p1": (1, NAN)}, "ground_truth")
    found = judge_score_agreement(verdicts(BY_HAND), pd.concat([gold, truth]))
    row, other = (only(found[found["scorer"] == name]) for name in ("gold", "ground_truth"))
    assert (row.agree, row.n, row.n_equal, row.n_missing, row.n_clusters) == (0.5, 3, 1, 1, 3)
    assert (row.ci_low, row.ci_high) == pytest.approx((0.5 - 4.302653 * 0.288675, 0.5 + 4.302653 * 0.288675), abs=1e-5)
    assert (other.agree, other.n, other.n_missing) == (1, 1, 4)
    assert (other.ci_low, other.ci_high) == pytest.approx((1 / (1 + 1.959964**2), 1), abs=1e-6)


def test_scores_are_those_of_the_round_that_was_judged():
    """ "3/1": arm_a's round 3 against arm_b's round 1; scores of other rounds are not looked at."""
    scores = pd.concat([scored({"p0": (2, 1)}, rounds=(3, 1)), scored({"p0": (0, 9)}, rounds=(1, 3))])
    rows = verdicts({(0, "p0"): (FIRST, SECOND)}, round="3/1")
    assert only(judge_score_agreement(rows, scores)).agree == 1
    assert only(judge_score_agreement(rows.assign(round="final"), scores)).n_missing == 1
