"""Several judges on the same comparisons: win rates that hold for other judges like them, and each judge's ranking of the arms."""

import math
from dataclasses import asdict

import pandas as pd

from apo_bench.analysis.results import POOLED
from apo_bench.analysis.win_rates import NOT_AUDITED, comparisons_from_verdicts, round_groups, round_label, rows_at
from apo_bench.stats import AcrossJudges, bradley_terry, davidson, win_rate_across_judges

FEWEST = 3  # arms in a ranking; of two the win rate says everything
KEYS = ["arm_a", "arm_b", "axis", "round"]
ACROSS_COLUMNS = [*KEYS, "judges", *AcrossJudges.__dataclass_fields__]
RANKING_COLUMNS = [
    "judge", "arm", "strength", "standard_error", "ci_low", "ci_high", "tie", "tie_low", "tie_high", "n", "n_ties",
    "n_clusters", "scope", "test", "note",
]  # fmt: skip


def across_judges(judgments: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """The win rate of arm_a over arm_b across judges, a row for each pair, axis and round with two informative judges: ACROSS_COLUMNS.

    `rates`: the rows of `win_rates`, which say what judges are informative. Numbers: `win_rate_across_judges`, `mean` being the win rate;
    `judges` lists them. What the statistics refuse (no prompt that every judge has in every seed, say) has no row.
    """
    compared, across = comparisons_from_verdicts(judgments), []
    known = rates[(rates["informative"] == "") & rates["win_rate"].notna()]
    for key, rows in known.groupby(KEYS, sort=True):
        a, b, axis, label = key
        judges = sorted(rows["judge"])
        own = compared[(compared["arm_a"] == a) & (compared["arm_b"] == b) & compared["judge"].isin(judges)]
        for rounds in round_groups(own) if len(judges) > 1 else ():
            chosen = rows_at(own, rounds, str(axis)).rename(columns={"seed_a": "seed"})
            try:
                result = win_rate_across_judges(chosen[["judge", "seed", "prompt_id", "cluster_id", "value"]])
            except ValueError:
                continue
            if round_label(rounds) == label:
                across.append(dict(zip(KEYS, key, strict=True)) | {"judges": ", ".join(judges)} | asdict(result))
    return pd.DataFrame(across, columns=ACROSS_COLUMNS)


def judge_ranking(judgments: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """The arms' strengths by each judge, all axes pooled, strongest first: RANKING_COLUMNS; of at least FEWEST arms.

    A response wins a comparison where it wins in both orders, and all else is a tie (`agreed` of `comparisons_from_verdicts`). With ties
    strengths are Davidson's, and `tie` is the chance of a tie between equals; without any, or where no finite estimate exists, Bradley and
    Terry's, and `note` says more. Strengths are log-odds above the arms' mean, errors those of new prompts: seeds are not drawn again.
    Of several rounds the last counts. Judges that their audit shows to be uninformative have no rows.
    """
    doubted = set(rates.loc[(rates["axis"] == POOLED) & ~rates["informative"].isin(["", NOT_AUDITED]), "judge"])
    compared = comparisons_from_verdicts(judgments[~judgments["judge"].isin(doubted)])
    battles = compared.drop(columns="value").rename(columns={"arm_a": "a", "arm_b": "b", "agreed": "value"})
    battles = battles.sort_values("round", kind="stable", key=lambda labels: labels.map(_rounds))
    battles = (
        battles.drop_duplicates(["judge", "a", "b", "seed_a", "seed_b", "prompt_id"], keep="last").sort_index().dropna(subset=["value"])
    )
    tables = [
        _strengths(rows[["a", "b", "value", "cluster_id"]]).assign(judge=judge)
        for judge, rows in battles.groupby("judge", sort=True)
        if len({*rows["a"], *rows["b"]}) >= FEWEST
    ]
    return pd.concat(tables)[RANKING_COLUMNS] if tables else pd.DataFrame(columns=RANKING_COLUMNS)


def _rounds(label: str) -> tuple[int, ...]:
    return tuple(map(int, str(label).split("/")))


def _strengths(battles: pd.DataFrame) -> pd.DataFrame:
    """Strengths of the arms of one judge's battles, with what they rest on."""
    try:
        fitted = davidson(battles, cluster="cluster_id")
        ties = {"tie": fitted.tie, "tie_low": fitted.tie_low, "tie_high": fitted.tie_high}
        test, note = f"Davidson, {fitted.test}", ""
    except ValueError as error:  # no tie, or no finite estimate
        fitted = bradley_terry(battles, cluster="cluster_id")
        ties = dict.fromkeys(("tie", "tie_low", "tie_high"), math.nan)
        without = str(error).removeprefix("davidson: ").partition(" (")[0]
        test, note = f"Bradley-Terry, {fitted.test}", "; ".join(filter(None, (without, fitted.note)))
    counts = {"n": fitted.n, "n_ties": int((battles["value"] == 0.5).sum()), "n_clusters": fitted.n_clusters}
    named = fitted.strengths[["model", "strength", "standard_error", "ci_low", "ci_high"]].rename(columns={"model": "arm"})
    return named.assign(**ties, **counts, scope=f"{fitted.scope}, these checkpoints", test=test, note=note)
