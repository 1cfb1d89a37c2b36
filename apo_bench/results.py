"""A run folder's tables -> the frames a report prints: summary, contrasts, budget, gold's sign agreement. No model, no torch."""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from apo_bench.config import Comparison, Experiment, Unit
from apo_bench.errors import InputError
from apo_bench.experiment_file import load_experiment
from apo_bench.stats import Contrast, contrast, holm

COLUMNS = {
    "scores": ("arm", "seed", "round", "prompt_id", "cluster_id", "axis", "scorer", "value"),
    "metrics": ("arm", "seed", "round", "axis", "metric", "value", "standard_error", "n"),
    "reward_models": ("arm", "seed", "round", "axis", "metric", "value", "ci_low", "ci_high", "n"),
    "gold": ("gold", "seed", "axis", "metric", "value", "ci_low", "ci_high", "n_pairs", "n_clusters"),
    "ledger": ("arm", "seed", "unit", "used", "budget"),
}
REQUIRED = ("scores", "ledger")  # unless something failed: a run without one finished arm-seed still gets its report
KINDS = {
    "human_pairs": "annotation",
    "golden_responses": "annotation",
    "sampled_responses": "samples",
    "rm_updates": "updates",
    "policy_updates": "updates",
    "flops": "flops",
}
FLOPS_TOLERANCE = 0.05
TRUSTED_CHANGE = 0.1  # a change in ground truth that a gold model should see
POOLED = "all"
UNINFORMATIVE = "uninformative gold"


@dataclass(frozen=True)
class Run:
    """What a finished (or partly failed) experiment left behind."""

    experiment: Experiment
    manifest: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    absent: tuple[str, ...]  # tables without a file

    @cached_property
    def axes(self) -> tuple[str, ...]:
        return tuple(sorted(self.tables["scores"]["axis"].unique()))

    @cached_property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.experiment.arms)

    @cached_property
    def golds(self) -> tuple[str, ...]:
        return tuple(gold.name for gold in self.experiment.models.gold)

    @cached_property
    def judges(self) -> tuple[str, ...]:
        """The scorers whose differences are reported, in order: proxy, gold means, ground truth; those that have rows."""
        present = set(self.tables["scores"]["scorer"].unique())
        return tuple(scorer for scorer in ("proxy", *self.golds, "ground_truth") if scorer in present)

    @cached_property
    def scorer(self) -> str:
        """The scorer of the primary family."""
        return self.golds[0] if self.experiment.compare.scorer == "gold" else self.experiment.compare.scorer

    @cached_property
    def failed(self) -> set[tuple[str, int]]:
        return {(str(one["arm"]), int(one["seed"])) for one in self.manifest.get("failures", []) if one.get("seed") is not None}

    @cached_property
    def final_round(self) -> dict[str, int]:
        """The last round of each arm, over the seeds that came through; an arm without one is absent."""
        rounds = _without(self.tables["scores"], self.failed).groupby("arm")["round"].max()
        return {arm: int(rounds[arm]) for arm in self.arms if arm in rounds.index}

    @cached_property
    def final(self) -> pd.DataFrame:
        """Scores at each arm's final round, of the seeds that came through."""
        scores = _without(self.tables["scores"], self.failed)
        return scores[scores["round"] == scores["arm"].map(self.final_round)]


def read_run(folder: Path) -> Run:
    """Read experiment.yaml, manifest.json and tables/*.parquet. Raises InputError, one line naming file and column."""
    experiment = load_experiment(folder / "experiment.yaml")
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {folder} the folder of a run?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    tables, absent = {}, []
    for name, columns in COLUMNS.items():
        path = folder / "tables" / f"{name}.parquet"
        if not path.exists() and (name not in REQUIRED or manifest.get("failures")):
            tables[name] = pd.DataFrame({column: [] for column in columns})
            absent.append(name)
            continue
        tables[name] = _read_table(path, columns)
    scores = tables["scores"]
    if scores.empty and not manifest.get("failures"):
        raise InputError(f"{folder / 'tables' / 'scores.parquet'}: no rows, so there is nothing to report")
    if bad := int((~np.isfinite(scores["value"].to_numpy(dtype=float))).sum()):
        raise InputError(f"{folder / 'tables' / 'scores.parquet'}: value: {bad} rows are NaN or infinite")
    return Run(experiment, manifest, tables, tuple(absent))


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as parquet: {str(error).splitlines()[0]}") from None
    for column in columns:
        if column not in table:
            raise InputError(f"{path}: column {column} is missing")
    return table.loc[:, list(columns)]


def _without(frame: pd.DataFrame, failed: set[tuple[str, int]]) -> pd.DataFrame:
    if not failed:
        return frame
    return frame[~pd.MultiIndex.from_frame(frame[["arm", "seed"]]).isin(list(failed))]


