"""Win rates from judges' verdicts, and how judges agree with each other, with gold models and with the ground truth."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.analysis.results import POOLED
from apo_bench.config.schema import JUDGE
from apo_bench.judging.audit_report import uninformative
from apo_bench.stats import JudgedWinRate, agreement, clustered_share, judged_win_rate, length_controlled_win_rate

NOT_AUDITED = "not audited"
ONE_ORDER = "asked in one order only: position bias and inconsistency are not known"
PAIR = ["arm_a", "arm_b", "judge"]
COMPARISON_KEYS = ["arm_a", "arm_b", "seed_a", "seed_b", "round", "axis", "prompt_id"]  # the same for all judges of one comparison
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
    "judge", "other", "axis", "kappa", "ci_low", "ci_high", "raw", "raw_low", "raw_high", "n", "n_missing", "n_clusters", "note",
]  # fmt: skip
SCORE_AGREEMENT_COLUMNS = ["judge", "scorer", "axis", "agree", "ci_low", "ci_high", "n", "n_equal", "n_missing", "n_clusters"]


def comparisons_from_verdicts(judgments: pd.DataFrame) -> pd.DataFrame:
    """A row per judge and comparison: COMPARISON_KEYS, judge, cluster_id, length_a, length_b, value, agreed.

    `value` is the mean of both orders for arm_a, NaN unless both have a verdict. `agreed` follows the rule that a response wins only
    where it wins in both orders and everything else is a tie (Zheng et al., arXiv:2306.05685, section 3.4): a `value` of 1/4 or 3/4, a
    tie in one order and a winner in the other, becomes 1/2; two orders with different winners are 1/2 either way.
    A judge without any comparison in both orders (imported verdicts) has one verdict per comparison, and that is its value.
    """
    grouped = judgments.groupby([*COMPARISON_KEYS, "judge"], sort=True, dropna=False)
    compared = grouped.agg(
        cluster_id=("cluster_id", "first"),
        length_a=("length_a", "first"),
        length_b=("length_b", "first"),
        value=("value", "mean"),
        low=("value", "min"),
        high=("value", "max"),
        n_rows=("value", "size"),
        n_verdicts=("value", "count"),
    ).reset_index()
    needed = compared.groupby("judge")["n_rows"].transform("max").clip(upper=2)
    whole = (compared["n_verdicts"] == compared["n_rows"]) & (compared["n_rows"] >= needed)
    compared["value"] = compared["value"].where(whole)
    agreed = (compared["low"] > 0.5) | (compared["high"] < 0.5)
    compared["agreed"] = compared["value"].where(agreed | ~whole, 0.5)
    return compared.drop(columns=["low", "high", "n_rows", "n_verdicts"])


def win_rates(judgments: pd.DataFrame, audit: pd.DataFrame, axes: Sequence[str], *, draws: int = 1000) -> pd.DataFrame:
    """Win rates of arm_a over arm_b: a row per pair of arms, judge and axis (and "all"), sorted by pair and judge.

    Columns: WIN_RATE_COLUMNS.

    `judgments`: a row per verdict, with arm_a, arm_b, seed_a, seed_b, round, prompt_id, cluster_id, axis, judge, order, value (NaN where
    missing), failure, length_a, length_b (tokens; NaN unknown). `audit`: judge, axis, metric, value, ci_low, ci_high, n, n_missing.
    Rounds that differ from seed to seed (chosen on dev) make one row; several rounds of one seed make a row each.

    Up to `worst_high`, `inconsistency_rate`, `first_position_rate`, `scope` and `test`: see `judged_win_rate`. p-values are not adjusted.
    - tie_share: comparisons with a value of exactly 1/2. length_difference: mean of length_a - length_b over comparisons with both.
    - Missing verdicts are described by whose response was shown first (missing_first_a, missing_first_b: counts of verdicts), by reason
      (missing_why, in words; "not asked": no row, though another seed has one) and by missing_length_difference, as length_difference.
    - lc_*: `length_controlled_win_rate` over the lc_n comparisons with a value and both lengths, each weighing alike, with `draws` of
      its bootstrap: a sensitivity analysis.
    - agreed_*: the win rate, with interval, of `agreed` in `comparisons_from_verdicts`.
    - informative: "", "not audited", or why no claim may rest on this judge (`uninformative_judge`). An uninformative judge has no
      p-value, and `test` gives the reason. Where a test is impossible the row has no numbers and `test` gives the reason.
    """
    pairs = dict(iter(comparisons_from_verdicts(judgments).groupby(PAIR)))
    twice = set(judgments.loc[judgments.duplicated([*COMPARISON_KEYS, "judge"]), "judge"])  # judges that saw both orders
    rate_rows = []
    for pair, rows in judgments.groupby(PAIR, sort=True):
        a, b, judge = pair
        for rounds in round_groups(pairs[pair]):
            for axis in (*axes, POOLED):
                verdicts, pair_comparisons = (rows_at(frame, rounds, axis) for frame in (rows, pairs[pair]))
                names = {"arm_a": a, "arm_b": b, "axis": axis, "judge": judge, "round": round_label(rounds)}
                orders = 2 if judge in twice else 1
                numbers = _rate(verdicts, pair_comparisons, orders) | _missing(verdicts, pair_comparisons, orders)
                numbers |= _length_controlled(pair_comparisons, draws)
                if math.isnan(numbers["win_rate"]):  # only identical responses, or prompts that some seed lacks, are left
                    numbers |= dict.fromkeys(("tie_share", "lc_win_rate", "lc_low", "lc_high"), math.nan)
                rate_rows.append(names | _without_p_value(numbers, uninformative_judge(audit, str(judge), axis, axes)))
    return pd.DataFrame(rate_rows, columns=WIN_RATE_COLUMNS).astype(dict.fromkeys(COUNTS, int))


def uninformative_judge(audit: pd.DataFrame, judge: str, axis: str, axes: Sequence[str]) -> str:
    """Why no claim on this axis may rest on this judge, or ""; "not audited" where there is no audit of it.

    An axis that the audit does not list is judged by the pooled audit. Pooled axes need a judge that is informative on each of `axes`,
    as with gold models.
    """
    own = audit[audit["judge"] == judge]
    if own.empty:
        return NOT_AUDITED
    audited, tested = set(own["axis"]), axes if axis == POOLED and axes else (axis,)
    reasons = (uninformative(own, name if name in audited else POOLED) for name in tested)
    return next(filter(None, reasons), "")


def win_rate_as_contrast(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `win_rates` as a row of `contrasts`: the difference is the win rate minus 1/2, p_superior the win rate itself.

    Comparisons without a verdict count as dropped. There are no scores, so hedges_g is NaN. The caller sets `family`, `at` and
    `p_adjusted`.
    """
    same = ("arm_a", "arm_b", "axis", "round", "standard_error", "df", "p_value", "n_seeds", "n_clusters", "scope")
    contrast = {name: row[name] for name in same}
    contrast |= {name: row[of] - 0.5 for name, of in (("difference", "win_rate"), ("ci_low", "ci_low"), ("ci_high", "ci_high"))}
    audited = "" if row["informative"] != NOT_AUDITED or row["test"].startswith("none") else f"; judge {NOT_AUDITED}"
    nothing = dict.fromkeys(("kl", "hedges_g", "sd", "p_adjusted"), math.nan)
    named = {"scorer": f"{JUDGE}{row['judge']}", "family": "descriptive", "at": "", "sd_of": "", "test": f"{row['test']}{audited}"}
    return contrast | nothing | named | {"p_superior": row["win_rate"], "n_dropped": row["n_dropped"] + row["n_missing"]}


