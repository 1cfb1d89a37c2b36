"""The controls of a run: their contrasts as a frame, and what they say of its power in plain sentences. No model, no torch."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import pandas as pd

from apo_bench.analysis.contrasts import no_result
from apo_bench.analysis.power import primary_power
from apo_bench.analysis.results import POOLED, Run, exclude_failed, shared_seeds
from apo_bench.config.controls import AA, DILUTED, FIRST, HARD, ORACLE, TRUTH, diluted
from apo_bench.config.schema import Comparison
from apo_bench.formatting import ALPHA, Row, rows_of, signed
from apo_bench.stats import contrast_of_all_rows

COLUMNS = [
    "control", "arm_a", "arm_b", "axis", "scorer", "share", "effect", "difference", "standard_error", "df", "ci_low", "ci_high", "p_value",
    "n_seeds", "n_clusters", "n_dropped", "scope", "test", "hard",
]  # fmt: skip
NONE = "No controls were run, so nothing shows here that this run invents no difference, or that it would see one."


def controls(run: Run) -> pd.DataFrame:
    """A row for each control, scorer and declared axis; columns COLUMNS. NaN is what could not be had, and `test` says why.

    control "aa": the reference less itself under other seeds, on the declared scorer. "oracle": the best of several answers less the
    reference's at its final round, by the declared scorer and by the truth. "diluted": the same where only a `share` of the clusters
    has the best answer, and the others the first; so many that the oracle's difference, on the first declared axis, comes to `effect`.
    A judge scores no controls, and what the oracle chooses by is no gold model that scores it: the first gold model stands for both.
    """
    settings, rows = run.experiment.controls, []
    if settings.aa:
        rows += _aa_rows(run)
    if settings.oracle:
        rows += _oracle_rows(run)
    tested = sum(row["control"] == "aa" and not math.isnan(row["p_value"]) for row in rows)
    for row in rows:  # on several axes there are as many chances to be wrong
        row["hard"] = "yes" if row["control"] == "aa" and row["p_value"] < HARD / max(tested, 1) else "no" if row["control"] == "aa" else ""
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n_seeds": int, "n_clusters": int, "n_dropped": int})


def sentences(run: Run, frame: pd.DataFrame | None = None) -> list[str]:
    """What the controls show of this run's power, on the first declared axis; A/A on all of them. `frame`: that of `controls`."""
    frame = controls(run) if frame is None else frame
    settings, name, first = run.experiment.controls, run.experiment.reference, run.experiment.compare.axes[0]
    if not settings.aa and not settings.oracle:
        return [NONE]
    at = ["Controls are compared at the final round, the declared contrasts at the one chosen on dev."]
    at = at if run.experiment.compare.round == "dev_best" else []
    lines = [_aa_sentence(row) for row in rows_of(frame[frame["control"] == "aa"])] if settings.aa else ["No A/A arm was run."]
    n = len(run.experiment.seeds)
    if settings.aa and 0 < (n_finished := _aa_scores(run)["seed"].nunique()) < n:
        lines.append(f"Under {n - n_finished} of the {n} other seeds it has no result.")
    if not settings.oracle:
        return [*lines, "No oracle was run.", *at]
    rows = frame[(frame["axis"] == first) & (frame["scorer"] == _scored_for_oracle(run).scorer)].set_index("control", drop=False)
    best = f": the best of {settings.oracle_n} answers of {name} by {chosen_by(run)}" if len(run.tables["control_scores"]) else ""
    lines.append(_oracle_sentence(rows.loc["oracle"], f"An oracle (not a fair arm{best})"))
    lines.append(_diluted_sentence(rows.loc["diluted"], given=settings.effect is not None))
    of_reference = set(run.arm_seeds.get(name, ()))
    for missing, why in (
        (set(run.experiment.seeds) - of_reference, "the reference has no result there"),
        (of_reference - set(_own(run, ORACLE)["seed"]), "making it failed"),
    ):
        if missing:
            lines.append(f"The oracle (not a fair arm) is missing in {len(missing)} of {n} seeds ({listed(missing)}): {why}.")
    return [*lines, *at]


