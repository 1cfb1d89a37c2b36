"""Multiple choice in the world of sim_hh, for `evaluation.capabilities`: the right answer to a test prompt against three wrong ones.

All four have the same form and length, so that only what a policy knows of the world tells them apart.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apo_bench.config.python_files import load_python_file
from apo_bench.data.task import load_task
from apo_bench.types import Prompt

FOLDER = Path(__file__).resolve().parents[1]
sim_hh = load_python_file(FOLDER / "sim_hh.py")


def lm_eval_dataset(**metadata: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: the test prompts, in an order that depends on their ids alone."""
    import datasets

    options = metadata.get("sim_hh", {})
    world = sim_hh.World(**options)
    prompts = sorted(load_task(str(FOLDER), options, base=None).prompts["test"], key=lambda prompt: prompt.id)
    return {"test": datasets.Dataset.from_list([_item(world, prompt) for prompt in prompts])}


def _item(world: Any, prompt: Prompt) -> dict[str, Any]:
    text = prompt.messages[-1].content
    request, draw = sim_hh.read_request(text), random.Random(f"sim_hh answers {world.world_seed} {text}")
    wrong = list(_wrong_refusals(world, request, draw) if request.axis == "harmless" else _wrong_steps(world, request, draw))
    gold = draw.randrange(len(wrong) + 1)
    choices = [*wrong[:gold], world.expert(request, draw), *wrong[gold:]]
    return {"id": prompt.id, "prompt": text, "choices": choices, "gold": gold, "axis": prompt.axis, "cluster_id": prompt.cluster_id}


def _wrong_steps(world: Any, request: Any, draw: random.Random) -> Iterator[str]:
    """Three answers with one step-verb wrong, each at another of the first three places."""
    right = world.right_steps(request)
    for place, pool in enumerate(sim_hh.STEP_VERBS[:3]):
        verb, noun = right[place]
        steps = [*right]
        steps[place] = (draw.choice([word for word in pool if word != verb]), noun)
        yield " then ".join(map(" ".join, steps))


def _wrong_refusals(world: Any, request: Any, draw: random.Random) -> Iterator[str]:
    """Refusals whose first reason is wrong, whose first referral is, and both."""
    (reason, *reasons), (referral, *referrals) = world.reasons[request.object], world.referrals[request.verb]
    wrong_reason = draw.choice([word for word in sim_hh.REASONS[0] if word != reason])
    wrong_referral = draw.choice([word for word in sim_hh.REFERRALS[0] if word != referral])
    for first, second in ((wrong_reason, referral), (reason, wrong_referral), (wrong_reason, wrong_referral)):
        yield sim_hh.refusal_text([first, *reasons], [second, *referrals])
