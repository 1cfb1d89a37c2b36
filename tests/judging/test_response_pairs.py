"""Which arms, seeds, rounds and prompts judges compare."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from exchange_run import PROMPTS, answered
from run_folder import experiment

from apo_bench.analysis.results import read_responses, read_run
from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.judging.response_pairs import arm_pairs, response_pairs

SIMULATED = "apo_bench.judging.simulated_judge@SimulatedJudge"


@pytest.mark.parametrize(
    ("judging", "scorer", "expected"),
    [
        ({}, "gold", [("apo_rjs", "golden_refresh"), ("apo_rjs", "rjs")]),
        ({"pairs": "round_robin"}, "gold", [("apo_rjs", "golden_refresh"), ("apo_rjs", "rjs"), ("golden_refresh", "rjs")]),
        ({"pairs": "reference", "reference": "rjs"}, "gold", [("apo_rjs", "rjs"), ("golden_refresh", "rjs")]),
        ({"pairs": "reference", "reference": "golden_refresh"}, "gold", [("apo_rjs", "golden_refresh"), ("rjs", "golden_refresh")]),
        (  # what is declared comes first and as it is declared; the rest follows
            {"pairs": "round_robin"},
            "judge/sim",
            [("apo_rjs", "golden_refresh"), ("apo_rjs", "rjs"), ("golden_refresh", "rjs")],
        ),
    ],
)
def test_which_arms_are_compared(judging: dict[str, Any], scorer: str, expected: list[tuple[str, str]]) -> None:
    tree = experiment(judging=judging, judges={"sim": {"use": SIMULATED}})
    tree["compare"]["scorer"] = scorer
    assert arm_pairs(Experiment.model_validate_json(json.dumps(tree, sort_keys=True))) == expected


def test_rounds_chosen_on_dev(tmp_path: Path) -> None:
    """rjs is best on dev after round 1 in seed 0 and after round 2 in seed 1; apo_rjs always after round 1."""
    texts = {
        (arm, seed, round_): [f"boil base{' then' * round_}"] * 3 for arm in ("rjs", "apo_rjs") for seed in (0, 1) for round_ in (0, 1, 2)
    }
    dev = {("rjs", 0): [0, 2, 1], ("rjs", 1): [0, 1, 2], ("apo_rjs", 0): [0, 2, 1], ("apo_rjs", 1): [0, 2, 1]}
    folder = answered(tmp_path / "run", texts, dev_scores=dev)
    run = read_run(folder)
    pairs = list(response_pairs(run.experiment, run.compared_rounds, read_responses(folder), PROMPTS))
    assert {(pair.seed_a, pair.round) for pair in pairs} == {(0, "1"), (1, "1/2")}
    assert {(pair.seed_a, pair.b) for pair in pairs} == {(0, "boil base then"), (1, "boil base then then")}
    assert all(math.isfinite(pair.length_a) for pair in pairs)


ANSWERS = pd.DataFrame(
    [(arm, 0, 1, PROMPTS[0].id, "boil base", 2) for arm in ("rjs", "apo_rjs")],
    columns=["arm", "seed", "round", "prompt_id", "text", "tokens"],
)


@pytest.mark.parametrize(
    ("responses", "rounds", "message"),
    [
        (ANSWERS, {("rjs", 0): 1, ("apo_rjs", 0): 2}, r"tables/responses\.parquet: no row of apo_rjs, seed 0, round 2"),
        (ANSWERS.assign(prompt_id="p0"), {}, r"tables/responses\.parquet: prompt_id: p0 is no test prompt of task sim_hh"),
    ],
)
def test_responses_that_do_not_fit_are_refused(responses: pd.DataFrame, rounds: dict[tuple[str, int], int], message: str) -> None:
    chosen = Experiment.model_validate_json(json.dumps(experiment()))
    with pytest.raises(InputError, match=message):
        list(response_pairs(chosen, rounds, responses, PROMPTS))
