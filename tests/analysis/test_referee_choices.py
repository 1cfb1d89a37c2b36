"""What the referee's choice of settings cost."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from run_folder import experiment, frame, scored, write_run

from apo_bench.analysis.results import Run, read_run
from apo_bench.analysis.tuning import referee_choices, referee_limits


def trial(rate: float, dev_score: float | None, dev_truth: float | None, kl: float | None) -> dict[str, Any]:
    return {"setting": {"rate": rate}, "dev_score": dev_score, "dev_truth": dev_truth, "kl": kl}


RJS = [trial(1, 0.9, 0.1, 9.0), trial(2, 0.8, 0.3, 3.0), trial(3, 0.2, 0.7, 1.5), trial(4, None, None, None)]
APO = [trial(1, 0.5, 0.6, 5.0), trial(2, 0.4, 0.2, 4.0)]


def tuned_run(tmp_path: Path, **tune: Any) -> Run:
    """rjs: by the score 1 (9 nats, truth .1), within 8 nats 2 (.3), by the truth 3 (.7). apo_rjs: 1 for both, at 5 nats."""
    settings = experiment()
    settings["evaluation"] |= {"dev_prompts": 8}
    settings["tune"] = {"trials": 2, "grids": {arm: {"rounds": [1, 2]} for arm in settings["arms"]}, **tune}
    scores = scored({(arm, 0, 0): (0, 0) for arm in ("rjs", "apo_rjs", "golden_refresh")})
    tables = {"scores": scores, "ledger": frame("ledger", [("rjs", 0, "flops", 5.0, math.nan)])}
    unknown = [trial(1, 0.5, None, 5.0)]
    tuned = {name: {"chosen": {}, "trials": trials} for name, trials in {"rjs": RJS, "apo_rjs": APO, "golden_refresh": unknown}.items()}
    return read_run(write_run(tmp_path / "run", tables, settings, tuned=tuned))


def test_the_cost_is_the_truth_that_the_referee_gave_away(tmp_path: Path) -> None:
    """rjs: .7 - .3 = .4 within 8 nats, .7 - .1 = .6 without a limit. apo_rjs: nothing. golden_refresh has no truth, so no row."""
    for max_kl, setting, cost in ((8.0, 2, 0.4), (None, 1, 0.6)):
        rows = {row["arm"]: row for row in referee_choices(tuned_run(tmp_path / str(setting), max_kl=max_kl)).to_dict("records")}
        assert set(rows) == {"rjs", "apo_rjs"}
        assert (rows["rjs"]["by_referee"], rows["rjs"]["by_truth"], rows["rjs"]["taken"]) == ({"rate": setting}, {"rate": 3}, "referee")
        assert np.isclose(rows["rjs"]["cost"], cost)
        assert (rows["apo_rjs"]["cost"], rows["apo_rjs"]["taken"]) == (0, "both")
    by_truth = referee_choices(tuned_run(tmp_path / "truth", by="ground_truth")).set_index("arm")
    assert by_truth["taken"].to_dict() == {"rjs": "truth", "apo_rjs": "both"}


def test_a_limit_for_which_no_trial_is_near_enough_has_fewer_arms(tmp_path: Path) -> None:
    """At 1 nat no arm; at 2 rjs's third alone: 0; at 4 rjs's second .4, apo_rjs's second .6 - .2; at 8 .4 and 0; from 16 on .6 and 0."""
    rows = referee_limits(tuned_run(tmp_path))
    assert rows["limit"].tolist() == [1, 2, 4, 8, 16, math.inf]
    assert rows["n_arms"].tolist() == [0, 1, 2, 2, 2, 2]
    assert np.allclose(rows["cost"], [math.nan, 0, 0.4, 0.2, 0.3, 0.3], equal_nan=True)
    assert np.allclose(rows["worst"], [math.nan, 0, 0.4, 0.4, 0.6, 0.6], equal_nan=True)
