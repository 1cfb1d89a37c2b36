"""From verdicts to win rates, with every doubt beside them; how judges agree with each other, with gold and with the truth."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.analysis.results import POOLED
from apo_bench.config.schema import JUDGE
from apo_bench.judging.audit import uninformative
from apo_bench.stats import JudgedWinRate, agreement, clustered_mean, judged_win_rate, length_controlled_win_rate

NOT_AUDITED = "not audited"
ONE_ORDER = "asked in one order only: position bias and inconsistency are not known"
PAIR = ["arm_a", "arm_b", "judge"]
COMPARISON_KEYS = ["arm_a", "arm_b", "seed_a", "seed_b", "round", "axis", "prompt_id"]  # what two judges of one comparison share
TESTED = ["seed_a", "seed_b", "prompt_id", "cluster_id", "value"]
WIN_RATE_COLUMNS = [
    "arm_a", "arm_b", "axis", "judge", "round", "win_rate", "standard_error", "df", "ci_low", "ci_high", "p_value", "n_seeds",
    "n_clusters", "n_comparisons", "n_missing", "n_dropped", "worst_low", "worst_high", "inconsistency_rate", "first_position_rate",
    "tie_share", "length_difference", "missing_first_a", "missing_first_b", "missing_why", "missing_length_difference", "lc_win_rate",
    "lc_low", "lc_high", "lc_n", "lc_test", "lc_note", "agreed_win_rate", "agreed_low", "agreed_high", "informative", "scope", "test",
    "note",
]  # fmt: skip
COUNTS = ["n_seeds", "n_clusters", "n_comparisons", "n_missing", "n_dropped", "missing_first_a", "missing_first_b", "lc_n"]
JUDGE_AGREEMENT_COLUMNS = [
    "judge",
    "other",
    "axis",
    "kappa",
    "ci_low",
    "ci_high",
    "raw",
    "raw_low",
    "raw_high",
    "n",
    "n_missing",
    "n_clusters",
    "note",
]
SCORE_AGREEMENT_COLUMNS = ["judge", "scorer", "axis", "agree", "ci_low", "ci_high", "n", "n_equal", "n_missing", "n_clusters"]


def comparisons_from_verdicts(judgments: pd.DataFrame) -> pd.DataFrame:
    """A row per comparison: its keys, cluster_id, value, agreed, length_a, length_b.

    `value` is the mean of both orders for arm_a, NaN unless both have a verdict. `agreed` is the same under the rule that a response
    wins only where both orders say so and everything else is a tie (Zheng et al., arXiv:2306.05685, section 3.4): what `value` puts at
    1/4 or 3/4, a tie in one order and a winner in the other, becomes 1/2; two orders that name different winners have 1/2 either way.
    A judge that was never asked both orders of anything (outside verdicts) has one row a comparison, and that row's value.
    """
    grouped = judgments.groupby([*COMPARISON_KEYS, "judge"], sort=True, dropna=False)
    found = grouped.agg(
        cluster_id=("cluster_id", "first"),
        length_a=("length_a", "first"),
        length_b=("length_b", "first"),
        value=("value", "mean"),
        low=("value", "min"),
        high=("value", "max"),
        asked=("value", "size"),
        answered=("value", "count"),
    ).reset_index()
    needed = found.groupby("judge")["asked"].transform("max").clip(upper=2)
    whole = (found["answered"] == found["asked"]) & (found["asked"] >= needed)
    found["value"] = found["value"].where(whole)
    agreed = (found["low"] > 0.5) | (found["high"] < 0.5)
    found["agreed"] = found["value"].where(agreed | ~whole, 0.5)
    return found.drop(columns=["low", "high", "asked", "answered"])


def win_rates(
    judgments: pd.DataFrame, audit: pd.DataFrame, axes: Sequence[str], *, draws: int = 1000, seed: int = 0, confidence: float = 0.95
) -> pd.DataFrame:
    """Win rates of arm_a over arm_b: a row per pair of arms, judge and axis (and "all"), sorted by pair and judge; columns COLUMNS.

    `judgments`: a row per verdict, with arm_a, arm_b, seed_a, seed_b, round, prompt_id, cluster_id, axis, judge, order, value (NaN where
    missing), failure, length_a, length_b (tokens; NaN unknown). `audit`: judge, axis, metric, value, ci_low, ci_high, n, n_missing.
    Rounds that differ from seed to seed (chosen on dev) make one row; several rounds of one seed make a row each.

    Up to `worst_high`, `inconsistency_rate`, `first_position_rate`, `scope` and `test`: see `judged_win_rate`. p-values are not adjusted.
    - tie_share: comparisons that come out at exactly 1/2. length_difference: mean of length_a - length_b over comparisons with both.
    - A comparison is missing, not an arm's answer; what can be told is whose answer was shown first where a verdict is missing
      (missing_first_a, missing_first_b: verdicts), why (missing_why, in words; "not asked": no row, though another seed has one), and
      whether the responses differ in length there (missing_length_difference, as length_difference).
    - lc_*: `length_controlled_win_rate` over the lc_n comparisons with a value and both lengths, each weighing alike, with `draws` and
      `seed` of its bootstrap: a sensitivity analysis.
    - agreed_*: the win rate, with interval, under the rule of `comparisons`, disagree-is-tie.
    - informative: "", or why no claim may rest on this judge (`doubt`), or "not audited". A judge that is uninformative has no p-value,
      and `test` says why. What the statistics refuse is a row without numbers whose `test` gives their reason.
    """
    pairs = dict(iter(comparisons_from_verdicts(judgments).groupby(PAIR)))
    twice = set(judgments.loc[judgments.duplicated([*COMPARISON_KEYS, "judge"]), "judge"])  # the judges that were asked both orders
    found = []
    for pair, rows in judgments.groupby(PAIR, sort=True):
        a, b, judge = pair
        for rounds in _rounds(pairs[pair]):
            for axis in (*axes, POOLED):
                verdicts, its = (_at(one, rounds, axis) for one in (rows, pairs[pair]))
                names = {"arm_a": a, "arm_b": b, "axis": axis, "judge": judge, "round": _label(rounds)}
                orders = 2 if judge in twice else 1
                numbers = _rate(verdicts, its, orders, confidence) | _missing(verdicts, its, orders)
                numbers |= _length_controlled(its, draws, seed, confidence)
                if math.isnan(numbers["win_rate"]):  # what is left are identical responses, or prompts that some seed lacks
                    numbers |= dict.fromkeys(("tie_share", "lc_win_rate", "lc_low", "lc_high"), math.nan)
                found.append(names | _held(numbers, uninformative_judge(audit, str(judge), axis, axes)))
    return pd.DataFrame(found, columns=WIN_RATE_COLUMNS).astype(dict.fromkeys(COUNTS, int))


def uninformative_judge(audit: pd.DataFrame, judge: str, axis: str, axes: Sequence[str]) -> str:
    """Why no claim on this axis may rest on this judge, or ""; "not audited" where there is no audit of it.

    An axis that the audit does not tell apart is held to all that was audited. Pooled axes need a judge that is informative on each of
    `axes`, as with gold models.
    """
    own = audit[audit["judge"] == judge]
    if own.empty:
        return NOT_AUDITED
    audited = set(own["axis"])
    reasons = (uninformative(own, one if one in audited else POOLED) for one in (axes if axis == POOLED and axes else (axis,)))
    return next(filter(None, reasons), "")


def win_rate_as_contrast(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `win_rates` as one of contrasts.csv: the difference is the win rate's from 1/2, and P(a > b) the win rate itself.

    What was not compared because a verdict is missing counts as dropped. There are no scores, so no g. Family, place and adjusted
    p-value are the caller's to say.
    """
    same = ("arm_a", "arm_b", "axis", "round", "standard_error", "df", "p_value", "n_seeds", "n_clusters", "scope")
    found = {name: row[name] for name in same}
    found |= {name: row[of] - 0.5 for name, of in (("difference", "win_rate"), ("ci_low", "ci_low"), ("ci_high", "ci_high"))}
    audited = "" if row["informative"] != NOT_AUDITED or row["test"].startswith("none") else f"; judge {NOT_AUDITED}"
    nothing = dict.fromkeys(("kl", "hedges_g", "sd", "p_adjusted"), math.nan)
    named = {"scorer": f"{JUDGE}{row['judge']}", "family": "descriptive", "at": "", "sd_of": "", "test": f"{row['test']}{audited}"}
    return found | nothing | named | {"p_superior": row["win_rate"], "n_dropped": row["n_dropped"] + row["n_missing"]}


