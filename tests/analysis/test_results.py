"""Reading run folders: paths of either kind, tables that may be missing, and sums over seeds by hand."""

from pathlib import Path

import pandas as pd
import pytest
from run_folder import frame, scored, write_run

from apo_bench.analysis.published import find_published, read_published
from apo_bench.analysis.reproduction import EXACT, compare_runs
from apo_bench.analysis.results import read_responses, read_run, reliability_curve, reward_model_diagnostics
from apo_bench.errors import InputError
from apo_bench.report.report import write_report

RESPONSES = ("arm", "seed", "round", "prompt_id", "text", "tokens", "finish")

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
    run = read_run(write_run(tmp_path / "run", TABLES | {"reliability": frame("reliability", rows)}))
    (bin_,) = reliability_curve(run).to_dict("records")
    assert (bin_["confidence"], bin_["accuracy"], bin_["n"]) == pytest.approx((0.55, 0.65, 40))


def test_diagnostics_over_seeds_by_hand(tmp_path: Path) -> None:
    rows = [("rjs", seed, 1, "all", "fixed_mean", value, 0.0, 0.0, 9) for seed, value in ((0, 1.0), (1, 3.0), (2, float("nan")))]
    run = read_run(write_run(tmp_path / "run", TABLES | {"reward_models": frame("reward_models", rows)}))
    (row,) = reward_model_diagnostics(run).to_dict("records")
    assert (row["mean"], row["seed_sd"], row["n_seeds"]) == pytest.approx((2, 2**0.5, 2))


@pytest.mark.slow
def test_folders_and_files_are_named_by_texts_too(tmp_path: Path) -> None:
    """Every public function that takes a path takes a text: the same frames either way."""
    folder = write_run(tmp_path / "run", TABLES)
    responses = pd.DataFrame([("rjs", 0, 1, "p0", "yes", 1, "stop")], columns=RESPONSES)
    responses.to_parquet(folder / "tables" / "responses.parquet")
    pd.testing.assert_frame_equal(read_run(str(folder)).tables["scores"], read_run(folder).tables["scores"])
    pd.testing.assert_frame_equal(read_responses(str(folder)), responses)
    path = find_published("apo_2024")
    pd.testing.assert_frame_equal(read_published(str(path)), read_published(path))
    with pytest.raises(InputError, match=f"{folder}: not a finished run folder"):
        compare_runs(str(folder), str(folder))
    write_report(folder)
    assert set(compare_runs(str(folder), str(folder)).contrasts["verdict"]) <= {EXACT, "not comparable: no result in " + str(folder)}


@pytest.mark.slow
def test_a_run_folder_older_than_a_table_is_reported_as_before(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run", TABLES))
    text = path.read_text()
    assert "reliability" not in text.lower()
    assert not (path.parent / "figures" / "reliability.png").exists()
    for section in ("Rounds chosen on dev", "Scores against annotation", "Tuning", "At equal KL"):
        assert section not in text