def seed_means(scores: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Mean score by arm, round, scorer and seed. Clusters weigh alike, as in `contrast`, so that differences of means are contrasts."""
    rows = scores if axis == POOLED else scores[scores["axis"] == axis]
    keys = ["arm", "round", "scorer", "seed"]
    clusters = rows.groupby([*keys, "cluster_id"], sort=True)["value"].mean()
    means = clusters.groupby(level=keys).mean().rename("value").reset_index()
    prompts = rows.groupby(keys)["prompt_id"].nunique().rename("n").reset_index()
    return means.merge(prompts, on=keys)


def summary(run: Run) -> pd.DataFrame:
    """arm, round, axis, scorer, mean, seed_sd, n_seeds, n_prompts; the metrics (kl, distinct_n, ...) are scorers here.

    `mean` is over seeds of the mean over clusters; `seed_sd` the sample SD over seeds (NaN for one); failed arm-seeds count where they
    have rows. `n_prompts` is the smallest over seeds.
    """
    parts = [seed_means(run.tables["scores"], axis).assign(axis=axis) for axis in (*run.axes, POOLED)]
    metrics = run.tables["metrics"].rename(columns={"metric": "scorer"}).dropna(subset=["value"])
    long = pd.concat([*parts, metrics[["arm", "round", "scorer", "seed", "value", "n", "axis"]]] if len(metrics) else parts)
    grouped = long.groupby(["arm", "round", "axis", "scorer"])
    table = grouped.agg(mean=("value", "mean"), seed_sd=("value", "std"), n_seeds=("seed", "nunique"), n_prompts=("n", "min")).reset_index()
    present = set(table["scorer"])
    by_seed = [scorer for gold in run.golds for scorer in sorted(present) if scorer.startswith(f"{gold}.")]
    known = [*run.judges, *by_seed]
    scorers = [*known, *sorted(present - set(known))]
    table = table[table["arm"].isin(run.arms)].astype({"round": int, "n_seeds": int, "n_prompts": int})
    for column, order in (("arm", run.arms), ("axis", (*run.axes, POOLED)), ("scorer", scorers)):
        table[column] = pd.Categorical(table[column], categories=order, ordered=True)
    ordered = table.sort_values(["arm", "round", "axis", "scorer"]).reset_index(drop=True)
    return ordered.astype(dict.fromkeys(("arm", "axis", "scorer"), str))


def gold_accuracy(run: Run) -> pd.DataFrame:
    """Rows of the gold table for the mean score over gold seeds, with the floor's accuracy and the spread over seeds beside."""
    table = run.tables["gold"]
    table = table[table["metric"] == "accuracy"]
    floor = table[table["gold"] == "_floor"].drop_duplicates("axis").set_index("axis")["value"]
    single = table[table["seed"] >= 0].groupby(["gold", "axis"])["value"]
    spread = pd.DataFrame({"seed_low": single.min(), "seed_high": single.max(), "n_gold_seeds": single.size()}).reset_index()
    means = table[(table["seed"] == -1) & (table["gold"] != "_floor")]
    return means.merge(spread, on=["gold", "axis"], how="left").assign(floor=means["axis"].map(floor).to_numpy()).reset_index(drop=True)


def uninformative(run: Run, scorer: str, axis: str) -> str:
    """Why no test is made on this gold model and axis, or "". Pooled axes need a gold model that is informative on each."""
    if scorer not in run.golds:
        return ""
    table = gold_accuracy(run)
    table = table[table["gold"] == scorer]
    low = dict(zip(table["axis"], table["ci_low"].astype(float), strict=True))
    for one in run.axes if axis == POOLED else (axis,):
        if not np.isfinite(low.get(one, np.nan)):
            return f"{UNINFORMATIVE}: no accuracy interval on {one}"
        if low[one] <= 0.5:
            return f"{UNINFORMATIVE} on {one}"
    return ""


CONTRAST_COLUMNS = [
    "arm_a", "arm_b", "axis", "scorer", "difference", "ci_low", "ci_high", "p_value", "p_adjusted", "n_seeds", "n_clusters", "scope",
    "family", "standard_error", "df", "round", "test", "n_dropped",
]  # fmt: skip


def comparisons(run: Run) -> list[tuple[str, Comparison]]:
    """(family, comparison), primary ones first; a pair that is both is primary."""
    compare, seen, found = run.experiment.compare, set(), []
    for family, pairs in (("primary", compare.primary), ("secondary", compare.secondary)):
        for pair in pairs:
            if (pair.a, pair.b) not in seen:
                seen.add((pair.a, pair.b))
                found.append((family, pair))
    return found


def contrasts(run: Run) -> pd.DataFrame:
    """Every declared pair x axis (and "all") x proxy, gold, ground truth, at the final round.

    Family "primary": the primary pairs on compare.axes and compare.scorer, Holm-adjusted together; "secondary": the secondary pairs on the
    same; "descriptive": the rest. Where no test is made p_value is NaN and `scope` or `test` says why.
    """
    compare, rows = run.experiment.compare, []
    axes = list(dict.fromkeys([*run.axes, POOLED, *compare.axes]))
    scorers = list(dict.fromkeys([*run.judges, run.scorer]))
    for family, pair in comparisons(run):
        for axis in axes:
            for scorer in scorers:
                declared = scorer == run.scorer and axis in compare.axes
                rows.append({**_contrast(run, pair, axis, scorer), "family": family if declared else "descriptive"})
    table = pd.DataFrame(rows)
    primary = table["family"] == "primary"
    table["p_adjusted"] = np.nan
    table.loc[primary, "p_adjusted"] = holm(table.loc[primary, "p_value"].to_numpy(dtype=float))
    return table[CONTRAST_COLUMNS].astype({"n_seeds": int, "n_clusters": int, "n_dropped": int})


def _contrast(run: Run, pair: Comparison, axis: str, scorer: str) -> dict[str, Any]:
    rounds = [run.final_round.get(arm) for arm in (pair.a, pair.b)]
    names = {"arm_a": pair.a, "arm_b": pair.b, "axis": axis, "scorer": scorer}
    names["round"] = "/".join("none" if one is None else str(one) for one in dict.fromkeys(rounds))
    rows = run.final[(run.final["scorer"] == scorer) & run.final["arm"].isin([pair.a, pair.b])]
    rows = rows if axis == POOLED else rows[rows["axis"] == axis]
    rows = rows[rows["seed"].isin(shared_seeds(rows, pair))]
    if rows.empty:
        return {**names, **_nothing("no seed of both arms has such scores")}
    try:
        result = contrast(rows, pair.a, pair.b)
    except ValueError as error:
        return {**names, **_nothing(str(error))}
    found = {field: getattr(result, field) for field in Contrast.__dataclass_fields__}
    if reason := uninformative(run, scorer, axis):
        found |= {"p_value": np.nan, "scope": reason, "test": "none: the gold model is not shown to be better than chance"}
    return {**names, **found}


def _nothing(reason: str) -> dict[str, Any]:
    numbers = dict.fromkeys(("difference", "standard_error", "df", "ci_low", "ci_high", "p_value"), np.nan)
    return {**numbers, "n_seeds": 0, "n_clusters": 0, "n_dropped": 0, "scope": "no result", "test": f"none: {reason}"}


def shared_seeds(rows: pd.DataFrame, pair: Comparison) -> list[int]:
    """The seeds that have rows in both arms; what a seed of one arm alone would be compared with is missing."""
    first, second = (set(rows.loc[rows["arm"] == arm, "seed"]) for arm in (pair.a, pair.b))
    return sorted(first & second)


def budget(run: Run) -> pd.DataFrame:
    """Per compared pair and unit: means over shared seeds, their ratio a / b, and whether what the experiment declares matched is.

    A count matches when it is equal in every seed, flops when they differ by at most 5 % of the larger in every seed. A unit that an arm
    never spent is 0. `kind` and `matched` are empty for units that no match speaks of.
    """
    ledger = run.tables["ledger"]
    order = {unit: i for i, unit in enumerate(get_args(Unit))}
    rows = []
    for _, pair in comparisons(run):
        both = _without(ledger[ledger["arm"].isin([pair.a, pair.b])], run.failed)
        seeds = shared_seeds(both, pair)
        used = both.groupby(["arm", "unit", "seed"])["used"].sum().to_dict()
        for unit in sorted({*KINDS, *both["unit"]}, key=lambda unit: (order.get(unit, len(order)), unit)):
            a, b = (np.array([float(used.get((arm, unit, seed), 0.0)) for seed in seeds]) for arm in (pair.a, pair.b))
            kind = KINDS.get(unit, "")
            means = (float(a.mean()), float(b.mean())) if seeds else (np.nan, np.nan)
            tolerance = FLOPS_TOLERANCE * np.maximum(a, b) if kind == "flops" else 0
            matched = "" if not kind else "yes" if seeds and (np.abs(a - b) <= tolerance).all() else "no"
            ratio = means[0] / means[1] if means[1] else np.nan
            declared = "yes" if kind in pair.matched else "no"
            rows.append((pair.a, pair.b, unit, *means, ratio, kind, declared, matched))
    return pd.DataFrame(rows, columns=["arm_a", "arm_b", "unit", "used_a", "used_b", "ratio", "kind", "declared", "matched"])


def sign_agreement(run: Run) -> pd.DataFrame:
    """How far each gold model can be trusted where the truth is known: gold, axis, agree (share), n.

    Over arm, seed and every pair of rounds: of the changes in mean ground truth larger than 0.1 in size, the share in which the gold
    model's mean changes with the same sign. Changes of one run are not independent, so the share has no interval.
    """
    rows = []
    for axis in (*run.axes, POOLED):
        means = seed_means(run.tables["scores"], axis).pivot(index=["arm", "seed", "round"], columns="scorer", values="value")
        for gold in run.golds:
            if not {gold, "ground_truth"} <= set(means.columns):
                continue
            same = []
            for _, one in means[[gold, "ground_truth"]].dropna().groupby(level=["arm", "seed"]):
                for early, late in combinations(one.sort_index().to_numpy(), 2):
                    gold_change, truth_change = late - early
                    if abs(truth_change) > TRUSTED_CHANGE:
                        same.append(np.sign(gold_change) == np.sign(truth_change))
            rows.append((gold, axis, float(np.mean(same)) if same else np.nan, len(same)))
    return pd.DataFrame(rows, columns=["gold", "axis", "agree", "n"])
