"""Several judges together: win rates that hold for other judges like them, and each judge's ranking of the arms."""

import pandas as pd

from apo_bench.report.document import Section
from apo_bench.report.sections.contrasts import without_copies
from apo_bench.report.tables import CI, Column, Table, arm_column, column, footnotes, pair_column, text_column
from apo_bench.report.text import say

ACROSS = (
    "Win rates of the first arm as the mean over informative judges, for other judges like them: the judges are taken as a random "
    "sample, so their number counts, and few say little (an interval reaches 12.7 standard errors to each side with two judges, up to "
    "4.3 with three and 2.8 with five). These judges: the interval if only these are meant. SD of judges: of their true win rates, "
    "estimated. Only prompts with a comparison by every judge in every seed count. p: two-sided, against 1/2, not adjusted. Whether "
    "judges that somebody chose are such a sample (several models of one family, say, are not) no number can tell."
)
RANKING = (
    "Strengths of the arms by each judge's comparisons, all axes pooled: log-odds of winning a comparison that is not tied, above the "
    "arms' mean. A response wins where it wins in both orders, all else is a tie; with ties by Davidson's model, which takes a tie as "
    "a result of its own, else by Bradley and Terry's. Tie: the chance of one between equal arms. Intervals are for new prompts, not "
    "for new seeds; the declared contrasts say whether arms differ."
)


def across_section(frame: pd.DataFrame) -> Section:
    """Empty where no two informative judges were asked the same."""
    columns = [
        pair_column("pair", "over"), text_column("axis"), text_column("judges"), text_column("round"),
        column("win rate", "mean", ends=CI), column("p", "p_value", "probability"),
        Column("their own", lambda row: say("{low} to {high}", low=f"{row['lowest']:.3f}", high=f"{row['highest']:.3f}")),
        column("SD of judges", "judge_sd"), column("these judges", "mean", ends=("these_low", "these_high")),
        text_column("seeds", "n_seeds"), text_column("clusters", "n_clusters"), column("left out", "n_dropped", "count"),
    ]  # fmt: skip
    mark, legend = footnotes(frame, lambda row: say("Test: {test}. Scope: {scope}.", test=row["test"], scope=row["scope"]))
    table = Table(without_copies(frame), [*columns, mark], "Win rates across judges", say(ACROSS), legend, "across_judges")
    return Section("Across judges", [table] if len(frame) else [])


def ranking_section(frame: pd.DataFrame) -> Section:
    """Empty where no judge compared three arms."""
    columns = [
        text_column("judge"), arm_column(), column("strength", form="signed", ends=CI), column("tie", ends=("tie_low", "tie_high")),
        column("n", form="count"), column("ties", "n_ties", "count"), text_column("clusters", "n_clusters"),
    ]  # fmt: skip
    mark, legend = footnotes(frame, lambda row: say("{text}.", text=". ".join(filter(None, (row["test"], row["scope"], row["note"])))))
    table = Table(frame, [*columns, mark], "Arms by each judge", say(RANKING), legend, "judge_ranking")
    return Section("Ranking by judges", [table] if len(frame) else [])