def failed(frame: pd.DataFrame) -> list[str]:
    """A/A differences that cannot be luck, a sentence each. `frame`: that of `controls`."""
    rows = frame[frame["hard"] == "yes"]
    return [f"{row.arm_a} differs from itself under other seeds: {_numbers(row)}." for row in rows_of(rows)]


# --- what is compared -----------------------------------------------------------------------------------------------------------


def _scored_for_oracle(run: Run) -> Run:
    """The run with its oracle's scorer in the place of the declared one, and with its first primary pair and axis alone."""
    compare = run.experiment.compare
    scorer = "gold" if run.judge is not None or (run.scorer == run.golds[-1] and not _has_truth(run)) else compare.scorer
    compare = compare.model_copy(
        update={"scorer": scorer, "primary": compare.primary[:1], "secondary": (), "axes": compare.axes[:1], "round": "final"}
    )
    return replace(run, experiment=run.experiment.model_copy(update={"compare": compare}))


def _has_truth(run: Run) -> bool:
    return bool((run.tables["scores"]["scorer"] == TRUTH).any())


def chosen_by(run: Run) -> str:
    return "the ground truth" if _has_truth(run) else f"the gold model {run.golds[-1]}"


def _own(run: Run, arm: str) -> pd.DataFrame:
    scores = run.tables["control_scores"]
    return scores[scores["arm"] == arm]


def _aa_scores(run: Run) -> pd.DataFrame:
    """The reference's scores under its other seeds at the final round."""
    scores = exclude_failed(_own(run, AA), run.failed)
    return scores[scores["round"] == scores["round"].max()]


def _reference_scores(run: Run) -> pd.DataFrame:
    return run.final_scores[run.final_scores["arm"] == run.experiment.reference]


def _aa_rows(run: Run) -> Iterator[dict[str, Any]]:
    repeated, own = _aa_scores(run), _reference_scores(run)
    scorer = run.scorer if run.judge is None else run.golds[0]
    reason = "the reference has no result" if own.empty else "it has no result under the other seeds" if repeated.empty else ""
    for axis in run.experiment.compare.axes:
        row = _contrast(pd.concat([own, repeated]), run.experiment.reference, AA, axis, scorer, paired=False, reason=reason)
        if row["n_seeds"] < 3 and not math.isnan(row["difference"]):
            few = f"none: three seeds of each are needed, {row['n_seeds']} are there"
            row |= {"p_value": math.nan, "test": few}
            row |= {"ci_low": math.nan, "ci_high": math.nan} if row["n_seeds"] == 1 else {}  # which were about these checkpoints
        yield {"control": "aa", **row}


def _oracle_rows(run: Run) -> list[dict[str, Any]]:
    by, own, best, first = _scored_for_oracle(run), _reference_scores(run), _own(run, ORACLE), _own(run, FIRST)
    reference = run.experiment.reference
    scorers = [by.scorer, *([TRUTH] if _has_truth(run) and by.scorer != TRUTH else [])]
    reason = "the reference has no result" if own.empty else "the oracle has no result" if best.empty else ""
    both = pd.concat([own, best])
    places = list(product(run.experiment.compare.axes, scorers))
    rows = [{"control": "oracle", **_contrast(both, ORACLE, reference, *place, paired=True, reason=reason)} for place in places]
    whole = rows[0]["difference"]
    effect, reason = _target_effect(by) if not reason else (math.nan, reason)
    if not reason and math.isnan(whole):
        reason = "the oracle's own difference is not known"
    elif not reason and whole <= 0:
        reason = "the oracle is no better than the reference, so that there is nothing to dilute"
    elif not reason and effect > whole:
        reason = f"the whole oracle is smaller than the difference wanted, {effect:.3f}"
    share = math.nan
    if not reason:
        chosen = diluted(best["cluster_id"], effect / whole)
        share = len(chosen) / best["cluster_id"].nunique()
        mixed = pd.concat([best[best["cluster_id"].isin(chosen)], first[~first["cluster_id"].isin(chosen)]]).assign(arm=DILUTED)
        both = pd.concat([own, mixed])
    mixture = {"control": "diluted", "share": share, "effect": effect}
    return rows + [mixture | _contrast(both, DILUTED, reference, *place, paired=True, reason=reason) for place in places]


