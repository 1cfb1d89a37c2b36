"""Scores of arm-seeds that a stranger can check: their hash, and the test of a mean that was made again, by hand."""

import json
import math

import pandas as pd
import pytest
from scipy import stats as scipy_stats
from tiny_world import tiny_tree

from apo_bench.analysis.results import Run
from apo_bench.analysis.verification import BEYOND, SAME, UNTESTABLE, WITHIN, compare_scores, experiment_as_run, hash_of, summarise_rows
from apo_bench.config.schema import Experiment


def rows(values: dict[str, float], arm: str = "a", seed: int = 0) -> pd.DataFrame:
    same = {"arm": arm, "seed": seed, "round": 2, "axis": "helpful", "scorer": "truth"}
    return pd.DataFrame([{**same, "prompt_id": prompt, "value": value} for prompt, value in values.items()])


def published(means: list[float], arm: str = "a") -> pd.DataFrame:
    """An arm with a seed for each mean, whose rows have a hash of their own."""
    frame = pd.DataFrame({"arm": arm, "seed": range(len(means)), "axis": "helpful", "scorer": "truth", "mean": means})
    return frame.assign(rows=[f"{arm}{seed}" for seed in frame["seed"]])


def test_a_hash_is_of_values_to_12_digits_whatever_their_order() -> None:
    forth, back = rows({"p": 0.1, "q": 0.2}), rows({"q": 0.2 + 1e-15, "p": 0.1})
    assert hash_of(forth) == hash_of(back)
    assert hash_of(forth) != hash_of(rows({"p": 0.1, "q": 0.2001}))
    assert hash_of(forth) != hash_of(rows({"p": 0.2, "q": 0.1}))


def test_a_row_for_each_arm_seed_axis_and_scorer() -> None:
    """Means 0.15 and 0.5, over two prompts and one."""
    table = summarise_rows(pd.concat([rows({"p": 0.1, "q": 0.2}), rows({"p": 0.5}, seed=1)]))
    assert table[["arm", "seed", "round", "n_prompts"]].to_numpy().tolist() == [["a", 0, 2, 2], ["a", 1, 2, 1]]
    assert table["mean"].to_list() == pytest.approx([0.15, 0.5])


def test_the_experiment_as_it_was_run_has_nothing_left_to_tune_to_size_or_to_ask() -> None:
    tree = tiny_tree()
    tree["arms"]["apo_rjs"] |= {"fit": {"unit": "flops", "to": "rjs", "by": "rounds"}}
    tree["judges"] = {"truth": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"}}
    tree["compare"]["scorer"] = "judge/truth"
    tree["report"] = {"names": {"judge/truth": "Judge", "rjs": "RJS"}}
    experiment = Experiment.model_validate_json(json.dumps(tree))
    manifest = {"tuned": {"rjs": {"chosen": {"learning_rate": 0.5}}}, "fits": {"apo_rjs": {"by": "rounds", "value": 3}}}
    alone = experiment_as_run(Run(experiment, manifest, {}, ()))
    assert alone.arms["rjs"].parameters["learning_rate"] == 0.5
    assert alone.arms["apo_rjs"].parameters["rounds"] == 3
    assert alone.arms["apo_rjs"].fit is None
    assert (alone.tune, alone.judges, alone.vary, alone.compare.scorer) == (None, {}, {}, "gold")
    assert alone.report.names == {"rjs": "RJS"}
    assert alone.models == experiment.models


def test_the_difference_of_two_seeds_by_hand() -> None:
    """Published means 0, 1, 2: s = 1, so that two seeds differ by sqrt(2) in standard deviation, with 2 degrees of freedom.

    There P(|T| < t) = t / sqrt(2 + t^2). A difference of 2 is t = sqrt(2): p = 1 - sqrt(2) / 2 = 0.293. The 95 % point is 4.3027, the
    tolerance 6.085. A difference of 20 is t = sqrt(200): p = 1 - sqrt(200 / 202) = 0.00496; Holm of two doubles the smaller.
    """
    again = published([2.0, -19.0, 5.0]).assign(rows=["x", "y", "a2"])
    table = compare_scores(published([0.0, 1.0, 2.0]), again)
    assert table["verdict"].to_list() == [WITHIN, BEYOND, SAME]
    assert table["p_value"].to_list() == pytest.approx([1 - math.sqrt(2) / 2, 2 * (1 - math.sqrt(200 / 202)), math.nan], nan_ok=True)
    assert table["tolerance"].to_list() == pytest.approx([math.sqrt(2) * scipy_stats.t.ppf(0.975, 2)] * 3)
    assert table["difference"].to_list() == pytest.approx([2, -20, 3])


def test_one_seed_or_no_spread_tests_nothing_unless_rows_are_the_same() -> None:
    single, flat = published([0.5], "single"), published([0.5, 0.5], "flat")
    again = pd.concat([single.assign(rows="x"), flat.assign(rows=["x", "flat1"])])
    assert compare_scores(pd.concat([single, flat]), again)["verdict"].to_list() == [UNTESTABLE, UNTESTABLE, SAME]
