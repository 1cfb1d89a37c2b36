"""What alignment cost: lm-eval's tasks, final policies against the initial one."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from apo_bench.analysis.capabilities import EQUAL, KEPT, LOST
from apo_bench.analysis.results import Run
from apo_bench.formatting import number
from apo_bench.report.document import Section
from apo_bench.report.sections.contrasts import test_and_scope
from apo_bench.report.tables import NAN, Cell, Column, Row, Table, Value, arm_column, column, footnotes, interval_column, text_column
from apo_bench.report.text import say

TITLE = "Capabilities: what did alignment cost?"
NAME = "capabilities"  # of the frame and its csv file


def section(run: Run, frames: Mapping[str, pd.DataFrame]) -> Section:
    """A row for each task and arm; no blocks where no task was run."""
    frame = frames.get(NAME)
    if frame is None or frame.empty:
        return Section(TITLE, [])
    mark, legend = footnotes(frame, test_and_scope)
    columns = [
        text_column("task"), text_column("metric"), arm_column(), column("mean", "mean"), column("initial policy", "initial"),
        column("difference", form="signed"), interval_column(), column("p (adj.)", "p_adjusted", "probability"),
        Column("outcome", _outcome), text_column("seeds", "n_seeds"), text_column("items", "n_items"), mark,
    ]  # fmt: skip
    margin = frame["margin"].iloc[0]
    note = say(
        "Tasks of lm-eval on each arm-seed's final policy and on the initial policy, with lm-eval's own item scores. Mean over seeds ± "
        "sample SD over seeds. Difference: to the initial policy, paired by item and seed, above 0 better, with a two-way 95 % interval "
        f"over seeds and items. **Not worse**: a loss of {number(margin)} or more is rejected, one-sided at 0.025, adjusted by Holm over "
        "this table. *Not shown* is no claim that nothing was lost."
    )
    return Section(TITLE, [Table(frame, columns, f"Scores on lm-eval's tasks, margin {number(margin)}", note, legend)])


def main_columns(frames: Mapping[str, pd.DataFrame]) -> list[Column]:
    """A column a task for the main table: each arm's mean, and the initial policy's; none where no task was run."""
    frame = frames.get(NAME)
    if frame is None or frame.empty:
        return []
    return [_main_column(str(task), rows) for task, rows in frame.groupby("task", sort=False)]


def _main_column(task: str, rows: pd.DataFrame) -> Column:
    means: dict[Any, tuple[float, float]] = {row["arm"]: (row["mean"], row["seed_sd"]) for row in rows.to_dict("records")}
    means[""] = (float(rows["initial"].iloc[0]), NAN)

    def cell(row: Row) -> Cell:
        mean, sd = means.get(row["arm"], (NAN, NAN))
        return Value(mean, sd=sd)

    return Column(task, cell, paper=True)


def _outcome(row: Row) -> Cell:
    strong = row["outcome"] in (KEPT, LOST, EQUAL)
    return say("**{outcome}**" if strong else "*{outcome}*", outcome=row["outcome"])
