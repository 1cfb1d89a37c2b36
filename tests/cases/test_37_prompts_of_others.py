"""A method that comes by the prompts it is tested on, whatever way: the Lab refuses prompts that it did not hand out."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_world import tiny_bench

from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.lab import Lab
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.types import Demonstration, Pair, Prompt

pytestmark = pytest.mark.slow
TEXT = "rinse and dry"
VERBS: dict[str, Callable[[Lab, Prompt], Any]] = {
    "lab.sample": lambda lab, prompt: lab.sample(lab.initial_policy, [prompt]),
    "lab.train_policy": lambda lab, prompt: lab.train_policy(lab.initial_policy, [Demonstration(prompt, TEXT)], SFTLoss()),
    "lab.train_reward_model": lambda lab, prompt: lab.train_reward_model([Pair(prompt, TEXT, "no")], loss=RankingLoss()),
    "lab.score": lambda lab, prompt: lab.score(lab.train_reward_model(lab.pairs(20), loss=RankingLoss()), [(prompt, TEXT)]),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return tiny_bench(tmp_path_factory.mktemp("lab")).lab(0, arm="arm")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("split", ["test", "dev", "gold"])
def test_held_out_prompts_are_refused_by_every_verb(verb: str, split: Any, lab: Lab) -> None:
    task = next(value for value in gc.get_objects() if isinstance(value, Task))  # blindness is no sandbox
    with pytest.raises(InputError, match=rf"^{verb}: a prompt that is none of this lab's"):
        VERBS[verb](lab, task.prompts[split][0])


def test_another_conversation_under_a_known_name_is_refused(lab: Lab) -> None:
    mine, other = lab.prompts(n=2)
    with pytest.raises(InputError, match="none of this lab's"):
        lab.sample(lab.initial_policy, [replace(mine, messages=other.messages)])


def test_what_it_handed_out_is_taken_and_evaluation_is_free(lab: Lab, tmp_path: Path) -> None:
    prompts = (lab.prompts(n=1)[0], lab.prompts("rm", n=1)[0], lab.pairs(1)[0].prompt, lab.golden(1)[0].prompt)
    assert len(lab.sample(lab.initial_policy, prompts)) == 4
    bench = tiny_bench(tmp_path)
    assert len(bench.lab(0).sample(bench.initial_policy, bench.task.prompts["test"][:1])) == 1
