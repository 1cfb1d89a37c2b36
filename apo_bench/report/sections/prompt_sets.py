"""Prompt sets: what their files hold, what the arms' answers score, and how well refusals are told."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from apo_bench.analysis import prompt_sets
from apo_bench.analysis.results import Run
from apo_bench.config.schema import RULE, PromptSet
from apo_bench.formatting import number
from apo_bench.judging.refusals import STATED_RULE
from apo_bench.report.document import Block, Section
from apo_bench.report.sections.contrasts import test_and_scope
from apo_bench.report.tables import Table, arm_column, column, footnotes, interval_column, pair_column, text_column
from apo_bench.report.text import Text, join, names, say

NOTE = (
    "Prompts that are only asked: no method sees them, they choose nothing, and no other table pools them. Tests are those of the "
    "contrasts above, paired by seed and prompt, at each arm's last round; p (adj.): Holm over all tests of the set. A win rate is "
    "shown less 1/2."
)
MANY = 20  # leaks that are named


def frames(run: Run) -> dict[str, pd.DataFrame]:
    """The csv files of sets, by name; none without sets."""
    if not run.experiment.evaluation.prompt_sets:
        return {}
    return {"prompt_sets": prompt_sets.set_means(run), "prompt_set_contrasts": prompt_sets.set_contrasts(run)}


def section(run: Run, frames: Mapping[str, pd.DataFrame]) -> Section | None:
    """A subsection a set; None without sets."""
    parts = run.experiment.evaluation.prompt_sets
    if not parts:
        return None
    facts = run.manifest.get("prompt_sets") or {}
    sections = [Section(part.name, list(_blocks(run, frames, part, facts.get(part.name) or {}))) for part in parts]
    return Section("Prompt sets", [say(NOTE), *sections])


def _blocks(run: Run, frames: Mapping[str, pd.DataFrame], part: PromptSet, facts: Mapping[str, Any]) -> Iterator[Block]:
    yield from _about(part, facts, run)
    means = frames["prompt_sets"]
    means = means[means["prompt_set"] == part.name]
    if means.empty:
        yield say("No arm answered it.")
        return
    scorers = [*prompt_sets.set_scorers(run, part), "length"]
    columns = [
        arm_column(),
        text_column("axis"),
        text_column("round"),
        text_column("seeds", "n_seeds"),
        text_column("prompts", "n_prompts"),
    ]
    yield Table(
        _wide(run, means), [*columns, *map(column, scorers)], f"Answers to {part.name}",
        say("Mean ± sample SD over seeds; clusters of prompts weigh alike. Refusal: share of answers that decline; length in tokens."),
    )  # fmt: skip
    compared = frames["prompt_set_contrasts"]
    compared = compared[compared["prompt_set"] == part.name]
    if len(compared):
        mark, legend = footnotes(compared, test_and_scope)
        columns = [
            pair_column(), text_column("axis"), text_column("scorer"), column("difference", form="signed"), interval_column(),
            column("p", "p_value", "probability"), column("p (adj.)", "p_adjusted", "probability"), text_column("seeds", "n_seeds"),
            text_column("clusters", "n_clusters"), text_column("round"), mark,
        ]  # fmt: skip
        yield Table(compared, columns, f"Contrasts on {part.name}", legend=legend)


def _about(part: PromptSet, facts: Mapping[str, Any], run: Run) -> Iterator[Text]:
    """Where the prompts come from, what was left out, which leak, what gold models take them for, and how refusals are told."""
    files = (say("{name} ({form})", name=name, form=form) for name, form in (facts.get("files") or {}).items())
    dropped = "".join(f"; {n} {reason}" for reason, n in (facts.get("dropped") or {}).items())
    yield say(f"{facts.get('prompts', 'Unknown')} prompts of {{files}}{{dropped}}.", files=join(files, ", "), dropped=dropped)
    if leaks := facts.get("leaks"):
        more = f" and {len(leaks) - MANY} more" if len(leaks) > MANY else ""
        yield say(
            f"**{len(leaks)} of them leak**: their first turn stands, in equal words or nearly, among the prompts that policies may be "
            f"trained on ({{places}}{more}). They are not left out.",
            places=names(leaks[:MANY]),
        )
    elif facts:
        yield say("None of them stands, in equal words or nearly, among the prompts that policies may be trained on.")
    if "gold" in part.scorers:
        axes = facts.get("reward_axes") or []
        how = (
            "take them for the axis {axes}"
            if part.axis
            else "that score by axis score them as each axis of the task ({axes}), of which the mean counts"
        )
        yield say(f"Gold models {how}; their accuracy was measured on the task's pairs, not on these prompts.", axes=names(axes))
    if "refusal" in part.scorers:
        yield _refusal(part, facts.get("refusal"))


def _refusal(part: PromptSet, quality: Mapping[str, Any] | None) -> Text:
    if not quality:
        return say("Refusals were not told: {judge} left questions unanswered.", judge=part.refusal_by)
    by = say("a rule ({rule})", rule=STATED_RULE) if part.refusal_by == RULE else say("the judge {judge}", judge=part.refusal_by)
    whose = (
        say("{file}", file=quality["labelled"])
        if quality["labelled"]
        else say("the examples that apo-bench brings, which are no policy's answers")
    )
    missing = f" {quality['n_missing']} answers got no verdict." if quality["n_missing"] else ""
    return say(
        f"Refusals are told by {{by}}: recall {_share(quality, 'recall')} on {quality['n_refusals']} labelled refusals, false positives "
        f"{_share(quality, 'false_positives')} on {quality['n_answers']} other answers of {{whose}}."
        f"{missing} A rate of refusals is as good as these.",
        by=by, whose=whose,
    )  # fmt: skip


def _share(quality: Mapping[str, Any], name: str) -> str:
    value, low, high = (quality[key] for key in (name, f"{name}_low", f"{name}_high"))
    return "not known" if value is None or math.isnan(value) else f"{number(value)} ({number(low)} to {number(high)})"


def _wide(run: Run, means: pd.DataFrame) -> pd.DataFrame:
    """A row an arm, round and axis, and first the initial policy, where all arms' agree on it."""
    keys = ["arm", "round", "axis"]
    values, sds = (means.pivot(index=keys, columns="scorer", values=name) for name in ("mean", "seed_sd"))
    counts = means.groupby(keys)[["n_seeds", "n_prompts"]].max()
    table = counts.join(values).join(sds.add_suffix("_sd")).reset_index()
    start = table[table["round"] == 0].drop_duplicates("axis").assign(arm="")
    arms = {arm: place for place, arm in enumerate(run.arms)}
    rest = table[(table["round"] > 0) & table["arm"].isin(arms)].sort_values(["axis", "round"], kind="stable")
    rest = rest.sort_values("arm", key=lambda names: names.map(arms), kind="stable")
    return pd.concat([start, rest], ignore_index=True)
