"""A run folder as frames: its tables, and summaries of policies, reward models and gold models by round."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.analysis.seal import check_file, check_seal
from apo_bench.config.load import load_experiment
from apo_bench.config.schema import JUDGE, Comparison, Experiment
from apo_bench.errors import InputError
from apo_bench.tables import TABLES, empty_table, read_table, table_path

MANIFEST: dict[str, type] = {  # of its parts that are read here; null is as good as absent
    "failures": list, "notes": list, "splits": dict, "arms": dict, "versions": dict, "variation": dict, "preregistration_change": dict,
    "preregistered": dict, "hardware": dict, "prompt_sets": dict,
    "tuned": dict, "judges": dict, "fits": dict, "name": str, "task": str, "command": str, "commit": str, "provenance": str,
}  # fmt: skip
TRUSTED_CHANGE = 0.1  # a change in ground truth that a gold model should see
POOLED = "all"
UNINFORMATIVE = "uninformative gold"


@dataclass(frozen=True)
class Run:
    """A finished (or partly failed) run: its experiment, manifest and tables."""

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
    def scorers(self) -> tuple[str, ...]:
        """The scorers whose differences are reported, in order: proxy, gold means, ground truth; those that have rows."""
        present = set(self.tables["scores"]["scorer"].unique())
        return tuple(scorer for scorer in ("proxy", *self.golds, "ground_truth") if scorer in present)

    @cached_property
    def scorer(self) -> str:
        """The scorer of the primary family."""
        return self.golds[0] if self.experiment.compare.scorer == "gold" else self.experiment.compare.scorer

    @cached_property
    def judge(self) -> str | None:
        """The judge that is the scorer, by name; None where a model or the truth is."""
        return self.scorer.removeprefix(JUDGE) if self.scorer.startswith(JUDGE) else None

    @cached_property
    def failed(self) -> set[tuple[str, int]]:
        return {
            (str(failure["arm"]), int(failure["seed"]))
            for failure in self.manifest.get("failures") or ()
            if failure.get("seed") is not None
        }

    @cached_property
    def final_round(self) -> dict[str, int]:
        """The last round of each arm, over finished seeds; an arm without one is absent."""
        rounds = exclude_failed(self.tables["scores"], self.failed).groupby("arm")["round"].max()
        return {arm: int(rounds[arm]) for arm in self.arms if arm in rounds.index}

    @cached_property
    def final_scores(self) -> pd.DataFrame:
        """Scores at each arm's final round, of finished seeds."""
        scores = exclude_failed(self.tables["scores"], self.failed)
        return scores[scores["round"] == scores["arm"].map(self.final_round)]

    def scores_at(self, at: str) -> pd.DataFrame:
        """Scores of finished seeds at each arm's final round ("final"), or at each arm-seed's round chosen on dev ("dev_best")."""
        if at == "final":
            return self.final_scores
        scores = exclude_failed(self.tables["scores"], self.failed)
        return scores[scores["round"].to_numpy() == pd.MultiIndex.from_frame(scores[["arm", "seed"]]).map(self.dev_round)]

    @cached_property
    def arm_seeds(self) -> dict[str, list[int]]:
        """The finished seeds of each arm; an arm without one is absent."""
        return {arm: sorted(self.final_scores.loc[self.final_scores["arm"] == arm, "seed"].unique().tolist()) for arm in self.final_round}

    @cached_property
    def dev_round(self) -> dict[tuple[str, int], int]:
        """Each arm-seed's round of the highest dev_score among 1..R, the first among equals; without a dev_score it is absent."""
        table = self.tables["metrics"]
        rows = table[(table["metric"] == "dev_score") & (table["axis"] == POOLED) & (table["round"] >= 1)].dropna(subset=["value"])
        rows = exclude_failed(rows, self.failed).sort_values("round", kind="stable", ignore_index=True)
        best = rows.loc[rows.groupby(["arm", "seed"])["value"].idxmax()]
        return {(arm, int(seed)): int(round_) for arm, seed, round_ in zip(best["arm"], best["seed"], best["round"], strict=True)}

    @cached_property
    def compared_rounds(self) -> dict[tuple[str, int], int]:
        """The round at which each finished arm-seed is compared: its best on dev if the experiment declares it, else its last.

        An arm-seed without a dev_score is compared at its last round.
        """
        chosen = self.dev_round if self.experiment.compare.round == "dev_best" else {}
        return {(arm, seed): chosen.get((arm, seed), self.final_round[arm]) for arm, seeds in self.arm_seeds.items() for seed in seeds}


