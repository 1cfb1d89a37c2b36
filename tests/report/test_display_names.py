"""Display names in a report that is built."""

import pandas as pd

from apo_bench.report.charts import Estimate, Forest, ForestPanel
from apo_bench.report.display_names import Renaming, with_display_names
from apo_bench.report.document import Bullets, Claim, Claims, Part, Report, Section
from apo_bench.report.markdown import inline, render
from apo_bench.report.tables import Table, arm_column, column
from apo_bench.report.text import say

NAMES = {"apo": "APO (ours)", "apo_rjs": "APO with RJS", "gpt2": "GPT-2"}


def test_a_name_is_replaced_where_it_stands_by_itself() -> None:
    """The longest name wins, and neither a path, a reference, an option's value nor a longer word is touched."""
    rename = Renaming(NAMES).word
    assert rename("apo_rjs - apo, by gpt2.") == "APO with RJS - APO (ours), by GPT-2."
    for untouched in ("baselines/apo.py@apo", "apo.py", "apo-bench", "results/apo", "apo_grpo", "gpt2.0", "my-apo"):
        assert rename(untouched) == untouched


def test_only_what_comes_from_the_run_is_renamed_in_a_text() -> None:
    assert inline(Renaming(NAMES).text(say("`{arm}` against apo", arm="apo"))) == "APO (ours) against apo"


def test_tables_claims_and_figures_show_display_names_and_csv_files_do_not() -> None:
    frame = pd.DataFrame({"arm": ["apo", "dpo"], "gpt2": [1.0, 2.0]})
    blocks = [
        Claims([Claim(say("`{a}` is better", a="apo"), say("{s}", s="gpt2"), ())]),
        Bullets([say("{a}", a="apo_rjs")]),
        Table(frame, [arm_column(), column("gpt2")], "Scores", name="main"),
        Forest("F", (), (ForestPanel("", (Estimate("apo - dpo", 1.0, 0.0, 2.0),)),)),
    ]
    command = Section("Command", [say("`{command}`", command="apo-bench run --arms apo")])
    parts = [Part("answer", "Answer", [Section("Answer", blocks)]), Part("provenance", "Provenance", [command])]
    report = with_display_names(Report("r", parts, {}), NAMES)
    text = render(report)
    for shown in (
        "- **APO (ours) is better** (GPT-2).",
        "- APO with RJS",
        "| arm | GPT-2 |",
        "| APO (ours) | 1.000 |",
        "| `dpo` | 2.000 |",
    ):
        assert shown in text
    assert "`apo-bench run --arms apo`" in text
    *_, table, forest = report.parts[0].sections[0].blocks
    assert isinstance(table, Table)
    assert table.frame is frame
    assert isinstance(forest, Forest)
    assert forest.panels[0].rows[0].label == "APO (ours) - dpo"
    assert with_display_names(report, {}) is report
