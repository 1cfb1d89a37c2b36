"""What arms spent: pair against pair, alone and in this run, against the plan; how arms were sized and tuned; time and memory."""

import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, get_args

import pandas as pd

from apo_bench.analysis import costs
from apo_bench.analysis.results import Run, declared_pairs, exclude_failed
from apo_bench.analysis.tuning import referee_choices, referee_limits
from apo_bench.config.controls import AA, TRUTH, made_of
from apo_bench.config.finished_arms import declared_cost, finished_arms
from apo_bench.config.schema import Unit
from apo_bench.formatting import count, rows_of
from apo_bench.report.charts import Bar, Bars
from apo_bench.report.document import Block, Bullets, Section
from apo_bench.report.sections.contrasts import span
from apo_bench.report.sections.finished import cost_in_words
from apo_bench.report.tables import FORMS, NAN, Column, Paper, Row, Table, arm_column, column, text_column
from apo_bench.report.text import Text, join, say

UNITS: dict[Unit, str] = {  # that a match can be declared in
    "human_pairs": "human pairs", "golden_responses": "golden responses", "sampled_responses": "samples", "rm_updates": "RM updates",
    "policy_updates": "policy updates", "flops": "FLOPs",
}  # fmt: skip
SAVED = "flops", "sampled_responses", "rm_updates", "policy_updates", "human_pairs", "golden_responses"  # by sharing


def section(run: Run, frames: Mapping[str, pd.DataFrame]) -> Section:
    """Pair against pair in the units that a match can be declared in; what each arm costs alone and in this run; plan and sizes."""
    matches, marginal = frames["budget"], frames["sharing"]
    columns = [
        Column("pair", lambda row: say("`{a}` / `{b}`", a=row["arm_a"], b=row["arm_b"])), text_column("unit"),
        column("a used", "used_a", "spent"), column("b used", "used_b", "spent"), column("a / b", "ratio", "ratio"),
        *map(text_column, ("kind", "declared")), Column("matched", partial(_matched, run)),
    ]  # fmt: skip
    note = "Means over shared seeds; other units in `budget.csv`. Matched: counts equal in every seed, flops within 5 % in every seed."
    if any(costs.different_engines(costs.sampling_engines(run), pair) for _, pair in declared_pairs(run)):
        note += " Arms whose responses different engines sampled match in nothing."
    blocks: list[Block] = [*_figure(run, marginal), Table(matches[matches["kind"] != ""], columns, "What compared arms spent", say(note))]
    parts = [
        Section("What sized arms spend", _sized(run)), Section("What each arm costs alone", [_alone(run)]),
        Section("What each arm added in this run", _added(marginal)), Section("Plan and run", planned_blocks(frames["plan"])),
    ]  # fmt: skip
    return Section("Budget", [*blocks, *(part for part in parts if part.blocks), _paper_table(run, matches)])


def _matched(run: Run, row: Row) -> str:
    """Whether a pair is matched in a unit, and whether one of them only declares what it spent."""
    arms = (run.experiment.arms[row[side]] for side in ("arm_a", "arm_b"))
    return row["matched"] + (", as declared" if any(row["unit"] in (declared_cost(arm) or {}) for arm in arms) else "")


def _figure(run: Run, marginal: pd.DataFrame) -> list[Bars]:
    amounts = {(row.arm, row.unit): (row.alone, row.marginal) for row in rows_of(marginal)}
    limits = {(arm, unit): limit for arm in run.arms for unit, limit in run.experiment.budget_of(arm).items()}
    return [budget_figure(run.arms, amounts, limits)] if amounts else []