def read_run(folder: str | Path, *, repairing: bool = False) -> Run:
    """Read experiment.yaml, manifest.json and tables/*.parquet of a run folder.

    `repairing`: as in `check_seal`. Raises InputError, one line naming file and column, also where a file does not match its checksum.
    """
    folder = Path(folder)
    check_seal(folder, repairing=repairing)
    experiment = load_experiment(folder / "experiment.yaml")
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {folder} the folder of a run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    _check_manifest(path, manifest)
    tables, absent = {}, []
    for name, table in TABLES.items():
        path = table_path(folder, name)
        if not table.with_run:
            continue
        # Without one finished arm-seed a run still gets its report.
        if not path.exists() and (table.presence != "required" or manifest.get("failures")):
            tables[name] = empty_table(name)
            absent += [name] if table.presence != "optional" else []
            continue
        tables[name] = read_table(path, name)
    for name, columns in (("scores", ("arm",)), ("judgments", ("arm_a", "arm_b"))):
        for column in columns:
            if unknown := sorted(set(tables[name][column]) - set(experiment.arms)):
                raise InputError(f"{table_path(folder, name)}: column {column}: {unknown[0]!r:.80} is no arm of the experiment")
    if tables["scores"].empty and not manifest.get("failures"):
        raise InputError(f"{table_path(folder, 'scores')}: no rows, so there is nothing to report")
    return Run(experiment, manifest, tables, tuple(absent))


def read_responses(folder: str | Path) -> pd.DataFrame:
    """The table `responses`: every response to a test prompt. Raises InputError as `read_run` does."""
    path = table_path(Path(folder), "responses")
    check_file(Path(folder), path)
    return read_table(path, "responses")


