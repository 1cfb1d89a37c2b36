"""Answers to prompt sets as frames: means by arm, and contrasts of the declared pairs, each set a family of tests of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from apo_bench.analysis.contrasts import COLUMNS, contrast_of_pair, scope_of, scores_at_round
from apo_bench.analysis.results import POOLED, Run, declared_pairs, seed_means, uninformative_gold
from apo_bench.analysis.win_rates import win_rate_as_contrast, win_rates
from apo_bench.config.schema import PromptSet
from apo_bench.data.prompt_sets import set_of
from apo_bench.stats import holm

MEANS = ["prompt_set", "arm", "round", "axis", "scorer", "mean", "seed_sd", "n_seeds", "n_prompts"]
CONTRASTS = ["prompt_set", *(name for name in COLUMNS if name not in ("at", "kl", "family"))]


def set_run(run: Run, part: PromptSet) -> Run:
    """The run as if its test prompts were those of one set."""

    def own(name: str) -> pd.DataFrame:
        rows = run.tables[name]
        return rows[rows["axis"].map(set_of) == part.name]

    return replace(run, tables={**run.tables, "scores": own("set_scores"), "judgments": own("set_judgments")})


def set_scorers(run: Run, part: PromptSet) -> tuple[str, ...]:
    """The scorers of a set that have rows, refusals first; without single seeds of gold models, and without length."""
    present = set(set_run(run, part).tables["scores"]["scorer"])
    return tuple(scorer for scorer in ("refusal", *run.golds) if scorer in present)


def set_means(run: Run) -> pd.DataFrame:
    """MEANS of every set, arm, round and axis: the mean over seeds of means over clusters, `seed_sd` the sample SD over seeds."""
    frames = [pd.DataFrame(columns=MEANS)]
    for part in run.experiment.evaluation.prompt_sets:
        view = set_run(run, part)
        for axis in view.axes:
            means = seed_means(view.tables["scores"], axis)
            grouped = means.groupby(["arm", "round", "scorer"])
            rows = grouped.agg(mean=("value", "mean"), seed_sd=("value", "std"), n_seeds=("seed", "nunique"), n_prompts=("n", "min"))
            frames.append(rows.reset_index().assign(prompt_set=part.name, axis=axis)[MEANS])
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def set_contrasts(run: Run) -> pd.DataFrame:
    """CONTRASTS of every declared pair, set, axis and scorer at the arms' last rounds, by the tests of `contrasts`; judges' win rates too.

    `p_adjusted`: Holm over all tests of a set. Axes of a set are not pooled: a refusal of a safe prompt is not one of an unsafe prompt.
    """
    frames = [pd.DataFrame(columns=CONTRASTS)]
    for part in run.experiment.evaluation.prompt_sets:
        if rows := list(_rows(run, set_run(run, part), part)):
            table = pd.DataFrame(rows).assign(prompt_set=part.name)
            table["p_adjusted"] = holm(table["p_value"].to_numpy(dtype=float))
            frames.append(table[CONTRASTS])
    table = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
    return table.astype({"n_seeds": int, "n_clusters": int, "n_dropped": int})


def _rows(run: Run, view: Run, part: PromptSet) -> Iterator[dict[str, Any]]:
    scores = view.tables["scores"]
    by_round = dict(iter(scores.groupby(["arm", "seed", "round"])))
    reasons = {gold: uninformative_gold(run, gold, part.axis or POOLED) for gold in run.golds}
    for _, pair in declared_pairs(run):
        pair_scores = scores_at_round(view, by_round, pair, "final")  # pyright: ignore[reportArgumentType]
        for axis in view.axes:
            for scorer in set_scorers(run, part):
                numbers = contrast_of_pair(pair_scores, pair, axis, scorer, reasons.get(scorer, ""), run.experiment.compare)
                row = {"arm_a": pair.a, "arm_b": pair.b, "axis": axis, "scorer": scorer, "round": pair_scores.round, **numbers}
                yield {**row, "scope": scope_of(run, row)}
    if len(judgments := view.tables["judgments"]):
        for rates in win_rates(judgments, run.tables["judge_audit"], view.axes).to_dict("records"):
            if rates["axis"] != POOLED:
                yield win_rate_as_contrast(rates)  # pyright: ignore[reportArgumentType] (columns are text)
