"""Scores of the arms: at the final round, by round, at rounds chosen on dev, against KL and annotation; and other properties of answers."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd

from apo_bench.analysis import costs, results
from apo_bench.analysis.results import POOLED, Run
from apo_bench.config.finished_arms import declared_cost
from apo_bench.formatting import ALPHA, count, number, rows_of
from apo_bench.report.charts import Lines, Panel, Series, kl_or_bound, lines_by_arm, series_of
from apo_bench.report.document import Block, Section
from apo_bench.report.sections import capabilities
from apo_bench.report.sections.contrasts import span
from apo_bench.report.sections.finished import standing_for_seeds
from apo_bench.report.tables import NAN, Cell, Column, Paper, Row, Table, Value, arm_column, column, text_column
from apo_bench.report.text import Text, join, say

RM_COLUMNS = {"rm_accuracy_human": "RM: human pairs", "rm_accuracy_golden": "RM: golden over samples", "rm_ece": "RM: ECE"}
LINEAR = "a linear n-gram model fitted to what the experiment's own budget grants"
SHOWN_ELSEWHERE = ("kl", "kl_bound", "dev_score", "inference_flops")  # metrics that are no property of answers
Means = Mapping[tuple[str, str, str], tuple[float, float]]  # (arm, scorer, axis) -> mean and sample SD over seeds
FINAL_NOTE = (
    "Mean over seeds ± sample SD over seeds; clusters of prompts weigh alike, as in the contrasts. `proxy` is each arm's own reward model, "
    "so its values are not comparable across arms. Training flops: all that the arm's ledger counts. ▲ highest mean of its column; ≈ not "
    "distinguishable from it, ▽ lower: by the contrast of the two arms at the final round, at p = 0.05, adjusted where it belongs to a "
    "declared family. No mark: not tested."
)


def final_section(run: Run, frames: Mapping[str, pd.DataFrame]) -> Section:
    """Every arm at its last round: on all axes with win rates, KL and costs, and by axis."""
    frame = pd.DataFrame(_final_rows(run, frames))
    pooled, by_axis = frame[frame["axis"] == POOLED], frame[frame["axis"] != POOLED]
    scorers = [column(scorer, paper=scorer != "proxy") for scorer in run.scorers]
    optional = {"length": "length, tokens", "refusal": "refusals"}
    judged = frames["judged"].groupby("judge", sort=False) if "judged" in frames else ()
    columns = [
        arm_column(paper=True), text_column("round"), text_column("seeds", paper=True), text_column("clusters"), *scorers,
        *[_win_rate_column(str(judge), rates[rates["axis"] == POOLED]) for judge, rates in judged], Column("KL", kl_cell, paper=True),
        *[column(head, metric) for metric, head in optional.items() if pooled[metric].notna().any()],
        *capabilities.main_columns(frames), Column("training flops", partial(_training_flops, run)),
        *([column("flops per answer", "answer_flops", "count")] if pooled["answer_flops"].notna().any() else []),
    ]  # fmt: skip
    caption = "Scores at each arm's final round"
    blocks: list[Block] = [Table(pooled, columns, f"{caption}, all axes pooled", say(FINAL_NOTE), (), "main", Paper(note=_paper_note(run)))]
    if len(by_axis):
        paper = Paper(block=lambda row: row["axis"], note=_paper_note(run, by_axis=True))
        columns = [text_column("axis"), arm_column(paper=True), *scorers]
        blocks.append(Table(by_axis, columns, f"{caption}, by axis", name="by_axis", paper=paper))
    return Section("Scores at the final round", blocks)


def _final_rows(run: Run, frames: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """The initial policy (arm "") and every arm, on all axes and on each: means, SDs and standings of what was measured."""
    means, start = final_means(run), initial_means(frames["summary"])
    ledger = results.exclude_failed(run.tables["ledger"], run.failed)
    training = ledger[ledger["unit"] == "flops"].groupby("arm")["used"].mean().to_dict()
    counted = frames["summary"]
    counted = counted[(counted["scorer"] == "inference_flops") & (counted["axis"] == POOLED)]
    answering = counted.set_index(["arm", "round"])["mean"].to_dict()  # FLOPs per answer, where they were counted
    first = next(iter(counted.loc[counted["round"] == 0, "mean"]), NAN)
    clusters = run.final_scores.groupby("arm")["cluster_id"].nunique().to_dict()
    for axis in (POOLED, *(run.axes if len(run.axes) > 1 else ())):
        standings = {scorer: standing(run, frames["contrasts"], means, scorer, axis) for scorer in run.scorers if scorer != "proxy"}
        for arm in ("", *run.arms):
            last = run.final_round.get(arm) if arm else 0
            row = {"arm": arm, "axis": axis, "round": last, "seeds": standing_for_seeds(run, arm) if arm else None}
            row |= {"clusters": clusters.get(arm), "training_flops": training.get(arm, NAN)}
            row["answer_flops"] = answering.get((arm, last), NAN) if arm else first
            for name in (*run.scorers, "kl", "kl_bound", "length", "refusal"):
                row[name], row[f"{name}_sd"] = means.get((arm, name, axis), (NAN, NAN)) if arm else (start.get((name, axis), NAN), NAN)
                row[f"{name}_standing"] = standings.get(name, {}).get(arm, "")
            yield row


def _training_flops(run: Run, row: Row) -> Cell:
    """As metered; of an arm that was trained elsewhere as it declares, or not known."""
    if row["arm"] and "flops" in (declared_cost(run.experiment.arms[row["arm"]]) or {}):
        return say(f"{count(row['training_flops'])}, declared")
    return Value(row["training_flops"], "spent") if row["arm"] else None


def _win_rate_column(judge: str, pooled: pd.DataFrame) -> Column:
    """An arm's win rates over the arms that it was compared with, on all axes; its own side of each pair."""

    def cell(row: Row) -> Cell:
        pairs = [pair for pair in rows_of(pooled) if row["arm"] in (pair.arm_a, pair.arm_b)]
        sides = ((pair.win_rate, pair.arm_b) if pair.arm_a == row["arm"] else (1 - pair.win_rate, pair.arm_a) for pair in pairs)
        return join((say(f"{number(rate)} over `{{other}}`", other=other) for rate, other in sides), "; ") or None

    return Column(f"win rate, by {judge}", cell, paper=True)


