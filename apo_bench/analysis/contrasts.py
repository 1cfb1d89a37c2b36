"""Contrasts of two arms' scores: at the final round, at the round chosen on dev, and at equal KL from the initial policy."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.analysis.results import POOLED, UNINFORMATIVE, Run, declared_pairs, exclude_failed, shared_seeds, uninformative_gold
from apo_bench.analysis.win_rates import win_rate_as_contrast
from apo_bench.config.finished_arms import is_same_in_every_seed
from apo_bench.config.schema import JUDGE, Compare, Comparison
from apo_bench.stats import Contrast, EffectSize, anytime_contrast, benjamini_hochberg, contrast_of_all_rows, effect_size, holm, lay_out

MATCHED_KL = "matched_kl"
COLUMNS = [
    "arm_a", "arm_b", "axis", "scorer", "difference", "ci_low", "ci_high", "p_value", "p_adjusted", "n_seeds", "n_clusters", "scope",
    "family", "at", "kl", "standard_error", "df", "round", "test", "n_dropped", "hedges_g", "sd", "sd_of", "p_superior",
]  # fmt: skip
ROW = ["arm", "seed", "prompt_id", "cluster_id", "axis", "scorer"]
ScoresByRound = Mapping[tuple[str, int, int], pd.DataFrame]  # (arm, seed, round) -> scores


@dataclass(frozen=True)
class KlPath:
    """The KL of one arm-seed to the initial policy after rounds 0..R, in nats per response; 0 at round 0."""

    kl: tuple[float, ...]
    bound: bool  # some rounds have only an upper bound, as their weights are gone


@dataclass(frozen=True)
class PairScores:
    """The scores of a pair at one comparison point, or None and a note that says why. A missing value is NaN."""

    scores: pd.DataFrame | None
    round: str = "none"
    kl: float = math.nan
    note: str = ""


def comparison_points(run: Run) -> list[str]:
    """Where arms are compared, the declared round first: "final", "dev_best" if there are dev_scores, "matched_kl" if declared."""
    compare = run.experiment.compare
    points = [compare.round, "final", *(["dev_best"] if run.dev_round else []), *([MATCHED_KL] if compare.matched_kl else [])]
    return list(dict.fromkeys(points))


def contrasts(run: Run, rates: pd.DataFrame | None = None) -> pd.DataFrame:
    """A contrast for every declared pair, axis (and "all"), scorer (proxy, gold, ground truth) and point of `comparison_points`.

    Columns: COLUMNS. Where a judge is the declared scorer, its win rates (`rates`, of `win_rates.win_rates`) stand for scores at
    compare.round.

    Family "primary": the primary pairs on compare.axes and compare.scorer at compare.round, adjusted together by Holm; "secondary": the
    secondary pairs on the same, adjusted together by Benjamini and Hochberg; "descriptive": the rest, not adjusted. Without a test
    p_value is NaN and `scope` or `test` says why. `kl` is the common KL of matched_kl; the proxy is left out there, as each round has
    its own reward model.
    """
    compare, contrast_rows = run.experiment.compare, []
    axes = list(dict.fromkeys([*run.axes, POOLED, *compare.axes]))
    scorers: list[str] = list(dict.fromkeys((*run.scorers, run.scorer) if run.judge is None else run.scorers))
    reasons = {(scorer, axis): uninformative_gold(run, scorer, axis) for scorer in scorers for axis in axes}
    scores = run.tables["scores"]
    scores = exclude_failed(scores[scores["scorer"].isin(scorers)], run.failed)
    scores_by_round: ScoresByRound = dict(iter(scores.groupby(["arm", "seed", "round"])))  # pyright: ignore[reportAssignmentType]
    paths = kl_paths(run) if compare.matched_kl else {}
    for at in comparison_points(run):
        for family, pair in declared_pairs(run):
            pair_scores = (
                _at_equal_kl(scores_by_round, paths, pair) if at == MATCHED_KL else scores_at_round(run, scores_by_round, pair, at)
            )
            for axis in axes:
                for scorer in scorers:
                    if (at, scorer) == (MATCHED_KL, "proxy"):
                        continue
                    declared = at == compare.round and scorer == run.scorer and axis in compare.axes
                    labels = {"arm_a": pair.a, "arm_b": pair.b, "axis": axis, "scorer": scorer, "at": at}
                    place = {"family": family if declared else "descriptive", "round": pair_scores.round, "kl": pair_scores.kl}
                    reason = reasons[scorer, axis]
                    contrast_rows.append({**labels, **place, **contrast_of_pair(pair_scores, pair, axis, scorer, reason, compare)})
    if run.judge is not None:
        contrast_rows += [_judged(rates, family, pair, axis, run.judge, compare) for family, pair in declared_pairs(run) for axis in axes]
    table = pd.DataFrame([{**row, "scope": scope_of(run, row)} for row in contrast_rows])
    table["p_adjusted"] = np.nan
    for family, adjust in (("primary", holm), ("secondary", benjamini_hochberg)):
        rows = table["family"] == family
        table.loc[rows, "p_adjusted"] = adjust(table.loc[rows, "p_value"].to_numpy(dtype=float))
    return table[COLUMNS].astype({"n_seeds": int, "n_clusters": int, "n_dropped": int})


def scope_of(run: Run, row: Mapping[str, Any]) -> str:
    """The scope of a contrast or of a win rate; a checkpoint that stands for several seeds is itself no draw of anything."""
    arms = (row["arm_a"], row["arm_b"])
    fixed = [arm for arm in arms if row["n_seeds"] > 1 and is_same_in_every_seed(run.experiment.arms[arm])]
    return row["scope"] + "".join(f"; of {arm} this checkpoint only" for arm in fixed if not row["scope"].startswith(UNINFORMATIVE))


def contrast_of_pair(pair_scores: PairScores, pair: Comparison, axis: str, scorer: str, reason: str, compare: Compare) -> dict[str, Any]:
    """The contrast of a pair on one axis and scorer. `reason`: why the scorer is not tested, or ""."""
    if pair_scores.scores is None:
        return no_result(pair_scores.note)
    rows = pair_scores.scores[pair_scores.scores["scorer"] == scorer]
    rows = rows if axis == POOLED else rows[rows["axis"] == axis]
    complete = rows.dropna(subset=["value"])
    complete = complete[complete["seed"].isin(shared_seeds(complete, pair))]
    if complete.empty:
        return no_result("no seed of both arms has such scores")
    estimate = anytime_contrast if compare.stopping == "anytime" else contrast_of_all_rows
    try:
        result = asdict(estimate(complete, pair.a, pair.b)) | _effect_size(complete, pair)
    except ValueError as error:
        return no_result(str(error))
    result["n_dropped"] += int(rows["value"].isna().sum())
    if reason:
        return result | {"p_value": np.nan, "scope": reason, "test": "none: the gold model is not shown to be better than chance"}
    return result | ({"test": f"{result['test']}; {pair_scores.note}"} if pair_scores.note else {})


def _effect_size(complete: pd.DataFrame, pair: Comparison) -> dict[str, Any]:
    """Of the prompts that every seed has; NaN where there are fewer than two."""
    try:
        return asdict(effect_size(lay_out(complete, pair.a, pair.b), pair.b))
    except ValueError:
        return dict.fromkeys(EffectSize.__dataclass_fields__, np.nan) | {"sd_of": ""}


def _judged(rates: pd.DataFrame | None, family: str, pair: Comparison, axis: str, judge: str, compare: Compare) -> dict[str, Any]:
    """A judge's win rate as a contrast; NaN where nothing was judged."""
    labels = {"arm_a": pair.a, "arm_b": pair.b, "axis": axis, "scorer": f"{JUDGE}{judge}", "at": compare.round}
    labels["family"] = family if axis in compare.axes else "descriptive"
    if rates is not None:
        keys = {"arm_a": pair.a, "arm_b": pair.b, "axis": axis, "judge": judge}
        rows = rates[(rates[list(keys)] == pd.Series(keys)).all(axis=1)]
        if len(rows) == 1:
            return win_rate_as_contrast(rows.to_dict("records")[0]) | labels  # pyright: ignore[reportArgumentType] (columns are text)
    return labels | {"round": "none", "kl": np.nan, **no_result("nothing was judged")}


