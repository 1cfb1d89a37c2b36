"""All arms of a run at once: simultaneous intervals against the reference, and the ranks that the data permit."""

import pandas as pd

from apo_bench.analysis.results import POOLED, Run, uninformative_gold
from apo_bench.stats import rank_sets, simultaneous_contrasts

FEWEST = 3  # arms; of two the contrast says everything
COLUMNS = [
    "arm", "mean", "rank", "rank_low", "rank_high", "reference", "difference", "ci_low", "ci_high", "p_adjusted", "n_seeds", "n_clusters",
    "axis", "scorer", "test",
]  # fmt: skip


def arm_ranking(run: Run) -> pd.DataFrame:
    """The arms, best mean first, with rank sets and simultaneous intervals against the reference: COLUMNS.

    By the declared scorer on the first declared axis at the declared round, over the seeds that all arms have. No rows for fewer than
    three arms, for seeds that may be added after a look (`stopping: anytime`), a judge as the scorer (its win rates are of pairs), a gold
    model that is not shown to be informative, and scores that allow no estimate. The reference is that of `controls`: the second arm of
    the first primary pair, unless declared.
    """
    axis, empty = run.experiment.compare.axes[0], pd.DataFrame(columns=COLUMNS)
    if run.experiment.compare.stopping == "anytime" or run.judge is not None or uninformative_gold(run, run.scorer, axis):
        return empty
    scores = run.scores_at(run.experiment.compare.round)
    scores = scores[(scores["scorer"] == run.scorer) & scores["arm"].isin(run.arms)].dropna(subset=["value"])
    scores = scores if axis == POOLED else scores[scores["axis"] == axis]
    seeds_of = scores.groupby("arm", observed=True)["seed"].agg(set)
    reference = run.experiment.reference
    if len(seeds_of) < FEWEST or reference not in seeds_of.index:
        return empty
    scores = scores[scores["seed"].isin(set.intersection(*seeds_of))]
    if scores.empty:
        return empty
    try:
        against, ranks = simultaneous_contrasts(scores, reference), rank_sets(scores)
    except ValueError:  # the contrasts' rows give the reason
        return empty
    columns = {"a": "arm"} | {name: name for name in COLUMNS[6:12]} | {"test": "test"}
    table = ranks.table.merge(against.table[[*columns]].rename(columns=columns), on="arm", how="left")
    table = table.assign(reference=reference, axis=axis, scorer=run.scorer, test=f"{against.test}; {ranks.test}")
    return table[COLUMNS]
