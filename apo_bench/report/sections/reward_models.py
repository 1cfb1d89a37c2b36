"""Reward models by round, and how far the gold models can be trusted."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from apo_bench.analysis import results
from apo_bench.analysis.results import POOLED, Run
from apo_bench.config.schema import FinishedReward, JudgeReward, members
from apo_bench.formatting import count, number
from apo_bench.report.charts import Lines, Panel, Point, Series, lines_by_arm
from apo_bench.report.document import Block, Bullets, Section
from apo_bench.report.sections.contrasts import without_copies
from apo_bench.report.sections.scores import LINEAR, RM_COLUMNS, ngram_floors
from apo_bench.report.tables import NAN, Column, Row, Table, arm_column, column, interval_column, text_column
from apo_bench.report.text import say

DIAGNOSTICS = {  # that are drawn, each a panel
    "accuracy_human": "accuracy: human pairs", "accuracy_golden": "accuracy: golden over samples", "ece": "ECE",
    "gold_agreement": "agreement with gold", "fixed_mean": "mean score of fixed responses",
}  # fmt: skip
MEANINGS = {  # of the other diagnostics
    "gold_correlation": "correlation of its scores with gold's, on the policy's own answers",
    "gold_agreement": "share of pairs of the policy's own answers to one prompt that it orders as gold does; one half is chance",
    "fixed_mean": "its mean score of fixed responses, both sides of the held-out human pairs: how its level drifts",
    "fixed_sd": "the spread of those scores: how its scale drifts",
    "fixed_correlation": "correlation of those scores with the first round's reward model: how its order drifts; 1 is none",
}


def section(run: Run, frames: Mapping[str, pd.DataFrame], diagnostics: pd.DataFrame) -> Section:
    """Diagnostics beyond accuracy and calibration by round, and all of them by axis at each arm's first and last round."""
    if diagnostics.empty:
        return Section("Reward models by round", [say("No diagnostics were recorded.")])
    blocks: list[Block] = [*diagnostic_figure(run.arms, diagnostics, ngram_floors(run).get(POOLED, NAN))]
    blocks += reliability_figure(run.arms, results.reliability_curve(run))
    known = [name for name in diagnostics["metric"].unique() if f"rm_{name}" not in RM_COLUMNS]
    names = [name for name in dict.fromkeys([*MEANINGS, *known]) if name in known]
    table = frames["by_round"]
    if names:
        measured = diagnostics[diagnostics["axis"] == POOLED][["arm", "round"]].drop_duplicates()
        rows = measured.merge(table[table["axis"] == POOLED], on=["arm", "round"], how="left")
        columns = [arm_column(), text_column("round"), *[column(name, f"rm_{name}") for name in names]]
        note = say("Mean ± sample SD over seeds, all axes pooled. Round 0 is round 1's reward model and the initial policy.")
        blocks.append(Table(rows, columns, "Diagnostics of the reward models by round", note))
        blocks.append(Bullets([say(f"{name}: {MEANINGS[name]}.") for name in names if name in MEANINGS]))
    if len(run.axes) > 1:
        blocks.append(Section("By axis, at the first and the last round", [_by_axis(run, table, diagnostics)]))
    return Section("Reward models by round", blocks)


def _by_axis(run: Run, table: pd.DataFrame, diagnostics: pd.DataFrame) -> Table:
    measured = diagnostics[(diagnostics["round"] >= 1) & (diagnostics["axis"] != POOLED)][["axis", "arm", "round"]].drop_duplicates()
    groups = measured.groupby(["axis", "arm"])["round"]
    ends = measured[(measured["round"] == groups.transform("min")) | (measured["round"] == groups.transform("max"))]
    keys = ["axis", "arm", "round"]
    rows = results.in_order(ends.merge(table, on=keys, how="left"), run, keys)
    heads = {**RM_COLUMNS, "rm_gold_agreement": "gold_agreement"}
    columns = [
        text_column("axis"), arm_column(), text_column("round"),
        *[column(head, name) for name, head in heads.items() if name.removeprefix("rm_") in set(diagnostics["metric"])],
        column("n-gram floor", "floor"),
    ]  # fmt: skip
    frame = rows.assign(floor=rows["axis"].map(ngram_floors(run)).astype(float))
    return Table(frame, columns, "Reward models by axis", say(f"The floor is the accuracy on human pairs of {LINEAR}."))


