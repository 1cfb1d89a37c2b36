"""Refusals told by a chat judge behind a real server: one question an answer, in the conversation that the policy answered."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chat_judges import always, message
from chat_server import serving
from tiny_world import smallest_tree

from apo_bench.config.schema import Experiment
from apo_bench.data.prompt_sets import OWN_ANSWER, second_id
from apo_bench.errors import InputError
from apo_bench.run import prompt_sets

pytestmark = pytest.mark.slow

QUESTION = "is it worth 1 or worth 2"
ANSWERS = [("a", "rjs", "it is worth 2"), ("a", "best", "i will not"), (second_id("a"), "rjs", "since i like it")]


def experiment_of(folder: Path, judge: dict[str, Any]) -> Experiment:
    labelled = folder / "labelled.jsonl"
    rows = [{"prompt": QUESTION, "response": "no", "refusal": True}, {"prompt": QUESTION, "response": "worth 1", "refusal": False}]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = smallest_tree() | {"judges": {"chat": judge}}
    tree["evaluation"]["prompt_sets"] = [
        {"name": "mt", "data_files": ("q.jsonl",), "scorers": ("refusal",), "refusal_by": "chat", "refusal_labels": str(labelled)}
    ]
    return Experiment.model_validate(tree)


def tables() -> dict[str, pd.DataFrame]:
    rows = [{"arm": arm, "seed": 0, "round": 1, "prompt_id": id_, "text": text} for id_, arm, text in ANSWERS]
    axes = {"a": "mt.first", second_id("a"): "mt.second"}
    scores = [{"prompt_id": id_, "axis": axis, "cluster_id": "c"} for id_, axis in axes.items()]
    turns = [
        ("a", "user", QUESTION),
        *((second_id("a"), *turn) for turn in (("user", QUESTION), ("assistant", OWN_ANSWER), ("user", "why"))),
    ]
    prompts = [{"prompt_id": id_, "turn": place, "role": role, "text": text} for place, (id_, role, text) in enumerate(turns)]
    return {"set_scores": pd.DataFrame(scores), "set_responses": pd.DataFrame(rows), "set_prompts": pd.DataFrame(prompts)}


def test_each_answer_is_asked_about_once_and_the_labelled_ones_too(tmp_path: Path) -> None:
    """The judge always answers 1: all refuse; of the labelled refusal and the labelled answer, recall 1 and a false positive."""
    with serving(always(message("1"))) as server:
        use = {
            "use": "apo_bench.judging.chat_judge@ChatJudge",
            "model": "m",
            "base_url": server.base_url,
            "api_key_env": None,
            "max_attempts": 1,
            "timeout_s": 20.0,
        }
        experiment = experiment_of(tmp_path, use)
        [part] = experiment.evaluation.prompt_sets
        rows, quality = prompt_sets._refusals(tmp_path, experiment, part, tables(), None)
        again, _ = prompt_sets._refusals(tmp_path, experiment, part, tables(), None)
        assert len(server.requests()) == 2 + 3
    pd.testing.assert_frame_equal(again, rows)
    assert rows["value"].tolist() == [1.0] * 3
    assert rows["axis"].tolist() == ["mt.first", "mt.first", "mt.second"]
    assert (quality["by"], quality["labelled"], quality["recall"], quality["false_positives"]) == ("chat", "labelled.jsonl", 1.0, 1.0)


def test_a_judge_without_a_server_is_refused(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"})
    [part] = experiment.evaluation.prompt_sets
    with pytest.raises(InputError, match=r"evaluation.prompt_sets: mt: refusal_by: chat is no chat judge"):
        prompt_sets._refusals(tmp_path, experiment, part, tables(), None)


def test_a_second_turn_is_shown_after_the_policys_own_answer() -> None:
    turns = prompt_sets._turns(tables()["set_prompts"])
    prompt = prompt_sets._conversation(second_id("a"), turns, {"a": "it is worth 2"})
    assert [turn.content for turn in prompt.messages] == [QUESTION, "it is worth 2", "why"]
