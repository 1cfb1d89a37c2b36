"""A run folder read: tables that may be missing, and sums over seeds by hand."""

from pathlib import Path

import pytest
from run_folder import frame, scored, write_run

from apo_bench.analysis.results import read_run, reliability_curve, reward_model_diagnostics
from apo_bench.report.report import write_report

TABLES = {
    "scores": scored({("rjs", 0, 0): (0, 0), ("rjs", 0, 1): (1, 1), ("rjs", 1, 1): (2, 2)}),
    "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, float("nan"))]),
}


def test_reliability_by_hand(tmp_path: Path) -> None:
    """One bin of two seeds: 10 pairs at confidence 0.52, half right, and 30 at 0.56, 0.7 right: 40 at 0.55, (5 + 21) / 40 = 0.65 right."""
    rows = [
        ("rjs", 0, 1, "all", 5, 0.5, 0.6, 0.52, 0.5, 10),
        ("rjs", 1, 1, "all", 5, 0.5, 0.6, 0.56, 0.7, 30),
        ("rjs", 1, 1, "helpful", 5, 0.5, 0.6, 0.9, 0.9, 99),  # an axis of its own is not pooled again
        ("_floor", 0, 1, "all", 5, 0.5, 0.6, 0.9, 0.9, 99),
    ]
    (one,) = reliability_curve(read_run(write_run(tmp_path / "run", TABLES | {"reliability": frame("reliability", rows)}))).to_dict(
        "records"
    )
    assert (one["confidence"], one["accuracy"], one["n"]) == pytest.approx((0.55, 0.65, 40))


def test_diagnostics_over_seeds_by_hand(tmp_path: Path) -> None:
    rows = [("rjs", seed, 1, "all", "fixed_mean", value, 0.0, 0.0, 9) for seed, value in ((0, 1.0), (1, 3.0), (2, float("nan")))]
    (one,) = reward_model_diagnostics(
        read_run(write_run(tmp_path / "run", TABLES | {"reward_models": frame("reward_models", rows)}))
    ).to_dict("records")
    assert (one["mean"], one["seed_sd"], one["n_seeds"]) == pytest.approx((2, 2**0.5, 2))


def test_a_run_folder_older_than_a_table_is_reported_as_before(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run", TABLES))
    text = path.read_text()
    assert "reliability" not in text.lower()
    assert not (path.parent / "figures" / "reliability.png").exists()
    for section in ("Rounds chosen on dev", "Scores against annotation", "Tuning", "At equal KL"):
        assert section not in text
