"""The lm-eval task of the simulated world: the right answer among four that only the world tells apart."""

from pathlib import Path

import pytest

from apo_bench.config.python_files import load_python_file
from apo_bench.data.task import load_task

OPTIONS = {"prompts_per_cluster": 1, "pairs_per_prompt": 1, "demonstrations_per_cluster": 1}
FOLDER = Path(__file__).parents[2] / "tasks" / "sim_hh"


@pytest.mark.slow
@pytest.mark.parametrize(("world_seed", "richness"), [(0, 1), (5, 1), (5, 3)])
def test_one_answer_is_right_and_none_is_longer(world_seed: int, richness: int):
    """By the task's own ground truth, in every world; all words are the world's, and the right one's place varies."""
    pytest.importorskip("datasets")
    options = {**OPTIONS, "world_seed": world_seed, "richness": richness}
    items = list(load_python_file(FOLDER / "answers" / "answers.py").lm_eval_dataset(sim_hh=options, version=1.0)["test"])
    task = load_task("sim_hh", options, base=None)
    prompts = {prompt.id: prompt for prompt in task.prompts["test"]}
    assert {item["id"] for item in items} == set(prompts)
    assert task.ground_truth is not None
    for item in items:
        scores = [task.ground_truth(prompts[item["id"]], choice) for choice in item["choices"]]
        assert len(set(item["choices"])) == 4
        assert [place for place, score in enumerate(scores) if score == max(scores)] == [item["gold"]]
        assert len({len(choice.split()) for choice in item["choices"]}) == 1
        assert {word for choice in item["choices"] for word in choice.split()} <= set(task.vocabulary or ())
        assert item["cluster_id"] == prompts[item["id"]].cluster_id
    assert {item["gold"] for item in items} == {0, 1, 2, 3}
    assert {item["axis"] for item in items} == {"helpful", "harmless"}