def kl_cell(row: Row) -> Cell:
    """The mean KL, or where there is none the upper bound on it."""
    kl, bound = row.get("kl", NAN), row.get("kl_bound", NAN)
    return Value(bound, is_bound=True) if math.isnan(kl) and not math.isnan(bound) else Value(kl, sd=row.get("kl_sd", NAN))


def _paper_note(run: Run, *, by_axis: bool = False) -> Text:
    seeds = span(pd.Series([len(run.arm_seeds.get(arm, [])) for arm in run.arms]))
    clusters = span(run.final_scores.groupby(["arm", "axis"] if by_axis else ["arm"])["cluster_id"].nunique())
    kl = "" if by_axis else " KL to the initial policy in nats per response; a number after a sign is an upper bound."
    return say(
        f"Mean over {seeds} seeds ± sample SD over seeds, of answers to prompts in {clusters} clusters, which weigh alike. Bold: the "
        f"highest mean of its column; a mean without a mark is not distinguishable from it, or was not tested against it.{kl}"
    )


def final_means(run: Run) -> Means:
    """Mean and SD over the seeds that came through, of scores by axis and of the KL (`kl`, or its bound `kl_bound`) on all axes."""
    parts = [results.seed_means(run.final_scores, axis).assign(axis=axis) for axis in (*run.axes, POOLED)]
    metrics = results.exclude_failed(run.tables["metrics"], run.failed)
    metrics = metrics[(metrics["axis"] == POOLED) & metrics["metric"].isin(["kl", "kl_bound"])].dropna(subset=["value"])
    metrics = metrics[metrics["round"] == metrics["arm"].map(run.final_round)].rename(columns={"metric": "scorer"})
    grouped = pd.concat([*parts, metrics], join="inner").groupby(["arm", "scorer", "axis"])["value"].agg(["mean", "std"])
    return dict(zip(grouped.index, grouped.itertuples(index=False, name=None), strict=True))


def standing(run: Run, contrasts: pd.DataFrame, means: Means, scorer: str, axis: str) -> dict[str, str]:
    """How each arm stands to the highest mean of a column: highest, alike or lower; arms that were not tested against it are absent.

    The highest is "best" where every other arm was tested against it and is lower.
    """
    values = {arm: means[arm, scorer, axis][0] for arm in run.arms if (arm, scorer, axis) in means}
    highest = [arm for arm, value in values.items() if value == max(values.values())]
    standings = dict.fromkeys(highest, "highest")
    rows = contrasts[(contrasts["scorer"] == scorer) & (contrasts["axis"] == axis) & (contrasts["at"] == "final")]
    for row in rows_of(rows.dropna(subset=["p_value"])):
        for arm, other, difference in ((row.arm_a, row.arm_b, row.difference), (row.arm_b, row.arm_a, -row.difference)):
            if other in highest and arm not in highest:
                p = row.p_value if math.isnan(row.p_adjusted) else row.p_adjusted
                standings[arm] = "lower" if p < ALPHA and difference < 0 else "alike"
    if len(values) > 1 and [standings.get(arm) for arm in values if arm not in highest] == ["lower"] * (len(values) - 1):
        standings[highest[0]] = "best"
    return standings


