"""Contrasts and controls: their tables and forests."""

import math
from collections.abc import Iterable

import pandas as pd

from apo_bench.analysis import controls as control_analysis
from apo_bench.analysis.contrasts import MATCHED_KL
from apo_bench.analysis.results import POOLED, Run
from apo_bench.config.controls import AA, DILUTED, ORACLE, aa_seeds
from apo_bench.formatting import Row as NamedRow
from apo_bench.formatting import probability, rows_of
from apo_bench.report.charts import Estimate, Forest, ForestPanel
from apo_bench.report.document import Block, Section
from apo_bench.report.sections.answer import PLACES
from apo_bench.report.tables import Column, Paper, Row, Table, column, footnotes, interval_column, pair_column, text_column
from apo_bench.report.text import Text, names, say

ADJUSTED = (
    "p (adj.): Holm's correction over the primary family, Benjamini and Hochberg's over the secondary one; other p-values are "
    "unadjusted and descriptive. g: the difference in SDs of the second arm's scores over prompts within a seed (Hedges). P(a > b): share "
    "of prompts on which the first arm scores higher, ties one half."
)
EQUAL_KL = (
    "KL: the largest distance from the initial policy that both arms reach in every shared seed, in nats per response on all axes. There "
    "each prompt's score is interpolated linearly in KL within the round in which the arm-seed first goes so far. The KL is itself "
    "estimated, which the intervals do not know."
)
CONTROLS = {"aa": "A/A", "oracle": "oracle (not a fair arm)", "diluted": "diluted oracle (not a fair arm)"}


def section(run: Run, compared: pd.DataFrame) -> Section:
    """The contrasts at the declared round in full; elsewhere those of the declared axes, by gold and truth."""
    compared = without_copies(compared)
    declared, axes = run.experiment.compare.round, {POOLED, *run.experiment.compare.axes, *(run.axes if len(run.axes) == 1 else ())}
    others, note = [place for place in dict.fromkeys(compared["at"]) if place != declared], ADJUSTED
    if others or declared != "final":
        below = f"; below {' and '.join(PLACES[place] for place in others)}" if others else ""
        note += f" These are contrasts {PLACES[declared]}{below}, descriptive."
    blocks: list[Block] = [*forests(run, compared), _table(run, compared[compared["at"] == declared], declared, note)]
    for place in others:
        rows = compared[(compared["at"] == place) & compared["axis"].isin(axes) & (compared["scorer"] != "proxy")]
        title = f"{PLACES[place][0].upper()}{PLACES[place][1:]}"
        blocks.append(Section(title, [_table(run, rows, place, EQUAL_KL if place == MATCHED_KL else "")]))
    return Section("Contrasts", blocks)


