"""A finished run as a pilot: the same scores as its primary contrasts, and what is said where it tells too little."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folder import experiment, frame, measured, scored, write_run

from apo_bench.analysis.contrasts import contrasts
from apo_bench.analysis.power import ContrastPower, power_notes, primary_power
from apo_bench.analysis.results import Run, read_run
from apo_bench.stats.power_analysis import components, minimum_detectable_effect, plan_size

A, B = "apo_rjs", "golden_refresh"


def drawn(n_seeds: int, n_prompts: int = 12, rounds: int = 2) -> pd.DataFrame:
    """Scores of both arms from round 0 on: noise, and for `apo_rjs` what varies by seed and by prompt."""
    rng = np.random.default_rng(50)
    by_prompt, scores = rng.normal(size=n_prompts), {}
    for seed in range(n_seeds):
        for round_ in range(rounds + 1):
            scores[A, seed, round_] = rng.normal(size=n_prompts) + by_prompt + rng.normal()
            scores[B, seed, round_] = rng.normal(size=n_prompts)
    return scored(scores)


def made_run(folder: Path, scores: pd.DataFrame, *more: tuple[str, pd.DataFrame], **compare: Any) -> Run:
    settings = experiment()
    settings["compare"] |= {"scorer": "ground_truth", "axes": ["all"]} | compare
    settings["evaluation"]["dev_prompts"] = 8
    tables = {"scores": scores, "ledger": frame("ledger", [(A, 0, "flops", 1.0, math.nan)]), **dict(more)}
    return read_run(write_run(folder / "run", tables, settings))


def only(run: Run, **options: float) -> ContrastPower:
    (plan,) = primary_power(run, **options)
    return plan


@pytest.mark.slow
def test_a_plan_is_made_of_the_scores_of_its_contrast(tmp_path: Path) -> None:
    """The declared round, the finished prompts: the numbers that `components` and `plan_size` give for those rows.

    The contrast takes the unfinished prompt's other rows too, so it has a cluster more; the plan's is the larger detectable difference.
    """
    scores = drawn(4)
    gone = (scores["arm"] == B) & (scores["seed"] == 1) & (scores["prompt_id"] == "p0")
    run = made_run(tmp_path, scores[~gone])
    plan = only(run, power=0.9, effect=0.7)
    table = contrasts(run)
    (contrast,) = table[table["family"] == "primary"].to_dict("records")
    assert (plan.a, plan.b, plan.axis, plan.n_seeds, plan.n_clusters) == (A, B, "all", 4, 11)
    assert sizes(contrast) == (4, 12)
    final = scores[~gone & (scores["round"] == 2)]
    assert plan.components == components(final, A, B)
    sds = {name: getattr(plan.components, name) for name in ("seed_sd", "method_prompt_sd", "residual_sd")}
    assert plan.detectable == minimum_detectable_effect(**sds, n_seeds=4, n_clusters=11, power=0.9)
    assert plan.detectable_by_holm == plan.detectable  # one primary test only
    assert plan.table is not None
    assert plan.table.index.tolist() == [3, 4, 5, 10, 20]
    assert plan.table.columns.tolist() == [3, 6, 11, 22, 44]
    assert plan.table.loc[4, 11] == plan.detectable
    assert plan.needed == plan_size(0.7, **sds, n_clusters=11, power=0.9)


def sizes(contrast: dict[str, Any]) -> tuple[int, int]:
    return contrast["n_seeds"], contrast["n_clusters"]


@pytest.mark.slow
def test_a_round_declared_as_chosen_on_dev(tmp_path: Path) -> None:
    """Round 1 in every seed of both arms, not the final one."""
    scores = drawn(3)
    dev = measured("dev_score", {(arm, seed): (0.0, 2.0, 1.0) for arm in (A, B) for seed in range(3)})
    plan = only(made_run(tmp_path, scores, ("metrics", dev), round="dev_best"))
    assert plan.components == components(scores[scores["round"] == 1], A, B)


@pytest.mark.slow
def test_axes_are_planned_one_by_one_and_corrected_together(tmp_path: Path) -> None:
    """Two primary tests: Holm asks 2.5 % of the smaller p-value. "all" has both axes' prompts."""
    scores = drawn(3)
    other = scores.assign(axis="harmless", value=scores["value"] * 2, prompt_id="h" + scores["prompt_id"])
    other["cluster_id"] = other["prompt_id"]
    pooled, harmless = primary_power(made_run(tmp_path, pd.concat([scores, other]), axes=["all", "harmless"]))
    assert (pooled.n_clusters, harmless.n_clusters) == (24, 12)
    result = harmless.components
    assert result == components(other[other["round"] == 2], A, B)
    assert result
    sds = {"seed_sd": result.seed_sd, "method_prompt_sd": result.method_prompt_sd, "residual_sd": result.residual_sd}
    assert harmless.detectable_by_holm == minimum_detectable_effect(**sds, n_seeds=3, n_clusters=12, alpha=0.025)