def budget_figure(
    arms: tuple[str, ...], amounts: Mapping[tuple[str, str], tuple[float, float]], limits: Mapping[tuple[str, str], float]
) -> Bars:
    """Bars of (alone, added) by (arm, unit). A unit that an arm never spent is a bar of 0."""
    shown = [(place, arm) for place, arm in enumerate(arms) if any(arm == spender for spender, _ in amounts)]

    def bar(place: int, arm: str, unit: str) -> Bar:
        return Bar(arm, place, *amounts.get((arm, unit), (0.0, NAN)), limits.get((arm, unit)) or NAN)

    panels = {title: tuple(bar(*arm, unit) for arm in shown) for unit, title in UNITS.items()}
    is_shared = any(not math.isnan(added) for _, added in amounts.values())
    added = "; hatched: what it added in this run" if is_shared else ""
    caption = f"What each arm would spend alone, mean over seeds{added}; a stroke is its budget, where one is set"
    return Bars("budget", "Budget", say(caption), panels)


def _used_by_arm(ledger: pd.DataFrame, arms: Iterable[str], units: Iterable[str]) -> pd.DataFrame:
    """A row for each of `arms` that is in the ledger: means over seeds by unit, 0 for what an arm never spent."""
    used = ledger.groupby(["arm", "unit"])["used"].mean().unstack(fill_value=0)
    return used.reindex([arm for arm in arms if arm in used.index]).reindex(columns=list(units), fill_value=0.0).reset_index()


def _alone(run: Run) -> Table:
    ledger = run.tables["ledger"]
    units = [unit for unit in get_args(Unit) if unit in set(ledger["unit"])]
    frame = _used_by_arm(ledger, (*run.arms, AA, "_bench"), units)
    limits = [run.experiment.budget_of(made_of(run.experiment, arm)) if arm != "_bench" else {} for arm in frame["arm"]]
    for unit in units:
        frame[f"{unit}_limit"] = [limit.get(unit) for limit in limits]
    finished = [say("`{arm}`: {cost}.", arm=name, cost=cost_in_words(arm)) for name, arm in finished_arms(run.experiment).items()]
    note = 'Mean over seeds; a failed seed counts with what it spent. "of": the arm\'s budget, where one is set.'
    note += f" `{AA}` is the reference again, a control." if AA in set(frame["arm"]) else ""
    if "_bench" in set(frame["arm"]):
        note += " `_bench` is what the benchmark itself spends (gold models, evaluation, warm-up); no arm is charged for it."
    columns = [arm_column(), *[column(unit, form="spent", limit=f"{unit}_limit") for unit in units]]
    return Table(frame, columns, "What each arm costs alone", join([say(note), *finished]))


def _added(marginal: pd.DataFrame) -> list[Block]:
    """What no arm or seed before had made or bought, and what sharing saved over all; nothing where it was not recorded."""
    if marginal["marginal"].isna().all():
        return []
    units = list(dict.fromkeys(marginal["unit"]))
    frame = marginal.pivot(index="arm", columns="unit", values="marginal").reindex(list(dict.fromkeys(marginal["arm"]))).reset_index()
    sums = marginal.groupby("unit")[["alone_sum", "marginal_sum"]].sum().to_dict("index")
    spent = [(unit, sums[unit]["alone_sum"], sums[unit]["marginal_sum"]) for unit in SAVED if unit in sums and sums[unit]["alone_sum"]]
    saved = [f"{count(added)} {unit} in place of {count(alone)} ({100 * (1 - added / alone):.0f} % saved)" for unit, alone, added in spent]
    note = (
        "Mean over seeds of what no arm or seed before it, in the experiment's order, had made or bought: what leaving the arm out would "
        "have saved, were it the last. Every arm's own account, above, is charged in full, whoever made a thing."
    )
    columns = [arm_column(), *[column(unit, form="spent") for unit in units]]
    table = Table(frame, columns, "What each arm added in this run", say(note))
    return [table, say(f"All arms and seeds together used {'; '.join(saved)}.")]


