"""The smallest real experiment: a simulated world with one prompt a cluster, and models of a few thousand weights."""

import copy
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.config.schema import EngineChoice, Executor, Experiment, NeuralReward, RewardSpec
from apo_bench.data.task import Task, load_task
from apo_bench.engines import open_engine
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import Lab
from apo_bench.lab.ledger import Ledger
from apo_bench.store import RunStore
from apo_bench.types import TrainingData

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
RECIPE = {"learning_rate": 1e-2, "epochs": 1, "batch_size": 16}
RJS = "baselines/rejection_sampling.py@RejectionSampling"
SMALL_TURN = {"prompts_per_round": 8, "samples_per_prompt": 2}
TREE: dict[str, Any] = {
    "name": "tiny",
    "task": {"use": "sim_hh", "options": {"prompts_per_cluster": 1, "pairs_per_prompt": 1, "demonstrations_per_cluster": 2}},
    "seeds": [0, 1],
    "models": {
        "policy": {
            "architecture": LLAMA, "max_prompt_tokens": 24, "max_response_tokens": 24, "warmup": RECIPE, "training": RECIPE,
            "sampling": {"max_new_tokens": 10, "batch_size": 64},
        },
        "reward": {"kind": "neural", "initial": "policy", "max_tokens": 48, "training": RECIPE},
        "gold": [{"name": "linear", "model": {"kind": "ngram"}, "seeds": [0, 1]}],
    },
    "evaluation": {"sampling": {"max_new_tokens": 10}, "prompts": 14, "kl_prompts": 6, "diagnostic_pairs": 30},
    "budget": {"human_pairs": 32, "golden_responses": 6},
    "arms": {
        "rjs": {"use": RJS, "rounds": 1, **SMALL_TURN},
        "apo_rjs": {
            "use": "apo_bench.apo@APO", "rounds": 2, "samples_per_prompt": 2, "apo_coeff": 2.0, "player": {"use": RJS, **SMALL_TURN},
        },
    },
    "compare": {"primary": [{"a": "apo_rjs", "b": "rjs"}]},
}  # fmt: skip


def tiny_tree() -> dict[str, Any]:
    """The experiment as its file spells it, to be changed at will."""
    return copy.deepcopy(TREE)


def smallest_tree() -> dict[str, Any]:
    """Two arms, one round, n-gram reward models: what a run makes of each kind, as little of it as there can be."""
    tree = tiny_tree()
    tree["models"]["reward"] = {"kind": "ngram"}
    tree["models"]["gold"][0]["seeds"] = [0]
    tree["evaluation"] |= {"prompts": 6, "kl_prompts": 2, "diagnostic_pairs": 6}
    arm = {"rounds": 1, **SMALL_TURN, "prompts_per_round": 4}
    tree["arms"] = {"rjs": {"use": RJS, **arm}}
    tree["arms"]["best"] = {"use": "baselines/best_of_n.py@BestOfN", "n": 2}
    tree["compare"] = {"primary": [{"a": "rjs", "b": "best"}]}
    return tree


@cache
def tiny_task() -> Task:
    return load_task("sim_hh", TREE["task"]["options"], base=None)


def tiny_bench(folder: Path, **changes: Any) -> EvaluationContext:
    """A bench of its own store; `changes` are fields of the experiment."""
    experiment = Experiment.model_validate_json(json.dumps(tiny_tree())).model_copy(update=changes)
    return EvaluationContext(experiment, tiny_task(), RunStore(folder), open_engine(experiment.engine, experiment.executor, folder))


def tiny_lab(
    bench: EvaluationContext, budget: Mapping[Any, float] | None = None, seed: int = 0, *,
    arm: str = "arm", store: RunStore | None = None, reward_model: RewardSpec | None = None, data: TrainingData | None = None,
) -> Lab:  # fmt: skip
    """An arm's Lab on the bench's store, with any budget, seed, reward model or data."""
    spec = reward_model or bench.experiment.models.reward
    return Lab(
        store=store or bench.store,
        engine=open_engine(EngineChoice(), Executor(), store.run_folder) if store else bench.engine,
        ledger=Ledger(arm, budget or {}),
        seed=seed,
        data=data or bench.training_data,
        policy_model=bench.experiment.models.policy,
        reward_model=spec,
        reward_bodies=[bench.initial_policy if isinstance(spec, NeuralReward) and spec.initial else None],
        initial_policy=bench.initial_policy,
    )
