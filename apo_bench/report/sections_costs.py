"""The report's section on costs: matches, each arm alone and in this run, the plan, and how arms were sized. Frames in, lines out."""

import math
from typing import get_args

import pandas as pd

from apo_bench.analysis import costs
from apo_bench.analysis.results import Run, exclude_failed
from apo_bench.config.controls import AA, made_of
from apo_bench.config.schema import Unit
from apo_bench.formatting import count, plain, rows_of, table

SAID = "flops", "sampled_responses", "rm_updates", "policy_updates", "human_pairs", "golden_responses"  # of what sharing saved


def budget(run: Run, matches: pd.DataFrame) -> list[str]:
    """Pair against pair in the units that a match can speak of; what each arm costs alone and in this run; plan and sizes.

    `matches` is `costs.budget_matches`'s frame.
    """
    rows = [
        [f"`{r.arm_a}` / `{r.arm_b}`", r.unit, count(r.used_a), count(r.used_b), _ratio(r.ratio), r.kind, r.declared, r.matched]
        for r in rows_of(matches[matches["kind"] != ""])
    ]
    return [
        *table(["pair", "unit", "a used", "b used", "a / b", "kind", "declared", "matched"], rows),
        "",
        "Means over shared seeds; other units in `budget.csv`. Matched: counts equal in every seed, flops within 5 % in every seed.",
        *_part("What sized arms spend", sized(run)),
        *_part("What each arm costs alone", _alone(run)),
        *_part("What each arm added in this run", _added(run)),
        *_part("Plan and run", planned(run)),
    ]


def sized(run: Run) -> list[str]:
    """By what each arm with `fit` was sized, and how near it came; nothing where no arm was."""
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    used = {(arm, unit): group.set_index("seed")["used"] for (arm, unit), group in ledger.groupby(["arm", "unit"])}
    lines = []
    for arm, one in (run.manifest.get("fits") or {}).items():
        both = [used.get((name, one["unit"]), pd.Series(dtype=float)) for name in (arm, one["to"])]
        shared = both[0].index.intersection(both[1].index)
        mine, other = (float(amounts[shared].mean()) for amounts in both)
        beside = ", ".join(f"{value:g}: {ratio:.3f}" for value, ratio in one.get("beside") or ())
        lines.append(
            f"- `{arm}` was given {plain(one['by'])} = {one['value']:g}, so as to spend as much {one['unit']} as `{one['to']}`: "
            f"{one['ratio']:.3f} of it by plan{f' ({beside})' if beside else ''}, {_ratio(mine / other if other else math.nan)} as found."
        )
    return lines


def planned(run: Run) -> list[str]:
    """What was planned before anything was spent and what was spent, and which amounts are off."""
    frame = costs.planned_and_spent(run)
    if frame.empty:
        return ["No plan was kept."]
    units = [unit for unit in get_args(Unit) if unit in set(frame["unit"])]
    cells = {(one.arm, one.unit): f"{count(one.used)} of {count(one.planned)}" for one in rows_of(frame)}
    rows = [[f"`{arm}`", *[cells.get((arm, unit), "-") for unit in units]] for arm in dict.fromkeys(frame["arm"])]
    off = [f"`{one.arm}` {one.unit} ({_ratio(one.ratio)} of the plan)" for one in rows_of(frame[frame["off"] == "yes"])]
    said = f"Off by more than 10 %: {', '.join(off)}." if off else "Nothing is off by more than 10 %."
    note = (
        "Spent of planned, means over seeds, counted before anything was spent; ratios in `plan.csv`. Tokens and flops of a plan are "
        "expectations: how long a trained policy's answers get, no plan knows. Time and memory are measured, so no two runs have the same: "
        "`measured.md`, beside this file, has them."
    )
    return [*table(["arm", *units], rows), "", f"{said} {note}"]


def measured(run: Run, frame: pd.DataFrame) -> list[str]:
    """The lines of measured.md; `frame` is `costs.time_and_memory`'s."""
    rows = [
        [f"`{one.arm}`", costs.MEASURES[one.measure], count(one.mean), count(one.lowest), count(one.highest), str(one.n_seeds)]
        for one in rows_of(frame)
    ]
    note = (
        "Seconds: what making the arm's artifacts took, whichever arm made them, in one process; evaluation is not in it. Memory: the "
        "largest resident size of a process that made one. Both are the machine's and the moment's, and match nothing."
    )
    return [f"# {plain(run.experiment.name)}: as measured", "", *table(["arm", "", "mean", "lowest", "highest", "seeds"], rows), "", note]


def _alone(run: Run) -> list[str]:
    ledger = run.tables["ledger"]
    units = [unit for unit in get_args(Unit) if unit in set(ledger["unit"])]
    used = ledger.groupby(["arm", "unit"])["used"].mean().to_dict()
    arms = [arm for arm in (*run.arms, AA, "_bench") if arm in set(ledger["arm"])]
    rows = []
    for arm in arms:
        limits = run.experiment.budget_of(made_of(run.experiment, arm)) if arm != "_bench" else {}
        rows.append([f"`{arm}`", *[f"{count(used.get((arm, u), 0.0))}{f' of {count(limits[u])}' if u in limits else ''}" for u in units]])
    note = 'Mean over seeds; a failed seed counts with what it spent. "of": the arm\'s budget, where one is set.'
    if AA in arms:
        note += f" `{AA}` is the reference again, a control."
    if "_bench" in arms:
        note += " `_bench` is what the benchmark itself spends (gold models, evaluation, warm-up); no arm is charged for it."
    return [*table(["arm", *units], rows), "", note]


def _added(run: Run) -> list[str]:
    """What no arm or seed before had made or bought, and what sharing saved over all; nothing where it was not recorded."""
    frame = costs.marginal_costs(run)
    if frame["marginal"].isna().all():
        return []
    units = list(dict.fromkeys(frame["unit"]))
    cells = {(one.arm, one.unit): count(one.marginal) for one in rows_of(frame)}
    rows = [[f"`{arm}`", *[cells.get((arm, unit), "-") for unit in units]] for arm in dict.fromkeys(frame["arm"])]
    sums = frame.groupby("unit")[["alone_sum", "marginal_sum"]].sum().to_dict("index")
    saved = [
        f"{count(sums[unit]['marginal_sum'])} {unit} in place of {count(sums[unit]['alone_sum'])} "
        f"({100 * (1 - sums[unit]['marginal_sum'] / sums[unit]['alone_sum']):.0f} % saved)"
        for unit in SAID
        if sums.get(unit, {}).get("alone_sum")
    ]
    note = (
        "Mean over seeds of what no arm or seed before it, in the experiment's order, had made or bought: what leaving the arm out would "
        "have saved, were it the last. Every arm's own account, above, is charged in full, whoever made a thing."
    )
    return [*table(["arm", *units], rows), "", note, "", f"All arms and seeds together took {'; '.join(saved)}."]


def _part(title: str, lines: list[str]) -> list[str]:
    return ["", f"### {title}", "", *lines] if lines else []


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