def diagnostic_figure(arms: tuple[str, ...], diagnostics: pd.DataFrame, floor: float = NAN) -> list[Lines]:
    """A panel per diagnostic: means and sample SDs over seeds by round, all axes pooled; the n-gram floor is a line."""
    groups = dict(iter(diagnostics[diagnostics["axis"] == POOLED].groupby("metric"))) if len(diagnostics) else {}
    panels = tuple(
        Panel(title, lines_by_arm(arms, groups[metric], "round"), reference=floor if metric == "accuracy_human" else NAN)
        for metric, title in DIAGNOSTICS.items()
        if metric in groups
    )
    caption = "Reward models by round; bands or bars: sample SD over seeds"
    caption += "" if math.isnan(floor) else f"; dashes: {LINEAR}"
    figure = Lines("reward_models", "Reward models by round", say(caption), panels, arms, "round (0: initial policy)", "", by_round=True)
    return [figure] if panels else []


def reliability_figure(arms: tuple[str, ...], table: pd.DataFrame) -> list[Lines]:
    """A panel per arm. `table` has arm, round, bin, confidence, accuracy and n; round 0 shows round 1's reward model and is left out."""
    panels = []
    for arm in (arm for arm in arms if arm in set(table["arm"])):
        own = table[(table["arm"] == arm) & (table["round"] >= 1)]
        series = []
        for place, round_ in enumerate(sorted({own["round"].min(), own["round"].max()})):
            bins = own[own["round"] == round_].sort_values("bin")
            values = zip(bins["confidence"], bins["accuracy"], bins["n"] / bins["n"].sum(), strict=True)
            series.append(Series(("first round", "last round")[place], place, tuple(Point(x, y, share=share) for x, y, share in values)))
        panels.append(Panel(arm, tuple(series)))
    caption = "Reliability of the reward models on held-out human pairs: accuracy against confidence, larger markers for more pairs"
    figure = Lines(
        "reliability", "Calibration", say(caption), tuple(panels), ("first round", "last round"),
        "confidence in the side with the higher score", "accuracy", columns=4, is_diagonal=True, is_banded=False,
    )  # fmt: skip
    return [figure] if panels else []


def _single_seeds(row: Row) -> str:
    return f"{number(row['seed_low'])} to {number(row['seed_high'])} ({count(row['n_gold_seeds'])} seeds)"


def _of_kind(run: Run, kinds: Any) -> list[str]:
    """The reward models that are, or hold, one of these kinds."""
    models = run.experiment.models
    named = {**{gold.name: gold.model for gold in models.gold}, "proxy": models.reward}
    return [name for name, spec in named.items() if any(isinstance(member, kinds) for member in members(spec))]


def gold_section(run: Run) -> Section:
    """How good the gold models are, and how far they followed the truth."""
    frame = results.gold_accuracy(run)
    if frame.empty:
        blocks: list[Block] = [say("No gold accuracy was recorded.")]
    else:
        columns = [
            text_column("gold"), text_column("axis"), column("accuracy", "value"),
            interval_column("number"), Column("single seeds", _single_seeds), column("pairs", "n_pairs", "count"),
            column("clusters", "n_clusters", "count"), column("n-gram floor", "floor"),
            Column("verdict", lambda row: results.uninformative_gold(run, row["gold"], row["axis"]) or "better than chance"),
        ]  # fmt: skip
        note = say("Accuracy of the mean score over gold seeds on held-out human pairs; interval robust to clusters of prompts.")
        blocks = [Table(frame, columns, "Gold reward models on held-out human pairs", note)]
    if finished := _of_kind(run, FinishedReward):
        blocks.append(
            say(
                f"Finished elsewhere: {', '.join(finished)}. What it was trained on is not known here, and may hold held-out pairs "
                "or prompts of this run; its accuracy may be too high for that."
            )
        )
    if served := _of_kind(run, JudgeReward):
        blocks.append(say(f"Scored by a server: {', '.join(served)}. What it computed is in no FLOPs."))
    agreement = results.gold_sign_agreement(run)
    if len(agreement):
        columns = [
            text_column("gold"), text_column("axis"), column("same sign as the truth", "agree"), text_column("changes", "n"),
        ]  # fmt: skip
        note = say(
            f"Of all changes between two rounds of an arm and seed in which mean truth moved by more than {results.TRUSTED_CHANGE:g}, "
            "the share in which gold moved the same way. The changes are not independent of each other."
        )
        blocks.append(
            Section("How far gold can be trusted", [Table(without_copies(agreement), columns, "Gold models against the truth", note)])
        )
    return Section("Gold reward models", blocks)
