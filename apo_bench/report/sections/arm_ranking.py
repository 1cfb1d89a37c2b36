"""All arms at once: a table of simultaneous intervals and rank sets, and what it means in a sentence."""

import pandas as pd

from apo_bench.analysis.results import POOLED, Run
from apo_bench.report.document import Section
from apo_bench.report.sections.answer import PLACES
from apo_bench.report.tables import Cell, Column, Row, Table, arm_column, column, interval_column, text_column
from apo_bench.report.text import Text, join, say

MOST_BEST = 2  # arms that may be the best and are named; where it may be any of more, nothing is known that a name would tell
NOTE = (
    "Intervals against the reference hold for all arms at once with 95 % confidence (as Dunnett's), and so do the ranks, from intervals of "
    "all pairs (as Tukey's): of 20 such tables, about one has an arm outside of what it shows. Both are wider than the declared "
    "contrasts' own, for which a few pairs were chosen before the run."
)


def section(run: Run, frame: pd.DataFrame) -> Section:
    """Empty where fewer than three arms can be ranked."""
    if frame.empty:
        return Section("All arms at once", [])
    columns = [
        arm_column(), column("mean"), Column("rank", _ranks), column("against the reference", "difference", "signed"), interval_column(),
        column("p (adj.)", "p_adjusted", "probability"), text_column("seeds", "n_seeds"), text_column("clusters", "n_clusters"),
    ]  # fmt: skip
    first = frame.iloc[0]
    axis = "all axes pooled" if first["axis"] == POOLED else str(first["axis"])
    caption = f"All arms {PLACES[run.experiment.compare.round]}, by {first['scorer']}, {axis}"
    legend = [say("Levels: {test}.", test=first["test"])]
    return Section("All arms at once", [summary(frame), Table(frame, columns, caption, say(NOTE), legend, "arm_ranking")])


def summary(frame: pd.DataFrame) -> Text:
    """Which arms may be the best, and which differ from the reference."""
    best, first = frame.loc[frame["rank_low"] == 1, "arm"], frame.iloc[0]
    higher, lower = frame.loc[frame["ci_low"] > 0, "arm"], frame.loc[frame["ci_high"] < 0, "arm"]
    if len(best) > MOST_BEST:
        text = say("Which of the {n} arms is the best cannot be told.", n=len(frame))
    elif len(best) == 1:
        text = say("Of {n} arms, `{arm}` is the best.", n=len(frame), arm=best.iloc[0])
    else:
        text = say("Of {n} arms, the best is one of {arms}.", n=len(frame), arms=_listed(best))
    differ = [say(f"{{arms}} scored {word}", arms=_listed(arms)) for word, arms in (("higher", higher), ("lower", lower)) if len(arms)]
    than = say("{differ} than `{reference}`", differ=join(differ, ", "), reference=first["reference"])
    none = say("no arm could be told apart from `{reference}`", reference=first["reference"])
    return say("{text} With all arms tested at once, {claim}.", text=text, claim=than if differ else none)


def _ranks(row: Row) -> Cell:
    low, high = int(row["rank_low"]), int(row["rank_high"])
    return str(low) if low == high else f"{low} to {high}"


def _listed(arms: pd.Series) -> Text:
    return join((say("`{arm}`", arm=arm) for arm in arms), ", ")
