"""All arms at once in the report: the table, and its sentence in plain words."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_folder import experiment, frame, scored, write_run

from apo_bench.analysis.arm_ranking import COLUMNS, arm_ranking
from apo_bench.analysis.results import read_run
from apo_bench.report.markdown import section_lines
from apo_bench.report.sections.arm_ranking import section, summary
from apo_bench.report.text import Text
from apo_bench.stats import rank_sets, simultaneous_contrasts

LEDGER = {"ledger": frame("ledger", [("rjs", 0, "flops", 1.0, np.nan)])}
GOLD = LEDGER | {"gold": frame("gold", [("encoder", -1, "helpful", "accuracy", 0.7, 0.6, 0.8, 80, 40)])}


def run_scores(means: dict[str, float]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = {(arm, seed, 1): (mean + rng.normal(size=20)).tolist() for arm, mean in means.items() for seed in (0, 1, 2)}
    return scored(values, "encoder")


def plain(text: Text) -> str:
    return "".join(span.text for span in text)


def ranked(rows: list[tuple[str, int, int, float, float]]) -> pd.DataFrame:
    """A ranking by hand: arm, rank_low, rank_high, ci_low, ci_high."""
    table = pd.DataFrame(rows, columns=["arm", "rank_low", "rank_high", "ci_low", "ci_high"])
    return table.assign(reference="rjs").reindex(columns=COLUMNS)


@pytest.mark.slow
def test_the_table_is_that_of_the_statistics(tmp_path: Path) -> None:
    """Every number is that of `simultaneous_contrasts` and `rank_sets` on the same rows; the reference has no interval."""
    scores = run_scores({"rjs": 0.0, "golden_refresh": 3.0, "apo_rjs": 3.1})
    run = read_run(write_run(tmp_path / "run", {"scores": scores, **GOLD}))
    table = arm_ranking(run).set_index("arm")
    against = simultaneous_contrasts(scores, "golden_refresh").table.set_index("a")
    for arm in ("rjs", "apo_rjs"):
        for name in ("difference", "ci_low", "ci_high", "p_adjusted"):
            assert table[name][arm] == against[name][arm]
    assert table["ci_low"].isna()["golden_refresh"]
    expected = rank_sets(scores).table.set_index("arm")["rank_low"]
    assert table["rank_low"].to_dict() == expected.to_dict() == {"apo_rjs": 1, "golden_refresh": 1, "rjs": 3}
    text = "\n".join(section_lines([section(run, arm_ranking(run))], "##"))
    assert "Of 3 arms, the best is one of `golden_refresh`, `apo_rjs`." in text
    assert "`rjs` scored lower than `golden_refresh`." in text
    assert "| `rjs` |" in text


def test_sentences_by_hand() -> None:
    alike = ranked([("a", 1, 3, -1, 1), ("b", 1, 3, -1, 1), ("rjs", 1, 3, np.nan, np.nan)])
    unknown = "Which of the 3 arms is the best cannot be told. With all arms tested at once, no arm could be told apart from rjs."
    assert plain(summary(alike)) == unknown
    apart = ranked([("a", 1, 1, 1, 2), ("rjs", 2, 2, np.nan, np.nan), ("b", 3, 3, -2, -1)])
    assert plain(summary(apart)) == "Of 3 arms, a is the best. With all arms tested at once, a scored higher, b scored lower than rjs."


@pytest.mark.parametrize("kind", ["two arms", "judge", "uninformative gold", "no shared seed"])
def test_no_table_where_arms_cannot_be_ranked(kind: str, tmp_path: Path) -> None:
    scores = run_scores({"rjs": 0.0, "golden_refresh": 1.0, **({} if kind == "two arms" else {"apo_rjs": 2.0})})
    if kind == "no shared seed":
        scores = scores[(scores["arm"] != "rjs") | (scores["seed"] == 0)]
        scores = scores[(scores["arm"] != "apo_rjs") | (scores["seed"] == 1)]
    compare = experiment()["compare"] | ({"scorer": "judge/j"} if kind == "judge" else {})
    judges = {"judges": {"j": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"}}} if kind == "judge" else {}
    gold = LEDGER if kind == "uninformative gold" else GOLD
    run = read_run(write_run(tmp_path / "run", {"scores": scores, **gold}, experiment(compare=compare, **judges)))
    assert arm_ranking(run).empty
    assert section(run, arm_ranking(run)).blocks == []
