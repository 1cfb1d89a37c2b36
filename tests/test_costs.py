"""What annotation bought and what tuning cost, by hand."""

from pathlib import Path

import numpy as np
import pytest
from run_folder import experiment, frame, scored, write_run

from apo_bench.costs import budget, by_annotation, tuning
from apo_bench.results import read_run

NAN = float("nan")


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
    found = by_annotation(run)
    assert found["arm"].tolist() == ["apo_rjs", "rjs"]  # golden_refresh never finished
    apo, rjs = found.to_dict("records")
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
    (one,) = tuning(run).to_dict("records")
    assert (one["arm"], one["trials"], one["scored"], one["chosen"]) == ("rjs", 3, 2, '{"rounds": 2}')
    assert (one["dev_score"], one["lowest"], one["highest"], one["policy_updates"]) == (0.5, 0.25, 0.5, 40)
    assert np.isnan(one["flops"])  # not recorded, which is not zero
    assert not budget(run)["arm_a"].str.startswith("_").any()


def test_a_run_without_tuning_or_curves_has_no_rows(tmp_path: Path) -> None:
    tables = {"scores": scored({("rjs", 0, 0): (0, 0), ("rjs", 0, 1): (1, 1)}), "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, NAN)])}
    run = read_run(write_run(tmp_path / "run", tables))
    assert tuning(run).empty
    assert by_annotation(run).empty
