"""What a finished run can detect, and what a larger one could: its primary contrasts taken as a pilot. No model, no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from apo_bench.analysis.results import POOLED, Run, declared_pairs, exclude_failed, shared_seeds, uninformative_gold
from apo_bench.analysis.win_rates import NOT_AUDITED, uninformative_judge, verdicts_as_scores
from apo_bench.config.schema import Comparison
from apo_bench.stats.power_analysis import Components, Size, components, mde_table, plan_size
from apo_bench.stats.score_layout import Layout, lay_out

ALPHA = 0.05
SEEDS = (3, 5, 10, 20)
CLUSTERS = (0.25, 0.5, 1, 2, 4)  # times the run's own


@dataclass(frozen=True)
class ContrastPower:
    """A primary contrast as a pilot. NaN and None are what the run does not tell; then `note` says why.

    `detectable` is what this run's own seeds and clusters find with the wanted power at a level of 5 %; `detectable_by_holm` the same at
    5 % over the number of primary tests, which Holm's correction asks of the smallest p-value. `table`: rows n_seeds, columns n_clusters.
    `needed` answers an effect asked about: the seeds it takes with this run's clusters; `needed_low`, `needed_high`: were the seed SD at
    the ends of its interval.
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
    """A Plan for each primary pair on each of compare.axes, from the scores its contrast is made of (compare.scorer, compare.round).

    Without `other_sizes` there is no `table`, which takes most of the time.
    """
    asked = [(pair, axis) for family, pair in declared_pairs(run) if family == "primary" for axis in run.experiment.compare.axes]
    plans = []
    for pair, axis in asked:
        plan = ContrastPower(pair.a, pair.b, axis)
        scores = _declared(run, pair)
        rows = scores if axis == POOLED else scores[scores["axis"] == axis]
        rows = rows[rows["seed"].isin(shared_seeds(rows, pair))]
        reason = _doubt(run, axis)
        if reason or rows.empty:
            plans.append(replace(plan, note=f"no test is made: {reason}" if reason else "no seed of both arms has such scores"))
            continue
        try:
            layout = lay_out(rows, pair.a, pair.b, caller="power")
        except ValueError as error:
            plans.append(replace(plan, note=str(error)))
            continue
        plan = replace(plan, n_seeds=layout.n_seeds, n_clusters=layout.n_clusters)
        if layout.n_seeds == 1:
            plans.append(_from_one_seed(plan, layout, len(asked), power))
        else:
            plans.append(_from_seeds(plan, components(rows, pair.a, pair.b), len(asked), power, effect, other_sizes))
    return tuple(plans)


def power_notes(plans: Sequence[ContrastPower], *, power: float, effect: float | None = None) -> list[str]:
    """What the numbers of `planned` do not say themselves: the seeds an effect takes, what is missing and why, whose SDs these are."""
    said = []
    for one in plans:
        name = f"{one.a} - {one.b}, {one.axis}"
        said += [f"{name}: {one.note}."] if one.note else []
        said += [f"{name}: to find {effect:g}, {_in_words(one, one.needed)}."] if one.needed else []
    return [
        *said,
        f"A difference is detected if the two-sided two-way t test over seeds (paired) and clusters of prompts, at 5 %, rejects "
        f"with probability {power:g}; 'by Holm' at 5 % over {len(plans)}, as the smallest of {len(plans)} primary p-values has to. "
        "Scope: new seeds and new prompts; with one seed, these checkpoints only.",
        "SDs are those of the difference of the two arms between seeds, between clusters of prompts and in what is left, estimated from "
        "this run by analysis of variance. From few seeds they are rough: with S seeds the seed mean square has S - 1 degrees of "
        "freedom, hence the interval (chi-square). What is planned from them is as rough.",
    ]


def _doubt(run: Run, axis: str) -> str:
    """Why no test is made of the declared scorer, or ""."""
    if run.judge is None:
        return uninformative_gold(run, run.scorer, axis)
    reason = uninformative_judge(run.tables["judge_audit"], run.judge, axis, run.axes)
    return "" if reason == NOT_AUDITED else reason


def _declared(run: Run, pair: Comparison) -> pd.DataFrame:
    """The declared scorer's rows at the declared round; a judge's verdicts as scores whose difference is the win rate's from 1/2."""
    if run.judge is not None:
        return verdicts_as_scores(run.tables["judgments"], run.judge, pair.a, pair.b)
    scores = run.final
    if run.experiment.compare.round == "dev_best":
        scores = exclude_failed(run.tables["scores"], run.failed)
        chosen = pd.MultiIndex.from_frame(scores[["arm", "seed"]]).map(run.dev_round)
        scores = scores[scores["round"].to_numpy() == chosen]
    return scores[(scores["scorer"] == run.scorer) & scores["value"].notna()]


def _detectable(plan: ContrastPower, found: Components, n_tests: int, power: float) -> ContrastPower:
    """With what the run itself finds: by a single test, and by Holm's first."""
    own = {"seeds": [plan.n_seeds], "clusters": [plan.n_clusters]}
    single, by_holm = (mde_table(found, **own, power=power, alpha=ALPHA / count).to_numpy().item() for count in (1, n_tests))
    return replace(plan, detectable=single, detectable_by_holm=by_holm)


def _from_one_seed(plan: ContrastPower, layout: Layout, n_tests: int, power: float) -> ContrastPower:
    found = Components(0.0, float(layout.differences.std(ddof=1)), 0.0)  # method x prompt and the rest cannot be told apart
    note = (
        "one seed tells nothing of the variance between seeds, so neither a number of seeds nor a claim about new ones can be planned "
        "from it; what it detects holds for these checkpoints only"
    )
    return replace(_detectable(plan, found, n_tests, power), note=note)


def _from_seeds(
    plan: ContrastPower, found: Components, n_tests: int, power: float, effect: float | None, other_sizes: bool
) -> ContrastPower:
    seeds, clusters = sorted({*SEEDS, plan.n_seeds} - {2}), sorted({max(2, round(plan.n_clusters * share)) for share in CLUSTERS})
    few = "two seeds make no test, and their seed SD rests on one degree of freedom: all planned from it is a guess, run a larger pilot"
    plan = replace(
        _detectable(plan, found, n_tests, power),
        components=found,
        table=mde_table(found, seeds=seeds, clusters=clusters, power=power) if other_sizes else None,
        note="; ".join(note for note in (few if plan.n_seeds == 2 else "", found.note) if note),
    )
    if effect is None:
        return plan
    needed, low, high = (
        None
        if math.isnan(sd)
        else plan_size(
            effect,
            seed_sd=sd,
            method_prompt_sd=found.method_prompt_sd,
            residual_sd=found.residual_sd,
            n_clusters=plan.n_clusters,
            power=power,
            alpha=ALPHA,
        )
        for sd in (found.seed_sd, found.seed_sd_low, found.seed_sd_high)
    )
    return replace(plan, needed=needed, needed_low=low, needed_high=high)


def _in_words(plan: ContrastPower, needed: Size) -> str:
    """How many seeds are needed, and how far the roughness of the seed SD moves that."""
    if needed.n_seeds is None:
        return f"no number of seeds is enough: {needed.reason}"
    words = f"{needed.n_seeds:,} seeds with {plan.n_clusters} clusters"
    if plan.needed_low is None or plan.needed_high is None:
        return words
    ends = [f"{one.n_seeds:,}" if one.n_seeds else "no number" for one in (plan.needed_low, plan.needed_high)]
    return f"{words} ({ends[0]} to {ends[1]} over the interval of the seed SD)"