def initial_means(summary: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The initial policy's means by (scorer, axis), where all arms agree on them (a proxy of its own makes an arm differ)."""
    start = summary[summary["round"] == 0].groupby(["scorer", "axis"])["mean"].agg(["min", "max"])
    same = start["max"] - start["min"] <= 1e-6 * start.abs().max(axis=1).clip(lower=1.0)
    return start.loc[same, "min"].to_dict()  # pyright: ignore[reportReturnType]


# --- by round -----------------------------------------------------------------------------------------------------------------


def round_section(run: Run, frames: Mapping[str, pd.DataFrame]) -> Section:
    """The scores of every round, and beside them the reward model's accuracy and calibration, all axes pooled."""
    summary, table = frames["summary"], frames["by_round"]
    measured, scorers = set(table.columns), sorted(run.scorers, key=lambda scorer: scorer == "proxy")  # which comes last
    heads = {name: head for name, head in (RM_COLUMNS | {"dev_score": "dev_score"}).items() if name in measured}
    start = {name: mean for (name, axis), mean in initial_means(summary).items() if axis == POOLED and name in measured}
    rows = table[(table["axis"] == POOLED) & (table["round"] >= 1)]
    frame = pd.concat([pd.DataFrame([{"arm": "", "round": 0, **start}]), rows], ignore_index=True)
    columns = [
        arm_column(), text_column("round"), *map(column, scorers), Column("KL", kl_cell),
        *[column(head, name) for name, head in heads.items()],
    ]  # fmt: skip
    blocks: list[Block] = [
        *score_figures(run, summary),
        Table(frame, columns, "Scores by round, all axes pooled", say(_round_note(run, measured))),
    ]  # fmt: skip
    if len(run.axes) > 1:
        by_axis = [arm_column(), text_column("axis"), text_column("round"), *map(column, scorers)]
        blocks.append(Table(table, by_axis, "Scores by arm, round and axis", is_on_page_only=True))
    return Section("Scores by round beside the reward model", blocks)


def _round_note(run: Run, measured: set[str]) -> str:
    note = "Mean ± sample SD over seeds, all axes pooled; by axis in `by_round.csv`. KL in nats per response"
    note += "; `<=`: an upper bound, where the arm has no weights of its own." if "kl_bound" in measured else "."
    if measured & set(RM_COLUMNS):
        floor = ngram_floors(run).get(POOLED, NAN)
        linear = "" if math.isnan(floor) else f"; {LINEAR} has {number(floor)}"
        note += (
            f" RM: the round's reward model. Human pairs: accuracy on held-out human pairs (falling means forgetting{linear}). Golden over "
            "samples: share of golden responses scored above the current policy's sample. ECE: expected calibration error on the human "
            f"pairs, {run.experiment.evaluation.ece_bins} equal-width bins on [0, 1]."
        )
    if "dev_score" in measured:
        note += " dev_score: mean score of answers to dev prompts by a reward model that is the same for all arms of a seed."
    return note


def ngram_floors(run: Run) -> dict[str, float]:
    """Mean accuracy on human pairs of the linear n-gram model by axis, where there is one."""
    rows = run.tables["reward_models"]
    rows = rows[(rows["arm"] == "_floor") & (rows["metric"] == "accuracy_human")]
    return {str(axis): float(values.mean()) for axis, values in rows.groupby("axis")["value"]}


def score_figures(run: Run, summary: pd.DataFrame) -> list[Lines]:
    """Scores by round, and against the KL: a row of panels per axis, a panel per scorer."""
    axes = run.axes if len(run.axes) == 1 else (POOLED, *run.axes)
    shown = summary[summary["scorer"].isin(run.scorers) & summary["axis"].isin(axes)]
    against = shown.merge(kl_or_bound(summary), on=["arm", "round", "axis"])
    hollow = frozenset(against.loc[against["bound"], "arm"])

    def panels(table: pd.DataFrame, x: str) -> tuple[Panel, ...]:
        grid = ((axis, scorer, table[(table["axis"] == axis) & (table["scorer"] == scorer)]) for axis in axes for scorer in run.scorers)
        return tuple(Panel(scorer, lines_by_arm(run.arms, rows, x, hollow if x == "kl" else ()), axis) for axis, scorer, rows in grid)

    caption = "Scores by round, mean over seeds; bands or bars: sample SD over seeds. Round 0 is the initial policy"
    kl_caption = "Scores against KL to the initial policy; the last round is numbered, hollow markers stand at an upper bound on the KL"
    figures = [
        Lines("by_round", "Scores by round", say(caption), panels(shown, "round"), run.arms, "round (0: initial policy)",
              columns=len(run.scorers), by_round=True),
        Lines("by_kl", "Proxy, gold and truth against KL", say(kl_caption), panels(against, "kl"), run.arms,
              "KL to the initial policy (nats per response)", columns=len(run.scorers), hollow=hollow, is_banded=False),
    ]  # fmt: skip
    return [figure for figure in figures if any(panel.series for panel in figure.panels)]


# --- elsewhere ----------------------------------------------------------------------------------------------------------------


def answer_section(run: Run, frames: Mapping[str, pd.DataFrame]) -> Section:
    """What else was measured of the answers, by round."""
    single = tuple(f"{gold}." for gold in run.golds)
    others = dict.fromkeys(frames["summary"]["scorer"])
    shown = [name for name in others if name not in (*run.scorers, *SHOWN_ELSEWHERE) and not name.startswith(single)]
    if not shown:
        return Section("Answers by round", [say("Nothing else was measured of the answers.")])
    table = frames["by_round"]
    columns = [arm_column(), text_column("round"), *map(column, shown)]
    note = say("Mean ± sample SD over seeds, all axes pooled. Length in tokens; refusal, unfinished and distinct-n as shares.")
    return Section("Answers by round", [Table(table[table["axis"] == POOLED], columns, "Properties of answers by round", note)])


def dev_section(run: Run) -> Section:
    """How often dev chose which round, and the scores there beside those at the final round."""
    shown = [(scorer, at) for scorer in run.scorers if scorer != "proxy" for at in ("final", "dev_best")]
    value = results.seed_means(run.tables["scores"], POOLED).set_index(["arm", "seed", "round", "scorer"])["value"].to_dict()
    rows = []
    for arm in run.arms:
        chosen = {seed: run.dev_round[arm, seed] for seed in run.arm_seeds.get(arm, []) if (arm, seed) in run.dev_round}
        often = ", ".join(f"round {round_}: {n} of {len(chosen)}" for round_, n in sorted(Counter(chosen.values()).items()))
        row: dict[str, Any] = {"arm": arm, "chosen": often or None}
        for scorer, at in shown:
            places = [(arm, seed, best if at == "dev_best" else run.final_round[arm], scorer) for seed, best in chosen.items()]
            values = pd.Series([value.get(place, NAN) for place in places]).astype(float)
            row |= {f"{scorer}, {at}": values.mean(), f"{scorer}, {at}_sd": values.std()}
        rows.append(row)
    columns = [arm_column(), text_column("chosen"), *[column(f"{scorer}, {at}") for scorer, at in shown]]
    note = say(
        "One rule for all arms: each seed's round of the highest dev_score among 1..R, the first among equals. Mean ± sample SD over the "
        "seeds with a dev_score, all axes pooled. The declared families use `{declared}`; contrasts at the other are descriptive.",
        declared=run.experiment.compare.round,
    )
    return Section("Rounds chosen on dev", [Table(pd.DataFrame(rows), columns, "Rounds chosen on dev, and the scores there", note)])


def annotation_section(run: Run) -> Section:
    """Scores against the annotation that was used, along the declared curves."""
    frame = costs.annotation_curves(run)
    curves, scorers = tuple(dict.fromkeys(frame["curve"])), list(dict.fromkeys(frame["scorer"]))
    rows = []
    for _, group in frame.groupby(["curve", "arm"], sort=False):
        scores = {row.scorer: row.mean for row in rows_of(group)} | {f"{row.scorer}_sd": row.seed_sd for row in rows_of(group)}
        rows.append(group.iloc[0].to_dict() | scores)
    columns = [
        text_column("curve"), arm_column(), column("human pairs", "human_pairs", "count"),
        column("golden responses", "golden_responses", "count"), column("together", "annotation", "count"), text_column("seeds", "n_seeds"),
        *map(column, scorers),
    ]  # fmt: skip

    def line(scorer: str, place: int, curve: str) -> Series:
        own = frame[(frame["scorer"] == scorer) & (frame["curve"] == curve)]
        return series_of(curve, place, own.sort_values("annotation"), "annotation")

    panels = tuple(Panel(scorer, tuple(line(scorer, *curve) for curve in enumerate(curves))) for scorer in scorers)
    figure = Lines(
        "by_annotation", "Scores against annotation", say("Scores at the final round against annotation used; bands: sample SD over seeds"),
        panels, curves, "annotation used: human pairs and golden responses", "mean score at the final round", columns=max(len(scorers), 1),
    )  # fmt: skip
    note = say("Annotation used (mean over seeds) and scores at the final round, mean ± sample SD over seeds, all axes pooled.")
    table = Table(pd.DataFrame(rows), columns, "Scores at the final round against annotation used", note)
    return Section("Scores against annotation", [*([figure] if panels else []), table])