def verdicts_as_scores(judgments: pd.DataFrame, judge: str, a: str, b: str) -> pd.DataFrame:
    """One judge's comparisons of two arms as scores: a's score is the value, b's 1/2, so that their contrast is the win rate's.

    Columns: arm, seed, prompt_id, cluster_id, axis, value. Comparisons without a value are left out.
    """
    rows = judgments[(judgments["judge"] == judge) & (judgments["arm_a"] == a) & (judgments["arm_b"] == b)]
    compared = comparisons_from_verdicts(rows).dropna(subset=["value"]).rename(columns={"seed_a": "seed"})
    first = compared[["seed", "prompt_id", "cluster_id", "axis", "value"]].assign(arm=a)
    return pd.concat([first, first.assign(arm=b, value=0.5)], ignore_index=True)


def judge_agreement(judgments: pd.DataFrame) -> pd.DataFrame:
    """Cohen's kappa and raw agreement of every two judges on shared comparisons, by axis and on all: JUDGE_AGREEMENT_COLUMNS.

    A comparison is labelled by its value, above, at or below 1/2: a, tie or b. One that lacks either judge's verdict is counted in
    n_missing. Intervals are robust to clusters of prompts, across arms and seeds. Where there are no numbers, `note` has the reason.
    """
    compared = comparisons_from_verdicts(judgments)
    compared["label"] = np.sign(compared["value"] - 0.5).map({1.0: "a", 0.0: "tie", -1.0: "b"})
    agreement_rows = []
    for judge, other in combinations(sorted(compared["judge"].unique()), 2):
        first, second = (compared[compared["judge"] == name] for name in (judge, other))
        both = first.merge(second[[*COMPARISON_KEYS, "label"]], on=COMPARISON_KEYS, suffixes=("", "_other"))
        for axis, rows in _by_axis(both, compared):
            numbers: dict[str, Any] = {"n": 0, "n_missing": len(rows), "n_clusters": 0, "note": ""}
            try:
                result = agreement(rows["label"], rows["label_other"], clusters=rows["cluster_id"])
                numbers |= {name: getattr(result, name) for name in JUDGE_AGREEMENT_COLUMNS[3:-1]}
                numbers["note"] = result.test.removeprefix("none: ") if result.test.startswith("none") else ""
            except ValueError as error:
                numbers["note"] = _reason(error) if len(rows) else "no comparison was put to both"
            agreement_rows.append({"judge": judge, "other": other, "axis": axis, **numbers})
    return pd.DataFrame(agreement_rows, columns=JUDGE_AGREEMENT_COLUMNS)


