"""What annotation bought and what tuning cost, by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_folder import experiment, frame, scored, write_run

from apo_bench.analysis.costs import (
    annotation_curves,
    budget_matches,
    marginal_costs,
    missed_matches,
    planned_and_spent,
    time_and_memory,
    tuning_costs,
)
from apo_bench.analysis.results import read_run

NAN = float("nan")
TABLES = {"scores": scored({("rjs", 0, 0): (0, 0), ("rjs", 0, 1): (1, 1)})}
LEDGER = pd.DataFrame(
    [
        ("apo_rjs", 0, "flops", 30.0, 5.0), ("apo_rjs", 1, "flops", 50.0, 15.0),
        ("rjs", 0, "flops", 10.0, 10.0), ("rjs", 1, "flops", 20.0, 20.0),
        ("rjs", 2, "flops", 99.0, 99.0), ("rjs", 0, "sampled_tokens", 7.0, 7.0), ("_bench", -1, "flops", 500.0, 500.0),
    ],
    columns=["arm", "seed", "unit", "used", "marginal"],
).assign(budget=NAN)  # fmt: skip


def test_a_curve_by_hand(tmp_path: Path) -> None:
    """rjs used 100 and 80 pairs: 90; its final means are (1 + 3) / 2 and (2 + 6) / 2, so 3 with SD sqrt(2). apo_rjs: 50 and 20 golden, 70.

    A third seed failed and counts nowhere. Along the curve the cheaper arm comes first.
    """
    scores = scored({("rjs", 0, 0): (9, 9), ("rjs", 0, 1): (1, 3), ("rjs", 1, 1): (2, 6), ("apo_rjs", 0, 1): (0, 1), ("rjs", 2, 0): (8, 8)})
    spent = {("rjs", 0): (100, 0), ("rjs", 1): (80, 0), ("rjs", 2): (7, 7), ("apo_rjs", 0): (50, 20)}
    ledger = [
        (arm, seed, unit, float(used), NAN)
        for (arm, seed), both in spent.items()
        for unit, used in zip(("human_pairs", "golden_responses"), both, strict=True)
    ]
    settings = experiment()
    settings["compare"]["curves"] = {"both": ["rjs", "apo_rjs", "golden_refresh"]}
    failures = [{"arm": "rjs", "seed": 2, "message": "gone"}]
    run = read_run(write_run(tmp_path / "run", {"scores": scores, "ledger": frame("ledger", ledger)}, settings, failures=failures))
    result = annotation_curves(run)
    assert result["arm"].tolist() == ["apo_rjs", "rjs"]  # golden_refresh never finished
    apo, rjs = result.to_dict("records")
    assert (rjs["human_pairs"], rjs["golden_responses"], rjs["annotation"], rjs["n_seeds"]) == (90, 0, 90, 2)
    assert (rjs["mean"], rjs["seed_sd"]) == pytest.approx((3, 2**0.5))
    assert (apo["human_pairs"], apo["golden_responses"], apo["annotation"], apo["mean"], apo["n_seeds"]) == (50, 20, 70, 0.5, 1)
    assert np.isnan(apo["seed_sd"])


def test_tuning_by_hand(tmp_path: Path) -> None:
    """Two tuning seeds spent 10 and 30 updates: 40. One of three trials came to nothing; the chosen one has the higher of the others."""
    trials = [{"setting": {"rounds": 1}, "dev_score": 0.25}, {"setting": {"rounds": 2}, "dev_score": 0.5}, {"setting": {"rounds": 3}}]
    ledger = [
        ("rjs", 0, "policy_updates", 5.0, NAN),
        *[("_tune.rjs", seed, "policy_updates", used, NAN) for seed, used in ((7, 10.0), (8, 30.0))],
    ]
    tables = {"scores": scored({("rjs", 0, 0): (0, 0), ("rjs", 0, 1): (1, 1)}), "ledger": frame("ledger", ledger)}
    run = read_run(write_run(tmp_path / "run", tables, tuned={"rjs": {"chosen": {"rounds": 2}, "trials": trials}}))
    (row,) = tuning_costs(run).to_dict("records")
    assert (row["arm"], row["trials"], row["scored"], row["chosen"]) == ("rjs", 3, 2, '{"rounds": 2}')
    assert (row["dev_score"], row["lowest"], row["highest"], row["policy_updates"]) == (0.5, 0.25, 0.5, 40)
    assert np.isnan(row["flops"])  # not recorded, which is not zero
    assert not budget_matches(run)["arm_a"].str.startswith("_").any()


def test_arms_sampled_by_different_engines_match_in_nothing(tmp_path: Path) -> None:
    """Both spent the same. rjs was sampled by vLLM and apo_rjs by transformers; golden_refresh by vLLM too, and matches rjs.

    What sampled the evaluation's responses decides nothing.
    """
    arms = {"rjs": "vllm 1.0", "apo_rjs": "transformers", "golden_refresh": "vllm 1.0"}
    ledger = [(arm, 0, unit, 5.0, NAN) for arm in arms for unit in ("flops", "policy_updates")]
    rows = [(arm, 0, "arm", engine, 8, 8, 64, 0.1, 0.2, 0.01, 0.5) for arm, engine in arms.items()]
    rows += [("rjs", 0, "evaluation", "transformers", 8, NAN, NAN, NAN, NAN, NAN, NAN)]
    settings = experiment(compare={"primary": [{"a": "apo_rjs", "b": "rjs"}, {"a": "golden_refresh", "b": "rjs"}]})
    tables = {
        "scores": scored({(arm, 0, 1): (0, 0) for arm in arms}),
        "ledger": frame("ledger", ledger),
        "samplers": frame("samplers", rows),
    }
    result = budget_matches(read_run(write_run(tmp_path / "run", tables, settings)))
    spent = result[result["unit"].isin(["flops", "policy_updates"])].set_index(["arm_a", "unit"])["matched"]
    assert spent["apo_rjs"].tolist() == ["no", "no"]
    assert spent["golden_refresh"].tolist() == ["yes", "yes"]


def test_a_run_without_tuning_or_curves_has_no_rows(tmp_path: Path) -> None:
    tables = {"scores": scored({("rjs", 0, 0): (0, 0), ("rjs", 0, 1): (1, 1)}), "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, NAN)])}
    run = read_run(write_run(tmp_path / "run", tables))
    assert tuning_costs(run).empty
    assert annotation_curves(run).empty


def test_alone_and_in_this_run_by_hand(tmp_path: Path) -> None:
    """rjs used 10 and 20 and made all of it; apo_rjs used 30 and 50, and made 5 and 15: means 40 and 10, sums 80 and 20.

    A failed seed is left out, and so is what no arm did.
    """
    run = read_run(write_run(tmp_path / "run", TABLES | {"ledger": LEDGER}, failures=[{"arm": "rjs", "seed": 2, "message": "gone"}]))
    result = marginal_costs(run).set_index(["arm", "unit"])
    assert list(result.index) == [("apo_rjs", "flops"), ("rjs", "sampled_tokens"), ("rjs", "flops")]  # arms as the file, by name, has them
    assert result.to_numpy()[[0, 2]].tolist() == [[40, 10, 80, 20], [15, 15, 30, 30]]


def test_of_a_folder_older_than_the_column_only_what_it_costs_alone_is_known(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", TABLES | {"ledger": LEDGER.drop(columns="marginal")}))
    result = marginal_costs(run)
    assert result["alone"].notna().all()
    assert result[["marginal", "marginal_sum"]].isna().all(axis=None)


def test_against_the_plan_by_hand(tmp_path: Path) -> None:
    """rjs's flops, 15 on average, are 1.5 times the planned; apo_rjs's 40 are 0.95 of it. Tokens were planned as none, or not known."""
    plan = pd.DataFrame(
        [
            ("rjs", "flops", 10.0),
            ("rjs", "sampled_tokens", 0.0),
            ("apo_rjs", "flops", 42.0),
            ("_bench", "flops", 1.0),
            ("gone", "flops", 1.0),
        ],
        columns=["arm", "unit", "planned"],
    )
    failures = [{"arm": "rjs", "seed": 2, "message": "gone"}]
    run = read_run(write_run(tmp_path / "run", TABLES | {"ledger": LEDGER, "plan": plan}, failures=failures))
    result = planned_and_spent(run).set_index(["arm", "unit"])
    assert list(result.index) == [("apo_rjs", "flops"), ("rjs", "sampled_tokens"), ("rjs", "flops")]
    assert result["off"].tolist() == ["no", "yes", "yes"]
    assert result["ratio"].tolist() == pytest.approx([40 / 42, NAN, 1.5], nan_ok=True)
    plan.loc[plan["unit"] == "sampled_tokens", "planned"] = NAN
    run = read_run(write_run(tmp_path / "unknown", TABLES | {"ledger": LEDGER, "plan": plan}, failures=failures))
    assert planned_and_spent(run)["off"].tolist() == ["no", "", "yes"]


def test_a_run_without_a_plan_has_no_rows_on_it(tmp_path: Path) -> None:
    assert planned_and_spent(read_run(write_run(tmp_path / "run", TABLES | {"ledger": LEDGER}))).empty


def test_missed_matches_are_sentences(tmp_path: Path) -> None:
    """Flops and samples are declared. Of samples nothing was recorded, none against none, and that is a match."""
    settings = experiment()
    settings["compare"] = {"primary": [{"a": "apo_rjs", "b": "rjs", "matched": ["flops", "samples"]}]}
    run = read_run(write_run(tmp_path / "run", TABLES | {"ledger": LEDGER}, settings))
    assert missed_matches(budget_matches(run)) == ["apo_rjs against rjs: flops 40 against 15, ratio 2.67"]


def test_measured_by_hand(tmp_path: Path) -> None:
    """By arm and measure, in the experiment's order; what is not an arm's is left out."""
    rows = [
        ("apo_rjs", 0, "wall_s", 4.0),
        ("rjs", 0, "peak_memory_bytes", 9.0),
        ("rjs", 0, "wall_s", 1.0),
        ("rjs", 1, "wall_s", 2.0),
        ("_x", 0, "wall_s", 7.0),
    ]
    run = read_run(write_run(tmp_path / "run", TABLES | {"ledger": LEDGER}))
    result = time_and_memory(run, pd.DataFrame(rows, columns=["arm", "seed", "measure", "value"]))
    assert [tuple(row) for row in result.to_numpy().tolist()] == [
        ("apo_rjs", "wall_s", 4.0, 4.0, 4.0, 1), ("rjs", "wall_s", 1.5, 1.0, 2.0, 2), ("rjs", "peak_memory_bytes", 9.0, 9.0, 9.0, 1),
    ]  # fmt: skip