def _sized(run: Run) -> list[Block]:
    """By what each arm with `fit` was sized, and how near it came."""
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    used = {(arm, unit): group.set_index("seed")["used"] for (arm, unit), group in ledger.groupby(["arm", "unit"])}
    lines: list[Text] = []
    for arm, fit in (run.manifest.get("fits") or {}).items():
        own, other = (used.get((name, fit["unit"]), pd.Series(dtype=float)) for name in (arm, fit["to"]))
        shared = own.index.intersection(other.index)
        mean, target = float(own[shared].mean()), float(other[shared].mean())
        beside = ", ".join(f"{value:g}: {ratio:.3f}" for value, ratio in fit.get("beside") or ())
        lines.append(say(
            f"`{{arm}}` was given {{by}} = {fit['value']:g}, so as to spend as much {{unit}} as `{{to}}`: {fit['ratio']:.3f} of it by plan"
            f"{f' ({beside})' if beside else ''}, {FORMS['ratio'](mean / target if target else NAN)} in the run.",
            arm=arm, by=fit["by"], unit=fit["unit"], to=fit["to"],
        ))  # fmt: skip
    return [Bullets(lines)] if lines else []


def planned_blocks(plan: pd.DataFrame) -> list[Block]:
    """What was planned before anything was spent and what was spent, and which amounts are off."""
    if plan.empty:
        return [say("No plan was kept.")]
    units = [unit for unit in get_args(Unit) if unit in set(plan["unit"])]
    frame = plan.pivot(index="arm", columns="unit", values=["used", "planned"]).reindex(plan["arm"].unique())
    frame.columns = [f"{unit}_{kind}" for kind, unit in frame.columns]
    missed = rows_of(plan[plan["off"] == "yes"])
    off = [say(f"`{{arm}}` {row.unit} ({FORMS['ratio'](row.ratio)} of the plan)", arm=row.arm) for row in missed]
    note = say(
        "{off} Spent of planned, means over seeds, counted before anything was spent; ratios in `plan.csv`. Tokens and flops of a plan are "
        "expectations, as no plan knows how long a trained policy's answers get. Time and memory are measured, so no two runs have the "
        "same: they are in `measured.md`, beside this file.",
        off=say("Off by more than 10 %: {off}.", off=join(off, ", ")) if off else say("Nothing is off by more than 10 %."),
    )
    columns = [arm_column(), *[column(unit, f"{unit}_used", "spent", limit=f"{unit}_planned") for unit in units]]
    return [Table(frame.reset_index(), columns, "Spent of planned", note)]


def _paper_table(run: Run, matches: pd.DataFrame) -> Table:
    """What each arm spent, means over seeds; the note says which declared matches hold."""
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    frame = _used_by_arm(ledger[ledger["unit"].isin(UNITS)], run.arms, UNITS)
    declared = matches[matches["declared"] == "yes"]
    missed = rows_of(declared[declared["matched"] == "no"])
    verdict = say("Nothing was declared matched." if declared.empty else "All that was declared matched is.")
    if missed:
        pairs = join((say("{a} and {b} in {unit}", a=row.arm_a, b=row.arm_b, unit=row.unit) for row in missed), "; ")
        verdict = say("Declared matched and not: {pairs}.", pairs=pairs)
    seeds = span(pd.Series([len(run.arm_seeds.get(arm, [])) for arm in run.arms]))
    note = say(
        f"Means over {seeds} seeds of what an arm would spend alone. FLOPs are counted from what is computed, not "
        "measured. {verdict} Counts match where they are equal in every seed, FLOPs within 5 %.",
        verdict=verdict,
    )
    amounts = [column(title.removesuffix(" responses"), unit, "spent", paper=True) for unit, title in UNITS.items()]
    columns = [arm_column(paper=True), *amounts]
    return Table(frame, columns, "What each arm spent", name="budget", paper=Paper(note=note), is_in_paper_only=True)