def _target_effect(by: Run) -> tuple[float, str]:
    """The difference that the diluted oracle is to have, or NaN and why it is not known."""
    if (effect := by.experiment.controls.effect) is not None:
        return effect, ""
    (plan,) = primary_power(by, other_sizes=False)
    if math.isnan(plan.detectable):
        return math.nan, f"what this run should detect is not known: {plan.note or 'it makes no test'}"
    return plan.detectable, ""


def _contrast(rows: pd.DataFrame, a: str, b: str, axis: str, scorer: str, *, paired: bool, reason: str) -> dict[str, Any]:
    names = {"arm_a": a, "arm_b": b, "axis": axis, "scorer": scorer}
    try:
        if reason:
            raise ValueError(reason)
        rows = rows[(rows["scorer"] == scorer) & ((axis == POOLED) | (rows["axis"] == axis))]
        if paired:
            rows = rows[rows["seed"].isin(shared_seeds(rows, Comparison(a=a, b=b)))]
        return names | asdict(contrast_of_all_rows(rows, a, b, paired_seeds=paired))
    except ValueError as error:
        return names | no_result(str(error))


# --- in words -------------------------------------------------------------------------------------------------------------------


def _aa_sentence(row: Row) -> str:
    who = f"The reference, {row.arm_a},"
    if math.isnan(row.difference):
        return f"{who} could not be compared with itself under other seeds: {_reason(row)}."
    start = f"{who} against itself under other seeds differs by {_numbers(row)}"
    if math.isnan(row.p_value):
        return f"{start}; no test: {_reason(row)}."
    if row.hard == "yes":
        return f"{start}: a difference where there is none, so no difference below can be trusted."
    chance = "; one run in twenty has p below 0.05 by chance" if row.p_value < ALPHA else ""
    return f"{start}: the seed noise of this run{chance}."


def _oracle_sentence(row: Row, who: str) -> str:
    if math.isnan(row.difference):
        return f"{who} has no result: {_reason(row)}."
    if math.isnan(row.p_value):
        return f"{who} differs from the reference by {_numbers(row)}; no test: {_reason(row)}."
    return f"{who} is {'' if row.p_value < ALPHA and row.difference > 0 else 'not '}detected: {_numbers(row)}."


def _diluted_sentence(row: Row, given: bool) -> str:
    size = "the difference asked about" if given else "the smallest difference that this run should detect"
    if math.isnan(row.share):
        return f"There is no diluted oracle (not a fair arm either): {_reason(row)}."
    return _oracle_sentence(
        row, f"Diluted to {percent(row.share)} of the prompts, near {size} ({row.effect:.3f}), it (not a fair arm either)"
    )


def _numbers(row: Row) -> str:
    """The difference and, in brackets, its interval and p, scorer and axis."""
    interval = [] if math.isnan(row.ci_low) else [f"{signed(row.ci_low)} to {signed(row.ci_high)}"]
    p = [] if math.isnan(row.p_value) else ["p below 0.001" if row.p_value < 0.001 else f"p = {row.p_value:.3f}"]
    where = f"{row.scorer}, {'all axes pooled' if row.axis == POOLED else row.axis}"
    return f"{signed(row.difference)} ({', '.join([*interval, *p])}{'; ' if interval or p else ''}{where})"


def _reason(row: Row) -> str:
    return str(row.test).removeprefix("none: ")


def listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
