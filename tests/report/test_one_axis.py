"""A run with one axis: pooled over it means the same, and no table or drawing shows anything twice."""

import pandas as pd
import pytest
from hostile_run import AXES, hostile_tables
from run_folder import experiment, write_run

from apo_bench.analysis.results import read_run
from apo_bench.report.charts import Forest
from apo_bench.report.document import Report, blocks_of
from apo_bench.report.markdown import cell
from apo_bench.report.report import build, report_frames
from apo_bench.report.sections.contrasts import without_copies
from apo_bench.report.tables import Table

LABELS = ("axis", "family", "p (adj.)", "note")  # in which copies would differ


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    tables = hostile_tables()
    for name, table in tables.items():
        tables[name] = table[table["axis"].isin([AXES[0], "all"])] if "axis" in table else table
    prompts = set(tables["scores"]["prompt_id"])
    for name in ("responses", "judgments", "prompts"):
        tables[name] = tables[name][tables[name]["prompt_id"].isin(prompts)]
    settings = experiment(compare={**experiment()["compare"], "axes": ["all"]})
    folder = write_run(tmp_path_factory.mktemp("one") / "run", tables, settings)
    run = read_run(folder)
    assert run.axes == (AXES[0],)
    return build(folder, run, report_frames(run))


@pytest.mark.slow
def test_no_table_shows_a_row_twice(report: Report) -> None:
    shown = 0
    for table in (block for block in blocks_of(report.sections) if isinstance(block, Table)):
        columns = [column for column in table.columns if column.head not in LABELS]
        rows = [tuple(cell(column.cell(row)) for column in columns) for row in table.rows]
        assert len(set(rows)) == len(rows), table.caption
        shown += len(rows)
    assert shown > 40


@pytest.mark.slow
def test_no_drawing_shows_an_estimate_twice(report: Report) -> None:
    panels = [panel for block in blocks_of(report.sections) if isinstance(block, Forest) for panel in block.panels]
    assert panels
    for panel in panels:
        estimates = [(row.value, row.low, row.high) for row in panel.rows]
        assert len(set(estimates)) == len(estimates), panel.title


def test_of_a_contrast_and_its_copy_the_declared_one_stays() -> None:
    rows = [("a", "b", axis, "gold", "final", family) for axis, family in (("x", "descriptive"), ("all", "primary"))]
    rows += [("a", "b", axis, "truth", "final", "descriptive") for axis in ("x", "all")]
    frame = pd.DataFrame(rows, columns=["arm_a", "arm_b", "axis", "scorer", "at", "family"])
    assert without_copies(frame)[["axis", "scorer"]].to_numpy().tolist() == [["all", "gold"], ["x", "truth"]]
    assert len(without_copies(frame.assign(axis=["x", "all", "y", "all"]))) == 4
    assert without_copies(frame.drop(columns="family"))["axis"].tolist() == ["x", "x"]