def test_one_seed_plans_nothing_about_seeds(tmp_path: Path) -> None:
    """What it detects is the t test over clusters: the SD of the 12 differences."""
    scores = drawn(1)
    plan = only(made_run(tmp_path, scores), effect=1.0)
    final = scores[scores["round"] == 2].pivot(index="prompt_id", columns="arm", values="value")
    sd = float((final[A] - final[B]).std())
    expected = minimum_detectable_effect(seed_sd=0, method_prompt_sd=sd, residual_sd=0, n_seeds=1, n_clusters=12)
    assert plan.detectable == pytest.approx(expected)
    assert (plan.components, plan.table, plan.needed) == (None, None, None)
    assert plan.note.startswith("one seed says nothing about the variance between seeds")
    assert plan.note.endswith("these checkpoints only")


@pytest.mark.slow
def test_two_seeds_are_a_guess_and_have_no_test(tmp_path: Path) -> None:
    plan = only(made_run(tmp_path, drawn(2)), effect=1.0)
    assert math.isnan(plan.detectable)
    assert plan.table is not None
    assert plan.table.index.tolist() == [3, 5, 10, 20]
    assert plan.note.startswith("two seeds make no test")


def test_why_there_is_no_plan(tmp_path: Path) -> None:
    """An arm without rows; one prompt; a gold model that is not shown to be better than chance."""
    scores = drawn(3)
    for number, (rows, compare, reason) in enumerate(
        [
            (scores[scores["arm"] == A], {}, "no seed of both arms has such scores"),
            (scores[scores["prompt_id"] == "p0"], {}, "power: arms 'apo_rjs' and 'golden_refresh': 1 cluster(s)"),
            (scores.assign(scorer="encoder"), {"scorer": "gold"}, "no test is made: uninformative gold: no accuracy interval on helpful"),
        ]
    ):
        plan = only(made_run(tmp_path / str(number), rows, **compare), effect=1.0)
        assert plan.note.startswith(reason)
        assert (plan.components, plan.table, plan.needed) == (None, None, None)
        assert math.isnan(plan.detectable)
        assert power_notes([plan], power=0.8, effect=1.0)[0].startswith(f"{A} - {B}, all: {reason}")


def test_differences_that_do_not_vary(tmp_path: Path) -> None:
    scores = drawn(3)
    plan = only(made_run(tmp_path, scores.assign(value=1.0)), effect=1.0)
    assert math.isnan(plan.detectable)
    assert plan.note == "nothing varies"
    assert plan.needed
    assert "to detect 1, no number of seeds is enough: no test: nothing varies." in power_notes([plan], power=0.8, effect=1.0)[1]


@pytest.mark.slow
def test_sentences_name_sizes_scope_and_roughness(tmp_path: Path) -> None:
    plan = only(made_run(tmp_path, drawn(5)), effect=2.0)
    assert plan.needed
    assert plan.needed_low
    assert plan.needed_high
    first, test, whose = power_notes([plan], power=0.8, effect=2.0)
    spread = f"{plan.needed_low.n_seeds} to {plan.needed_high.n_seeds} over the interval of the seed SD"
    assert first == f"{A} - {B}, all: to detect 2, {plan.needed.n_seeds} seeds with 12 clusters ({spread})."
    assert "two-sided two-way t test over seeds (paired) and clusters of prompts, at 5 %" in test
    assert "Scope: new seeds and new prompts" in test
    assert "S - 1 degrees of freedom" in whose