def no_result(reason: str) -> dict[str, Any]:
    """The numbers of a contrast that could not be had, and why."""
    numbers = dict.fromkeys((*Contrast.__dataclass_fields__, *EffectSize.__dataclass_fields__), np.nan)
    return {**numbers, "sd_of": "", "n_seeds": 0, "n_clusters": 0, "n_dropped": 0, "scope": "no result", "test": f"none: {reason}"}


def scores_at_round(run: Run, scores_by_round: ScoresByRound, pair: Comparison, at: str) -> PairScores:
    """Both arms' scores at their final rounds, or at those chosen on dev."""
    parts, rounds = [], []
    for arm in (pair.a, pair.b):
        seeds = run.arm_seeds.get(arm, [])
        chosen = {seed: run.final_round[arm] if at == "final" else run.dev_round.get((arm, seed)) for seed in seeds}
        rounds.append("+".join(map(str, sorted({round_ for round_ in chosen.values() if round_ is not None}))) or "none")
        parts += [
            scores_by_round[arm, seed, round_]
            for seed, round_ in chosen.items()
            if round_ is not None and (arm, seed, round_) in scores_by_round
        ]
    label = "/".join(dict.fromkeys(rounds))
    if not parts:
        reason = "no dev_score was recorded" if at == "dev_best" and not run.dev_round else "no seed of both arms has such scores"
        return PairScores(None, label, note=reason)
    return PairScores(pd.concat(parts)[[*ROW, "value"]], label)