def verdicts_as_scores(judgments: pd.DataFrame, judge: str, a: str, b: str) -> pd.DataFrame:
    """One judge's comparisons of two arms as scores: arm `a` has the value of each, arm `b` 1/2, so that a contrast is the win rate's.

    Columns arm, seed, prompt_id, cluster_id, axis, value; comparisons without a value are left out.
    """
    rows = judgments[(judgments["judge"] == judge) & (judgments["arm_a"] == a) & (judgments["arm_b"] == b)]
    compared = comparisons_from_verdicts(rows).dropna(subset=["value"]).rename(columns={"seed_a": "seed"})
    first = compared[["seed", "prompt_id", "cluster_id", "axis", "value"]].assign(arm=a)
    return pd.concat([first, first.assign(arm=b, value=0.5)], ignore_index=True)


def judge_agreement(judgments: pd.DataFrame) -> pd.DataFrame:
    """Every two judges, by axis and on all: Cohen's kappa and raw agreement on comparisons that both were asked; columns BETWEEN.

    A comparison is labelled by its value, above, at or below 1/2: a, tie or b. One that either judge left without a verdict is counted in
    n_missing. Intervals are robust to clusters of prompts, over which arms and seeds are not told apart. Where nothing can be said, `note`
    has the reason.
    """
    compared = comparisons_from_verdicts(judgments)
    compared["label"] = np.sign(compared["value"] - 0.5).map({1.0: "a", 0.0: "tie", -1.0: "b"})
    found = []
    for judge, other in combinations(sorted(compared["judge"].unique()), 2):
        first, second = (compared[compared["judge"] == one] for one in (judge, other))
        both = first.merge(second[[*COMPARISON_KEYS, "label"]], on=COMPARISON_KEYS, suffixes=("", "_other"))
        for axis, rows in _by_axis(both, compared):
            numbers: dict[str, Any] = {"n": 0, "n_missing": len(rows), "n_clusters": 0, "note": ""}
            try:
                one = agreement(rows["label"], rows["label_other"], clusters=rows["cluster_id"])
                numbers |= {name: getattr(one, name) for name in JUDGE_AGREEMENT_COLUMNS[3:-1]}
                numbers["note"] = one.test.removeprefix("none: ") if one.test.startswith("none") else ""
            except ValueError as error:
                numbers["note"] = _reason(error) if len(rows) else "no comparison was asked of both"
            found.append({"judge": judge, "other": other, "axis": axis, **numbers})
    return pd.DataFrame(found, columns=JUDGE_AGREEMENT_COLUMNS)