def judge_score_agreement(judgments: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Agreement of each judge with each scorer (a gold model's mean, the ground truth), by axis and on all: SCORE_AGREEMENT_COLUMNS.

    `scores`: arm, seed, round, prompt_id, scorer, value, of the scorers wanted. A scorer's winner is the response with the higher score;
    comparisons with equal scores are left out and counted in n_equal. `agree` is the share of the other n comparisons on which judge and
    scorer have the same winner, a judge's tie counting 1/2, so that 1/2 is chance; its interval is robust to clusters of prompts.
    n_missing: comparisons that lack the judge's verdict or a score.
    """
    compared = comparisons_from_verdicts(judgments)
    rounds = compared["round"].astype(str).str.split("/", n=1)
    for side, place in (("a", 0), ("b", -1)):
        compared[f"at_{side}"] = rounds.str[place]
    agreement_rows = []
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
                decided = known[known["winner"] != 0]
                nothing = (math.nan, math.nan, math.nan, 0)
                *share, n_clusters = clustered_share(decided["agree"], decided["cluster_id"]) if len(decided) else nothing
                counts = (len(decided), len(known) - len(decided), len(part) - len(known), n_clusters)
                agreement_rows.append((judge, scorer, axis, *share, *counts))
    return pd.DataFrame(agreement_rows, columns=SCORE_AGREEMENT_COLUMNS)


def flag_uninformative_judges(
    frame: pd.DataFrame, audit: pd.DataFrame, axes: Sequence[str], columns: Sequence[str] = ("judge",)
) -> pd.DataFrame:
    """`frame` with a column `informative`: why no claim on its axis may rest on a judge in `columns`, "not audited", or ""."""
    reasons = []
    for row in frame.to_dict("records"):
        doubts = {row[name]: uninformative_judge(audit, str(row[name]), row["axis"], axes) for name in columns}
        reasons.append("; ".join(f"{judge}: {reason}" for judge, reason in doubts.items() if reason))
    return frame.assign(informative=reasons)


def round_groups(pair: pd.DataFrame) -> list[list[str]]:
    """The rounds that share a row: all of them where every seed has a single one, else each alone."""
    rounds = sorted(pair["round"].unique())
    together = pair.groupby("seed_a")["round"].nunique().max() == 1
    return [rounds] if together else [[round_] for round_ in rounds]


def round_label(rounds: Sequence[str]) -> str:
    """ "3" or "1+3/2": arm_a's rounds, then arm_b's if they differ."""
    sides = [sorted({round_.split("/")[side] for round_ in map(str, rounds)}) for side in (0, -1)]
    return "/".join(dict.fromkeys("+".join(side) for side in sides))


def rows_at(rows: pd.DataFrame, rounds: Sequence[str], axis: str) -> pd.DataFrame:
    """The rows of these rounds and this axis, sorted, so that the order of the file does not matter."""
    chosen = rows[rows["round"].isin(rounds)]
    chosen = chosen if axis == POOLED else chosen[chosen["axis"] == axis]
    return chosen.sort_values(["seed_a", "prompt_id", *(["order"] if "order" in rows else [])], kind="stable", ignore_index=True)


def _by_axis(rows: pd.DataFrame, named: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All rows, then those of each axis of `named`."""
    yield POOLED, rows
    for axis in sorted(named["axis"].unique()):
        yield axis, rows[rows["axis"] == axis]


def _rate(rows: pd.DataFrame, compared: pd.DataFrame, orders: int) -> dict[str, Any]:
    """The tested win rate of one pair, judge and axis, and the agreed win rate."""
    names = ("agreed_win_rate", "agreed_low", "agreed_high")
    try:
        rate = judged_win_rate(rows[[*TESTED, *(["order"] if orders == 2 else [])]])
        agreed = judged_win_rate(compared[TESTED[:-1]].assign(value=compared["agreed"]))
    except ValueError as error:
        reason = _reason(error) if len(compared) else "there is no comparison"
        nothing = dict.fromkeys((*JudgedWinRate.__dataclass_fields__, *names), math.nan) | dict.fromkeys(COUNTS, 0)
        n_missing = _n_expected(compared) - int(compared["value"].count())
        return nothing | {"n_missing": n_missing, "scope": "no result", "test": f"none: {reason}", "note": ""}
    note = "; ".join(filter(None, (rate.note, ONE_ORDER if orders == 1 else "")))
    return vars(rate) | {"note": note} | dict(zip(names, (agreed.win_rate, agreed.ci_low, agreed.ci_high), strict=True))


def _n_expected(compared: pd.DataFrame) -> int:
    """The number of comparisons if every seed had every prompt."""
    return compared["seed_a"].nunique() * compared["prompt_id"].nunique()


def _missing(rows: pd.DataFrame, compared: pd.DataFrame, orders: int) -> dict[str, Any]:
    """Ties, lengths and missing verdicts."""
    lost = rows[rows["value"].isna()]
    why = Counter(str(reason or "no reason recorded") for reason in lost["failure"])
    if (absent := orders * _n_expected(compared) - len(rows)) > 0:
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


def _length_controlled(compared: pd.DataFrame, draws: int) -> dict[str, Any]:
    known = compared.dropna(subset=["value", "length_a", "length_b"]).rename(columns={"seed_a": "seed"})
    names = ("lc_win_rate", "lc_low", "lc_high")
    try:
        rows = known[["seed", "prompt_id", "cluster_id", "value", "length_a", "length_b"]]
        controlled = length_controlled_win_rate(rows, draws=draws, seed=0)
    except ValueError as error:
        reason = _reason(error) if len(known) else "no comparison has a value and both lengths"
        return dict.fromkeys(names, math.nan) | {"lc_n": len(known), "lc_test": "none", "lc_note": reason}
    numbers = dict(zip(names, (controlled.lc_win_rate, controlled.ci_low, controlled.ci_high), strict=True))
    return numbers | {"lc_n": controlled.n, "lc_test": controlled.test, "lc_note": controlled.note}


def _without_p_value(numbers: dict[str, Any], reason: str) -> dict[str, Any]:
    """`numbers` without a p-value where the judge is uninformative."""
    if reason not in ("", NOT_AUDITED) and not math.isnan(numbers["win_rate"]):
        numbers |= {"p_value": math.nan, "test": f"none: {reason}"}
    return numbers | {"informative": reason}


def _reason(error: ValueError) -> str:
    """An error of apo_bench.stats without the name of the function."""
    return str(error).split(": ", 1)[-1]
