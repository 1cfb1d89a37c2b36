"""A judge that cannot be opened is one line that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folder import experiment
from tiny_world import tiny_task

from apo_bench.config.schema import Experiment, JudgeChoice
from apo_bench.errors import InputError
from apo_bench.judging.load_judges import judge_context, open_judge

SIMULATED = "apo_bench.judging.simulated_judge@SimulatedJudge"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"use": SIMULATED, "noise": -1.0}, r"judges\.x\.noise"),
        ({"use": SIMULATED, "volume": 3}, r"judges\.x: unknown parameter 'volume'"),
        ({"use": "apo_bench.apo@APO"}, r"judges\.x: use: apo_bench\.apo@APO: a judge has open\(context\)"),
        ({"use": "apo_bench.judging.reward_judge@RewardModelJudge", "gold": "silver"}, r"judges\.x: .*gold: no gold reward model 'silver'"),
        (
            {"use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": "ftp://x", "api_key_env": None},
            r"judges\.x: .*base_url",
        ),
    ],
)
def test_a_judge_that_cannot_be_opened_is_named(tmp_path: Path, choice: dict[str, Any], message: str) -> None:
    context = judge_context(Experiment.model_validate_json(json.dumps(experiment())), tiny_task(), tmp_path, None)
    with pytest.raises(InputError, match=message) as caught:
        open_judge("x", JudgeChoice.model_validate(choice), context)
    assert "\n" not in str(caught.value)