def judge_score_agreement(judgments: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Each judge against each scorer (a gold model's mean, the ground truth), by axis and on all; columns AGAINST.

    `scores`: arm, seed, round, prompt_id, scorer, value, of the scorers to be looked at. A scorer names the response with the higher
    score the winner; where both score the same it names none, and the comparison is left out and counted in n_equal. `agree` is the
    share of the other n on which the judge names the same winner, a judge's tie counting 1/2, so that 1/2 is chance; its interval is
    robust to clusters of prompts. n_missing: comparisons that lack the judge's verdict or a score.
    """
    compared = comparisons_from_verdicts(judgments)
    rounds = compared["round"].astype(str).str.split("/", n=1)
    for side, place in (("a", 0), ("b", -1)):
        compared[f"at_{side}"] = rounds.str[place]
    found = []
    for scorer, own in scores.assign(round=scores["round"].astype(str)).groupby("scorer", sort=True):
        value = own.set_index(["arm", "seed", "round", "prompt_id"])["value"]
        a, b = (
            value.reindex(pd.MultiIndex.from_frame(compared[[f"arm_{side}", f"seed_{side}", f"at_{side}", "prompt_id"]])).to_numpy(float)
            for side in ("a", "b")
        )
        named = compared.assign(winner=np.sign(a - b), agree=(1 + np.sign(a - b) * np.sign(compared["value"] - 0.5)) / 2)
        for judge, rows in named.groupby("judge", sort=True):
            for axis, part in _by_axis(rows, rows):
                known = part.dropna(subset=["agree"])
                told = known[known["winner"] != 0]
                mean, low, high, n_clusters = math.nan, math.nan, math.nan, 0
                if len(told):
                    mean, low, high, n_clusters = clustered_mean(told["agree"], told["cluster_id"])
                counts = (len(told), len(known) - len(told), len(part) - len(known), n_clusters)
                found.append((judge, scorer, axis, mean, low, high, *counts))
    return pd.DataFrame(found, columns=SCORE_AGREEMENT_COLUMNS)


def flag_uninformative_judges(
    frame: pd.DataFrame, audit: pd.DataFrame, axes: Sequence[str], columns: Sequence[str] = ("judge",)
) -> pd.DataFrame:
    """`frame`, which has an axis, with a column `informative`: why no claim may rest on a judge in `columns`, "not audited", or ""."""
    found = []
    for row in frame.to_dict("records"):
        doubts = {row[name]: uninformative_judge(audit, str(row[name]), row["axis"], axes) for name in columns}
        found.append("; ".join(f"{judge}: {reason}" for judge, reason in doubts.items() if reason))
    return frame.assign(informative=found)


def _rounds(pair: pd.DataFrame) -> list[list[str]]:
    """The rounds that make a row: all together where every seed has one, else each alone."""
    rounds = sorted(pair["round"].unique())
    together = pair.groupby("seed_a")["round"].nunique().max() == 1
    return [rounds] if together else [[one] for one in rounds]


def _label(rounds: Sequence[str]) -> str:
    """ "3" or "1+3/2": arm_a's rounds, then arm_b's if they differ."""
    sides = [sorted({one.split("/")[side] for one in map(str, rounds)}) for side in (0, -1)]
    return "/".join(dict.fromkeys("+".join(side) for side in sides))


def _at(rows: pd.DataFrame, rounds: Sequence[str], axis: str) -> pd.DataFrame:
    """The rows of these rounds and this axis, in an order that does not depend on the file's."""
    chosen = rows[rows["round"].isin(rounds)]
    chosen = chosen if axis == POOLED else chosen[chosen["axis"] == axis]
    return chosen.sort_values(["seed_a", "prompt_id", *(["order"] if "order" in rows else [])], kind="stable", ignore_index=True)


def _by_axis(rows: pd.DataFrame, named: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All rows, then those of each axis that `named` has."""
    yield POOLED, rows
    for axis in sorted(named["axis"].unique()):
        yield axis, rows[rows["axis"] == axis]


def _rate(rows: pd.DataFrame, compared: pd.DataFrame, orders: int, confidence: float) -> dict[str, Any]:
    """The tested win rate of one question, and that under disagree-is-tie."""
    try:
        one = judged_win_rate(rows[[*TESTED, *(["order"] if orders == 2 else [])]], confidence=confidence)
        agreed = judged_win_rate(compared[TESTED[:-1]].assign(value=compared["agreed"]), confidence=confidence)
    except ValueError as error:
        reason = _reason(error) if len(compared) else "no comparison was asked"
        nothing = dict.fromkeys(JudgedWinRate.__dataclass_fields__, math.nan) | dict.fromkeys(COUNTS, 0)
        lost = {"n_missing": _asked(compared) - int(compared["value"].count()), "scope": "no result", "test": f"none: {reason}", "note": ""}
        return nothing | lost | dict.fromkeys(("agreed_win_rate", "agreed_low", "agreed_high"), math.nan)
    note = "; ".join(filter(None, (one.note, ONE_ORDER if orders == 1 else "")))
    under = {"agreed_win_rate": agreed.win_rate, "agreed_low": agreed.ci_low, "agreed_high": agreed.ci_high}
    return vars(one) | {"note": note} | under


def _asked(compared: pd.DataFrame) -> int:
    """How many comparisons there would be had every seed been asked about every prompt."""
    return compared["seed_a"].nunique() * compared["prompt_id"].nunique()


def _missing(rows: pd.DataFrame, compared: pd.DataFrame, orders: int) -> dict[str, Any]:
    """What can be told of ties, lengths and missing verdicts without a test."""
    lost = rows[rows["value"].isna()]
    why = Counter(str(reason or "no reason recorded") for reason in lost["failure"])
    if (absent := orders * _asked(compared) - len(rows)) > 0:
        why["not asked"] = absent
    reasons = sorted(why.items(), key=lambda item: (-item[1], item[0]))
    longer = compared["length_a"] - compared["length_b"]
    missing = compared["value"].isna()
    return {
        "tie_share": float((compared.loc[~missing, "value"] == 0.5).mean()),
        "length_difference": float(longer.mean()),
        "missing_first_a": int((lost["order"] == "ab").sum()),
        "missing_first_b": int((lost["order"] == "ba").sum()),
        "missing_why": ", ".join(f"{reason} {n}" for reason, n in reasons),
        "missing_length_difference": float(longer[missing].mean()),
    }


def _length_controlled(compared: pd.DataFrame, draws: int, seed: int, confidence: float) -> dict[str, Any]:
    known = compared.dropna(subset=["value", "length_a", "length_b"]).rename(columns={"seed_a": "seed"})
    names = ("lc_win_rate", "lc_low", "lc_high")
    try:
        one = length_controlled_win_rate(
            known[["seed", "prompt_id", "cluster_id", "value", "length_a", "length_b"]], draws=draws, seed=seed, confidence=confidence
        )
    except ValueError as error:
        reason = _reason(error) if len(known) else "no comparison has a value and both lengths"
        return dict.fromkeys(names, math.nan) | {"lc_n": len(known), "lc_test": "none", "lc_note": reason}
    numbers = dict(zip(names, (one.lc_win_rate, one.ci_low, one.ci_high), strict=True))
    return numbers | {"lc_n": one.n, "lc_test": one.test, "lc_note": one.note}


def _held(numbers: dict[str, Any], reason: str) -> dict[str, Any]:
    """`numbers` without a p-value where the judge is uninformative."""
    if reason not in ("", NOT_AUDITED) and not math.isnan(numbers["win_rate"]):
        numbers |= {"p_value": math.nan, "test": f"none: {reason}"}
    return numbers | {"informative": reason}


def _reason(error: ValueError) -> str:
    """An error of the statistics without the name of the function that was called."""
    return str(error).split(": ", 1)[-1]
