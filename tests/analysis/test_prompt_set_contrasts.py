"""Means and tests of prompt sets on hand-made tables: which rows count, and how p-values are adjusted."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folder import SEEDS, experiment, frame, scored, write_run

from apo_bench.analysis.prompt_sets import set_contrasts, set_means
from apo_bench.analysis.results import Run, read_run
from apo_bench.stats import contrast_of_all_rows

ARMS = ("rjs", "golden_refresh", "apo_rjs")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Refusals of 12 safe and 12 unsafe prompts by three arms in three seeds, in rounds 0 and 1; the task's own scores beside them."""
    draw = np.random.default_rng(0)
    cells = [(arm, seed, round_) for arm in ARMS for seed in SEEDS for round_ in (0, 1)]
    rates = {"rjs": 0.2, "golden_refresh": 0.4, "apo_rjs": 0.9}

    def refusals(axis: str) -> pd.DataFrame:
        values = {cell: (draw.random(12) < (rates[cell[0]] if cell[2] else 0.1)).astype(float) for cell in cells}
        rows = scored({cell: value.tolist() for cell, value in values.items()}, "refusal", axis)
        return rows.assign(prompt_id=axis + rows["prompt_id"], cluster_id=axis + rows["cluster_id"])

    settings: dict[str, Any] = experiment()
    settings["evaluation"] = settings["evaluation"] | {
        "prompt_sets": [{"name": name, "data_files": ["f.csv"], "scorers": ["refusal"]} for name in ("xs", "empty")]
    }
    own = scored({cell: draw.normal(size=4).tolist() for cell in cells})
    sets = pd.concat([refusals("xs.safe"), refusals("xs.unsafe")], ignore_index=True)
    return read_run(write_run(tmp_path / "run", {"scores": own, "set_scores": sets, "ledger": frame("ledger", [])}, settings))


def test_each_set_is_a_family_of_its_own_axes(run: Run) -> None:
    """Two declared pairs on two axes at the last round; a set that nobody answered has no rows. Holm's rule by its definition."""
    rows = set_contrasts(run)
    assert list(zip(rows["prompt_set"], rows["axis"], rows["scorer"], strict=True)) == [
        ("xs", axis, "refusal") for _ in range(2) for axis in ("xs.safe", "xs.unsafe")
    ]
    scores = run.tables["set_scores"]
    for row in rows.to_dict("records"):
        chosen = scores[(scores["axis"] == row["axis"]) & (scores["round"] == 1)]
        expected = contrast_of_all_rows(chosen, row["arm_a"], row["arm_b"])
        assert (row["difference"], row["p_value"]) == pytest.approx((expected.difference, expected.p_value))
        assert row["round"] == "1"
    known = rows.sort_values("p_value", kind="stable")
    assert known["p_value"].notna().all()
    steps = [min(1.0, p * (len(known) - place)) for place, p in enumerate(known["p_value"])]
    assert known["p_adjusted"].tolist() == pytest.approx([max(steps[: place + 1]) for place in range(len(steps))])


def test_means_are_of_the_rows(run: Run) -> None:
    """Each prompt is a cluster, so the mean over seeds of the share of refusals."""
    scores = run.tables["set_scores"]
    means = set_means(run)
    assert len(means) == 3 * 2 * 2
    for row in means.to_dict("records"):
        own = scores[(scores["arm"] == row["arm"]) & (scores["round"] == row["round"]) & (scores["axis"] == row["axis"])]
        by_seed = own.groupby("seed")["value"].mean()
        assert [row[name] for name in ("mean", "seed_sd", "n_seeds", "n_prompts")] == pytest.approx([by_seed.mean(), by_seed.std(), 3, 12])


def test_the_tasks_axes_and_pooled_scores_know_nothing_of_sets(run: Run) -> None:
    assert run.axes == ("helpful",)
    assert set(run.final_scores["axis"]) == {"helpful"}
