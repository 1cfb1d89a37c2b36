"""The effects that a finished run can detect, and that a larger one could: its primary contrasts as a pilot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from apo_bench.analysis.results import POOLED, Run, declared_pairs, shared_seeds, uninformative_gold
from apo_bench.analysis.win_rates import NOT_AUDITED, uninformative_judge, verdicts_as_scores
from apo_bench.config.schema import Comparison
from apo_bench.formatting import ALPHA
from apo_bench.stats.power_analysis import Components, Size, components, mde_table, plan_size
from apo_bench.stats.score_layout import lay_out

SEEDS = (3, 5, 10, 20)
CLUSTERS = (0.25, 0.5, 1, 2, 4)  # times the run's own
FEW = {  # what limits a plan from so few seeds
    1: "one seed says nothing about the variance between seeds, so neither a number of seeds nor a claim about new ones can be planned "
    "from it; what it detects holds for these checkpoints only",
    2: "two seeds make no test, and their seed SD has one degree of freedom: plans made from it are a guess, run a larger pilot",
}


@dataclass(frozen=True)
class ContrastPower:
    """The power of one primary contrast, planned from this run as a pilot. NaN and None: unknown, and `note` says why.

    `detectable` is the smallest effect that this run's seeds and clusters detect with the wanted power at a level of 5 %,
    `detectable_by_holm` the same at 5 % divided by the number of primary tests, Holm's level for the smallest p-value. `table`: the
    detectable effect of other designs, rows n_seeds, columns n_clusters. `needed`: the seeds that a given effect takes with this run's
    clusters; `needed_low`, `needed_high`: the same at the ends of the seed SD's interval.
    """

    a: str
    b: str
    axis: str
    n_seeds: int = 0
    n_clusters: int = 0
    components: Components | None = None
    detectable: float = math.nan
    detectable_by_holm: float = math.nan
    table: pd.DataFrame | None = None
    needed: Size | None = None
    needed_low: Size | None = None
    needed_high: Size | None = None
    note: str = ""


def primary_power(run: Run, *, power: float = 0.8, effect: float | None = None, other_sizes: bool = True) -> tuple[ContrastPower, ...]:
    """A ContrastPower for each primary pair on each of compare.axes, from the scores of its contrast (compare.scorer, compare.round).

    `effect`: an effect whose `needed` seeds are wanted. Without `other_sizes` there is no `table`, which takes most of the time.
    """
    primary = [(pair, axis) for family, pair in declared_pairs(run) if family == "primary" for axis in run.experiment.compare.axes]
    return tuple(_contrast_power(run, pair, axis, len(primary), power, effect, other_sizes) for pair, axis in primary)


def power_notes(results: Sequence[ContrastPower], *, power: float, effect: float | None = None) -> list[str]:
    """Sentences that explain the numbers of `primary_power`: needed seeds, missing results, the test, and where the SDs come from."""
    notes = []
    for result in results:
        name = f"{result.a} - {result.b}, {result.axis}"
        notes += [f"{name}: {result.note}."] if result.note else []
        notes += [f"{name}: to detect {effect:g}, {_in_words(result, result.needed)}."] if result.needed else []
    return [
        *notes,
        f"A difference is detected if the two-sided two-way t test over seeds (paired) and clusters of prompts, at 5 %, rejects "
        f"with probability {power:g}; 'by Holm' at 5 % over {len(results)}, as the smallest of {len(results)} primary p-values has to. "
        "Scope: new seeds and new prompts; with one seed, these checkpoints only.",
        "SDs are those of the difference of the two arms: between seeds, between clusters of prompts, and residual; estimated from this "
        "run by analysis of variance. From few seeds they are rough: with S seeds the seed mean square has S - 1 degrees of "
        "freedom, hence the interval (chi-square). Plans made from them are as rough.",
    ]


def _uninformative_scorer(run: Run, axis: str) -> str:
    """Why the declared scorer is not tested, or ""."""
    if run.judge is None:
        return uninformative_gold(run, run.scorer, axis)
    reason = uninformative_judge(run.tables["judge_audit"], run.judge, axis, run.axes)
    return "" if reason == NOT_AUDITED else reason


def _declared_scores(run: Run, pair: Comparison) -> pd.DataFrame:
    """The declared scorer's scores at the declared round; a judge's verdicts as scores (`verdicts_as_scores`)."""
    if run.judge is not None:
        return verdicts_as_scores(run.tables["judgments"], run.judge, pair.a, pair.b)
    scores = run.scores_at(run.experiment.compare.round)
    return scores[(scores["scorer"] == run.scorer) & scores["value"].notna()]


def _contrast_power(
    run: Run, pair: Comparison, axis: str, n_tests: int, power: float, effect: float | None, other_sizes: bool
) -> ContrastPower:
    """The power of one contrast, of which `n_tests` are adjusted together."""
    result = ContrastPower(pair.a, pair.b, axis)
    scores = _declared_scores(run, pair)
    rows = scores if axis == POOLED else scores[scores["axis"] == axis]
    rows = rows[rows["seed"].isin(shared_seeds(rows, pair))]
    reason = _uninformative_scorer(run, axis)
    if reason or rows.empty:
        return replace(result, note=f"no test is made: {reason}" if reason else "no seed of both arms has such scores")
    try:
        layout = lay_out(rows, pair.a, pair.b, caller="power")
    except ValueError as error:
        return replace(result, note=str(error))
    n_seeds, n_clusters = layout.n_seeds, layout.n_clusters
    if n_seeds == 1:  # method x prompt and residual cannot be separated
        variances = Components(0.0, float(layout.differences.std(ddof=1)), 0.0)
    else:
        variances = components(rows, pair.a, pair.b)
    own = {"seeds": [n_seeds], "clusters": [n_clusters]}
    single, by_holm = (mde_table(variances, **own, power=power, alpha=ALPHA / count).to_numpy().item() for count in (1, n_tests))
    note = "; ".join(filter(None, (FEW.get(n_seeds), variances.note)))
    numbers = {"n_seeds": n_seeds, "n_clusters": n_clusters, "detectable": single, "detectable_by_holm": by_holm, "note": note}
    result = replace(result, **numbers)
    if n_seeds == 1:
        return result
    if other_sizes:
        seeds, clusters = sorted({*SEEDS, n_seeds} - {2}), sorted({max(2, round(n_clusters * share)) for share in CLUSTERS})
        result = replace(result, table=mde_table(variances, seeds=seeds, clusters=clusters, power=power))
    if effect is not None:
        same = {"method_prompt_sd": variances.method_prompt_sd, "residual_sd": variances.residual_sd, "n_clusters": n_clusters}
        sds = {"needed": variances.seed_sd, "needed_low": variances.seed_sd_low, "needed_high": variances.seed_sd_high}
        sizes = {name: plan_size(effect, seed_sd=sd, **same, power=power, alpha=ALPHA) for name, sd in sds.items() if not math.isnan(sd)}
        result = replace(result, **sizes)
    return replace(result, components=variances)


def _in_words(result: ContrastPower, needed: Size) -> str:
    """The number of seeds needed, and its range over the interval of the seed SD."""
    if needed.n_seeds is None:
        return f"no number of seeds is enough: {needed.reason}"
    words = f"{needed.n_seeds:,} seeds with {result.n_clusters} clusters"
    if result.needed_low is None or result.needed_high is None:
        return words
    ends = [f"{size.n_seeds:,}" if size.n_seeds else "no number" for size in (result.needed_low, result.needed_high)]
    return f"{words} ({ends[0]} to {ends[1]} over the interval of the seed SD)"
