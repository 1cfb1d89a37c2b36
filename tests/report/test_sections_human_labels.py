"""What people's labels bought, in the report."""

from pathlib import Path

import numpy as np
import pandas as pd
from run_folder import frame, scored, write_run
from verdict_frames import A, B, verdicts

from apo_bench.analysis.human_labels import human_labels, imported_judges
from apo_bench.analysis.results import read_run
from apo_bench.report.markdown import section_lines
from apo_bench.report.sections.human_labels import section
from apo_bench.stats import prediction_powered_win_rate


def judgments(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A judge's verdicts in both orders on 60 prompts of three seeds, people's on 20 of each, and the comparisons as an item a row."""
    items = [(seed, f"p{prompt}", bool(rng.random() < 0.6)) for seed in range(3) for prompt in range(60)]
    right = rng.random(len(items)) < 0.85
    choices = {}
    for (seed, prompt, won), agrees in zip(items, right, strict=True):
        choices[seed, prompt] = ("first", "second") if won == agrees else ("second", "first")
    people = verdicts({(s, p): ("first", None) if won else ("second", None) for s, p, won in items if int(p[1:]) < 20}, judge="human")
    by_hand = pd.DataFrame({
        "judge": [float(won == agrees) for (_, _, won), agrees in zip(items, right, strict=True)],
        "label": [float(won) if int(prompt[1:]) < 20 else np.nan for _, prompt, won in items],
        "cluster_id": [prompt for _, prompt, _ in items], "seed": [seed for seed, _, _ in items],
    })  # fmt: skip
    return pd.concat([verdicts(choices), people[people["order"] == "ab"]], ignore_index=True), by_hand


def test_the_table_is_the_prediction_powered_win_rate() -> None:
    both, by_hand = judgments(np.random.default_rng(0))
    table, expected = human_labels(both, ["human"]), prediction_powered_win_rate(by_hand)
    assert len(table) == 1
    row = table.iloc[0]
    assert (row["arm_a"], row["arm_b"], row["judge"], row["people"], row["axis"]) == (A, B, "judge", "human", "all")
    for name in ("win_rate", "ci_low", "labels_only", "bought", "n_labelled", "n"):
        assert np.isclose(row[name], getattr(expected, name))
    text = "\n".join(section_lines([section(table)], "##"))
    assert "## What people's labels bought" in text
    assert "| human | judge | 60 | 180 |" in text


def test_nobody_was_asked() -> None:
    both, _ = judgments(np.random.default_rng(1))
    assert human_labels(both, []).empty
    assert section(human_labels(both, [])).blocks == []


def test_people_are_the_judges_that_the_run_did_not_ask(tmp_path: Path) -> None:
    both, _ = judgments(np.random.default_rng(2))
    tables = {
        "scores": scored({("rjs", 0, 1): (0, 0)}),
        "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, np.nan)]),
        "judgments": both.assign(question="").reindex(columns=frame("judgments", []).columns),
    }
    facts = {"judges": {"judge": {"identity": "x"}, "human": {"left_out": "3 of 60 imported verdicts are on other responses"}}}
    assert imported_judges(read_run(write_run(tmp_path / "run", tables, **facts))) == ["human"]