def _check_manifest(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: a mapping of keys is needed, got {type(manifest).__name__}")
    for key, kind in MANIFEST.items():
        if not isinstance(manifest.get(key), kind | None):
            raise InputError(f"{path}: {key}: {kind.__name__} is needed, got {type(manifest[key]).__name__}")
    for place, entry in enumerate(manifest.get("failures") or ()):
        if not isinstance(entry, dict) or not isinstance(entry.get("arm"), str) or not isinstance(entry.get("seed"), int | None):
            raise InputError(f"{path}: failures.{place}: arm, seed and message are needed")
    for key in ("splits", "judges", "tuned", "fits", "prompt_sets"):
        for name, entry in (manifest.get(key) or {}).items():
            if not isinstance(entry, dict):
                raise InputError(f"{path}: {key}.{name}: a mapping of keys is needed, got {type(entry).__name__}")


def exclude_failed(frame: pd.DataFrame, failed: set[tuple[str, int]]) -> pd.DataFrame:
    """The rows of arm-seeds that did not fail."""
    if not failed:
        return frame
    return frame[~pd.MultiIndex.from_frame(frame[["arm", "seed"]]).isin(list(failed))]


def seed_means(scores: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Mean scores: arm, round, scorer, seed, value, n (prompts).

    Clusters weigh alike, as in `contrast`, so that differences of means are contrasts.
    """
    rows = scores if axis == POOLED else scores[scores["axis"] == axis]
    keys = ["arm", "round", "scorer", "seed"]
    clusters = rows.groupby([*keys, "cluster_id"], sort=True)["value"].mean()
    means = clusters.groupby(level=keys).mean().rename("value").reset_index()
    prompts = rows.groupby(keys)["prompt_id"].nunique().rename("n").reset_index()
    return means.merge(prompts, on=keys)


def summary(run: Run) -> pd.DataFrame:
    """Scores and metrics (kl, distinct_n, ...) of every arm by round: arm, round, axis, scorer, mean, seed_sd, n_seeds, n_prompts.

    `mean` is the mean over seeds of means over clusters, `seed_sd` the sample SD over seeds (NaN for one), `n_prompts` the smallest
    number over seeds; metrics are named in `scorer`. Failed arm-seeds count where they have rows. Raises InputError where other tables
    have an axis that the scores lack.
    """
    for name in ("metrics", "reward_models"):
        if run.axes and (odd := set(run.tables[name]["axis"]) - {*run.axes, POOLED}):
            raise InputError(f"tables/{name}.parquet: axis: {min(odd)!r} is none of tables/scores.parquet's axes")
    parts = [seed_means(run.tables["scores"], axis).assign(axis=axis) for axis in (*run.axes, POOLED)]
    metrics = run.tables["metrics"].rename(columns={"metric": "scorer"}).dropna(subset=["value"])
    long = pd.concat([*parts, metrics[["arm", "round", "scorer", "seed", "value", "n", "axis"]]] if len(metrics) else parts)
    grouped = long.groupby(["arm", "round", "axis", "scorer"])
    table = grouped.agg(mean=("value", "mean"), seed_sd=("value", "std"), n_seeds=("seed", "nunique"), n_prompts=("n", "min")).reset_index()
    present = set(table["scorer"])
    by_seed = [scorer for gold in run.golds for scorer in sorted(present) if scorer.startswith(f"{gold}.")]
    known = [*run.scorers, *by_seed]
    scorers = [*known, *sorted(present - set(known))]
    table = table[table["arm"].isin(run.arms)].astype({"round": int, "n_seeds": int, "n_prompts": int})
    return in_order(table, run, ["arm", "round", "axis", "scorer"], scorer=scorers)


def reward_model_diagnostics(run: Run) -> pd.DataFrame:
    """Diagnostics of the arms' reward models: arm, round, axis, metric, mean and seed_sd over seeds, n_seeds."""
    table = run.tables["reward_models"].dropna(subset=["value"])
    table = table[table["arm"].isin(run.arms)]
    grouped = table.groupby(["arm", "round", "axis", "metric"])
    diagnostics = grouped.agg(mean=("value", "mean"), seed_sd=("value", "std"), n_seeds=("seed", "nunique")).reset_index()
    return in_order(diagnostics.astype({"round": int, "n_seeds": int}), run, ["arm", "round", "axis", "metric"])


def reliability_curve(run: Run) -> pd.DataFrame:
    """Reliability curves of reward models on all axes: arm, round, bin, confidence, accuracy, n. Pairs of all seeds are pooled."""
    table = run.tables["reliability"]
    table = table[(table["axis"] == POOLED) & table["arm"].isin(run.arms)]
    weighted = table.assign(**{name: table[name] * table["n"] for name in ("confidence", "accuracy")})
    sums = weighted.groupby(["arm", "round", "bin"])[["confidence", "accuracy", "n"]].sum().reset_index()
    return sums.assign(**{name: sums[name] / sums["n"] for name in ("confidence", "accuracy")}).astype({"round": int, "bin": int, "n": int})


def metrics_by_round(run: Run, summary: pd.DataFrame, diagnostics: pd.DataFrame) -> pd.DataFrame:
    """Scores, metrics and diagnostics in wide form: a row per arm, round and axis.

    Columns: arm, round, axis, n_seeds and, for every scorer and metric, `<name>` and `<name>_sd` over seeds. Diagnostics of reward models
    are named rm_<metric>. What was not measured is NaN.
    """
    named = diagnostics.assign(scorer="rm_" + diagnostics["metric"].astype(str))
    keys = ["arm", "round", "axis"]
    long = pd.concat([summary, named])[[*keys, "scorer", "mean", "seed_sd", "n_seeds"]]
    wide = {value: long.pivot(index=keys, columns="scorer", values=value) for value in ("mean", "seed_sd")}
    table = long.groupby(keys)[["n_seeds"]].max()
    for name in dict.fromkeys(long["scorer"]):
        table[name], table[f"{name}_sd"] = wide["mean"][name], wide["seed_sd"][name]
    return in_order(table.reset_index(), run, keys)


def in_order(table: pd.DataFrame, run: Run, by: Sequence[str], **orders: Sequence[str]) -> pd.DataFrame:
    """Rows sorted by the columns `by`: arms and axes in the run's order, the columns in `orders` in the order given there."""
    values = {"arm": run.arms, "axis": (*run.axes, POOLED), **orders}
    places: dict[Any, dict[str, int]] = {name: {value: place for place, value in enumerate(order)} for name, order in values.items()}
    return table.sort_values([*by], key=lambda key: key.map(places[key.name]) if key.name in places else key, ignore_index=True)


def gold_accuracy(run: Run) -> pd.DataFrame:
    """Accuracy of each gold model's mean score: the columns of the gold table, then seed_low, seed_high, n_gold_seeds, floor.

    seed_low and seed_high are the range over single gold seeds, `floor` the accuracy of the floor model.
    """
    table = run.tables["gold"]
    table = table[table["metric"] == "accuracy"]
    floor = table[table["gold"] == "_floor"].drop_duplicates("axis").set_index("axis")["value"]
    single = table[table["seed"] >= 0].groupby(["gold", "axis"])["value"]
    spread = pd.DataFrame({"seed_low": single.min(), "seed_high": single.max(), "n_gold_seeds": single.size()}).reset_index()
    means = table[(table["seed"] == -1) & (table["gold"] != "_floor")]
    return means.merge(spread, on=["gold", "axis"], how="left").assign(floor=means["axis"].map(floor).to_numpy()).reset_index(drop=True)


def uninformative_gold(run: Run, scorer: str, axis: str) -> str:
    """Why this gold model is not tested on this axis, or "". Pooled axes need a gold model that is informative on each."""
    if scorer not in run.golds:
        return ""
    table = gold_accuracy(run)
    table = table[table["gold"] == scorer]
    low = dict(zip(table["axis"], table["ci_low"].astype(float), strict=True))
    for tested_axis in run.axes if axis == POOLED else (axis,):
        if not np.isfinite(low.get(tested_axis, np.nan)):
            return f"{UNINFORMATIVE}: no accuracy interval on {tested_axis}"
        if low[tested_axis] <= 0.5:
            return f"{UNINFORMATIVE} on {tested_axis}"
    return ""


def declared_pairs(run: Run) -> list[tuple[str, Comparison]]:
    """The declared pairs as (family, pair), primary ones first; a pair in both families is primary."""
    declared: dict[tuple[str, str], tuple[str, Comparison]] = {}
    for family, pairs in (("primary", run.experiment.compare.primary), ("secondary", run.experiment.compare.secondary)):
        for pair in pairs:
            declared.setdefault((pair.a, pair.b), (family, pair))
    return list(declared.values())


def shared_seeds(rows: pd.DataFrame, pair: Comparison) -> list[int]:
    """The seeds that have rows in both arms of a pair."""
    first, second = (set(rows.loc[rows["arm"] == arm, "seed"]) for arm in (pair.a, pair.b))
    return sorted(first & second)


def gold_sign_agreement(run: Run) -> pd.DataFrame:
    """How often gold models and the ground truth change with the same sign: gold, axis, agree (share), n.

    Over arm, seed and every pair of rounds, counting changes in mean ground truth of more than 0.1. Changes within a run are not
    independent, so the share has no interval.
    """
    rows = []
    for axis in (*run.axes, POOLED):
        means = seed_means(run.tables["scores"], axis).pivot(index=["arm", "seed", "round"], columns="scorer", values="value")
        for gold in run.golds:
            if not {gold, "ground_truth"} <= set(means.columns):
                continue
            same = []
            for _, rounds in means[[gold, "ground_truth"]].dropna().groupby(level=["arm", "seed"]):
                for early, late in combinations(rounds.sort_index().to_numpy(), 2):
                    gold_change, truth_change = late - early
                    if abs(truth_change) > TRUSTED_CHANGE:
                        same.append(np.sign(gold_change) == np.sign(truth_change))
            rows.append((gold, axis, float(np.mean(same)) if same else np.nan, len(same)))
    return pd.DataFrame(rows, columns=["gold", "axis", "agree", "n"])