def tuning_section(run: Run) -> Section:
    """What was tuned for each arm, how much it mattered on dev, and what it cost."""
    frame, tune = costs.tuning_costs(run), run.experiment.tune
    columns = [
        arm_column(),
        Column("trials", lambda row: f"{row['trials']}" + ("" if row["scored"] == row["trials"] else f", {row['scored']} with a score")),
        Column("chosen", lambda row: _setting(json.loads(row["chosen"]) or {}) or None), column("dev_score"),
        Column("range over trials", lambda row: None if math.isnan(row["lowest"]) else say(f"{row['lowest']:.3f} to {row['highest']:.3f}")),
        *[column(unit, form="count") for unit in costs.TUNING_UNITS],
    ]  # fmt: skip
    seeds = f" on seed {', '.join(map(str, tune.seeds))}" if tune else ""
    limit = f", and those that ended more than {tune.max_kl:g} nats from the initial policy set aside" if tune and tune.max_kl else ""
    judge = "the ground truth of their answers, which no real task has" if tune and tune.by == TRUTH else "dev_score"
    note = (
        f"Every arm had equally many trials over its own grid{seeds}, judged on dev prompts by {judge}{limit}. What they spent, all trials "
        "together, is beside each arm's budget and is not in the arms' own costs below."
    )
    rows = [
        (arm, _setting(trial["setting"]), trial.get("dev_score"), trial.get("dev_truth"), trial.get("kl"),
         "chosen" if trial["setting"] == tuned.get("chosen") else trial.get("error") or "")
        for arm, tuned in run.manifest["tuned"].items() for trial in tuned.get("trials", [])
    ]  # fmt: skip
    tried = pd.DataFrame(rows, columns=["arm", "setting", "dev_score", "dev_truth", "kl", "remark"])
    known = [column("truth", "dev_truth")] if tried["dev_truth"].notna().any() else []
    trial_columns = [
        arm_column(), text_column("tried", "setting"), column("dev_score"), *known, column("KL (nats)", "kl"), text_column("remark"),
    ]  # fmt: skip
    return Section("Tuning", [Table(frame, columns, "Tuning", say(note)), *_referee_blocks(run), Table(tried, trial_columns, "All trials")])


def _referee_blocks(run: Run) -> list[Block]:
    """What the referee's choice cost; nothing where trials have no truth."""
    choices = referee_choices(run)
    if choices.empty:
        return []
    choice_columns = [
        arm_column(), Column("the referee takes", lambda row: _setting(row["by_referee"])), column("truth", "truth_by_referee"),
        Column("highest truth", lambda row: _setting(row["by_truth"])), column("truth", "truth_by_truth"), column("cost", "cost"),
    ]  # fmt: skip
    limit_columns = [
        Column("KL limit (nats)", lambda row: "none" if math.isinf(row["limit"]) else f"{row['limit']:g}"),
        column("mean cost", "cost"), column("worst", "worst"), text_column("arms", "n_arms"),
    ]  # fmt: skip
    note = (
        "Truth of the answers to dev prompts, which chose nothing unless tune.by says so. The highest of several noisy truths flatters, so "
        "costs are upper bounds."
    )
    return [
        Table(choices, choice_columns, "What the referee's choice costs", say(note), name="referee_choices"),
        Table(referee_limits(run), limit_columns, "The same under other KL limits", name="referee_limits"),
    ]


def _setting(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def measured_blocks(frame: pd.DataFrame) -> list[Block]:
    """Time and memory; `frame` is that of `costs.time_and_memory`."""
    columns = [
        arm_column(), Column("measure", lambda row: costs.MEASURES[row["measure"]]),
        *[column(name, form="count") for name in ("mean", "lowest", "highest")], text_column("seeds", "n_seeds"),
    ]  # fmt: skip
    note = (
        "Seconds: what making the arm's artifacts took, whichever arm made them, in one process; evaluation is not in it. Memory: the "
        "largest resident size of a process that made one. Device memory: the most that its tensors took on a GPU, while an artifact was "
        "made. All depend on the machine and the moment, and match nothing."
    )
    return [Table(frame, columns, "As measured", say(note))]