def kl_paths(run: Run) -> dict[tuple[str, int], KlPath]:
    """The KL path of every arm-seed whose KL over all axes, or its upper bound, is known after each round."""
    table = exclude_failed(run.tables["metrics"], run.failed)
    table = table[(table["axis"] == POOLED) & (table["round"] >= 1)].dropna(subset=["value"])
    by_step = table.set_index(["arm", "seed", "round"])
    kl, bound = (by_step.loc[by_step["metric"] == metric, "value"].to_dict() for metric in ("kl", "kl_bound"))
    either, paths = bound | kl, {}
    for arm, seeds in run.arm_seeds.items():
        for seed in seeds:
            steps = [(arm, seed, round_) for round_ in range(1, run.final_round[arm] + 1)]
            if all(step in either for step in steps):
                paths[arm, seed] = KlPath((0.0, *(either[step] for step in steps)), any(step not in kl for step in steps))
    return paths


def first_round_reaching(path: KlPath, kl: float) -> tuple[int, float]:
    """The first round at whose end a path has reached `kl` > 0, and the share of that round's step at which it does."""
    late = next(round_ for round_, reached in enumerate(path.kl) if reached >= kl)
    before = path.kl[late - 1]
    return late, (kl - before) / (path.kl[late] - before)


def _at_equal_kl(scores_by_round: ScoresByRound, paths: Mapping[tuple[str, int], KlPath], pair: Comparison) -> PairScores:
    """Both arms' scores at their common KL, each prompt's interpolated linearly in KL within the round that first reaches it."""
    seeds = sorted({seed for arm, seed in paths if arm == pair.a} & {seed for arm, seed in paths if arm == pair.b})
    chosen = {(arm, seed): paths[arm, seed] for arm in (pair.a, pair.b) for seed in seeds}
    if not chosen:
        return PairScores(None, note="no seed of both arms has a KL after every round")
    kl = min(max(path.kl) for path in chosen.values())  # the largest that all reach
    if kl <= 0:
        return PairScores(None, kl=kl, note="an arm is no farther from the initial policy than at the start")
    parts = []
    for (arm, seed), path in chosen.items():
        late, share = first_round_reaching(path, kl)
        ends = [scores_by_round.get((arm, seed, round_)) for round_ in (late - 1, late)]
        if ends[0] is None or ends[1] is None:
            return PairScores(None, kl=kl, note=f"{arm}, seed {seed}: no scores of round {late - 1} or {late}")
        both = ends[0].merge(ends[1], on=ROW, how="outer", suffixes=("_early", "_late"))
        parts.append(both[ROW].assign(value=(1 - share) * both["value_early"] + share * both["value_late"]))
    note = "scores interpolated linearly in KL within the round that first reaches the common KL"
    if bounds := sorted({arm for (arm, _), path in chosen.items() if path.bound}):
        note += f"; the KL of {', '.join(bounds)} is an upper bound"
    return PairScores(pd.concat(parts), "between", kl, note)