def without_copies(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of all axes without pooled rows where there is one axis: they are copies. Of contrasts the declared one of both stays."""
    if frame.loc[frame["axis"] != POOLED, "axis"].nunique() != 1:
        return frame
    if "family" not in frame:
        return frame[frame["axis"] != POOLED]
    order = frame.assign(late=frame["family"] == "descriptive", pooled=frame["axis"] == POOLED).sort_values(
        ["late", "pooled"], kind="stable"
    )
    return frame.loc[order.drop_duplicates(["arm_a", "arm_b", "scorer", "at"]).index.sort_values()]


def _table(run: Run, rows: pd.DataFrame, at: str, note: str) -> Table:
    mark, legend = footnotes(rows, test_and_scope)
    columns = [
        pair_column(paper=True), text_column("axis", paper=True), text_column("scorer"), text_column("family"),
        column("difference", form="signed", paper=True), interval_column(paper=True), column("p", "p_value", "probability", paper=True),
        column("p (adj.)", "p_adjusted", "probability", paper=True), column("g", "hedges_g", "signed", paper=True),
        column("P(a > b)", "p_superior"), text_column("seeds", "n_seeds"), text_column("clusters", "n_clusters"),
        column("KL", "kl") if at == MATCHED_KL else text_column("round"), mark,
    ]  # fmt: skip
    caption = f"Contrasts {PLACES[at]}"
    if at != run.experiment.compare.round:
        return Table(rows, columns, caption, say(note), legend)
    declared = rows[rows["family"] != "descriptive"]
    paper = Paper(lambda row: row["family"] != "descriptive", lambda row: row["family"], _paper_note(run, declared))
    return Table(rows, columns, f"Declared contrasts {PLACES[at]}, by {run.scorer}", say(note), legend, "contrasts", paper)


def _paper_note(run: Run, declared: pd.DataFrame) -> Text:
    """Where rows share seeds, test and scope, they are said once."""
    return say(
        f"{span(declared['n_seeds'])} seeds of each arm, {span(declared['n_clusters'])} clusters of prompts. Interval and p: {{tests}}. "
        "Scope: {scopes}. p (adj.): Holm over the primary family, Benjamini and Hochberg over the secondary. g: the difference in SDs "
        f"of the second arm's scores over prompts within a seed (Hedges).{' Differences: of win rates from 1/2.' if run.judge else ''}",
        tests=names(dict.fromkeys(declared["test"]), "; "), scopes=names(dict.fromkeys(declared["scope"]), "; "),
    )  # fmt: skip


def test_and_scope(row: Row) -> Text:
    return say("Test: {test}. Scope: {scope}.", test=row["test"], scope=row["scope"])


def span(values: pd.Series) -> str:
    """A number, or the lowest and highest of several."""
    known = sorted({int(value) for value in values.dropna()})
    return "no" if not known else str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


# --- forests ------------------------------------------------------------------------------------------------------------------


def forests(run: Run, compared: pd.DataFrame) -> Iterable[Forest]:
    """The declared contrasts, and for the page a forest of all others, by scorer and place."""
    declared = compared[compared["family"] != "descriptive"]
    rows = rows_of(declared.sort_values("family", kind="stable"))  # primary, then secondary
    if declared["difference"].notna().any():
        shown = tuple(_estimate(row, with_axis=declared["axis"].nunique() > 1) for row in rows)
        panel = ForestPanel("", shown, x_label=f"difference by {rows[0].scorer}, with 95 % interval")
        caption = say("Declared contrasts with 95 % intervals; filled: adjusted p < 0.05")
        yield Forest(f"Declared contrasts {PLACES[run.experiment.compare.round]}", caption, (panel,), "contrasts")
    others = compared[(compared["scorer"] != "proxy") & (compared["family"] == "descriptive") & compared["difference"].notna()]
    if len(others):
        panels = tuple(
            ForestPanel(f"{scorer}, {PLACES[str(at)]}", tuple(_estimate(row, with_axis=True) for row in rows_of(group)))
            for (at, scorer), group in others.groupby(["at", "scorer"], sort=False)  # pyright: ignore[reportGeneralTypeIssues] (of two columns)
        )
        caption = say("Each row is one arm less another: right of the line favours the first. Bars are 95 % intervals.")
        yield Forest(f"Other scorers, axes and rounds, descriptive ({len(others)})", caption, panels, is_folded=True)


def _estimate(row: NamedRow, *, with_axis: bool) -> Estimate:
    label = f"{row.arm_a} \N{MINUS SIGN} {row.arm_b}{f', {row.axis}' if with_axis else ''}"
    adjusted = not math.isnan(row.p_adjusted)
    p = row.p_adjusted if adjusted else getattr(row, "p_value", math.nan)
    remark = "no test" if math.isnan(p) else f"p {'' if p < 0.001 else '= '}{probability(p)}{' adjusted' if adjusted else ''}"
    return Estimate(label, row.difference, row.ci_low, row.ci_high, remark=remark, family=row.family, is_filled=bool(row.p_adjusted < 0.05))


# --- controls -----------------------------------------------------------------------------------------------------------------


def control_section(run: Run, frame: pd.DataFrame) -> Section:
    """The controls as a table, and what they are."""
    if frame.empty:
        return Section("Controls", [say(control_analysis.NONE)])
    mark, legend = footnotes(frame, test_and_scope)
    columns = [
        Column("control", lambda row: CONTROLS[row["control"]]), pair_column(), text_column("axis"), text_column("scorer"),
        Column("prompts", lambda row: None if math.isnan(row["share"]) else control_analysis.percent(row["share"])),
        column("difference", form="signed"), interval_column(), column("p", "p_value", "probability"),
        text_column("seeds", "n_seeds"), text_column("clusters", "n_clusters"), mark,
    ]  # fmt: skip
    blocks: list[Block] = [Table(frame, columns, "Controls at the final round", legend=legend)]
    reference = run.experiment.reference
    if run.experiment.controls.aa:
        seeds = control_analysis.listed(aa_seeds(run.experiment))
        blocks.append(say(f"`{AA}`: the reference, `{{reference}}`, trained again under the seeds {seeds}.", reference=reference))
    if run.experiment.controls.oracle:
        blocks.append(say(
            f"`{ORACLE}`: the best of {run.experiment.controls.oracle_n} fresh answers of the reference's final policy by {{by}}, in every "
            f"seed. No method may use that choice, so it is not a fair arm. `{DILUTED}`: that answer on a share of the prompts, by whole "
            "clusters, and the first of the answers elsewhere. Both answer with the reference's own policies, so differences between "
            "trainings cancel; where these vary much, a method's difference of the same size is harder to find.",
            by=control_analysis.chosen_by(run),
        ))  # fmt: skip
    return Section("Controls", [*blocks, say("No control is in a family of tests or in a figure; their p-values are unadjusted.")])
