"""What every test shares: one torch thread, repeatable property tests, a small valid experiment."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # nothing above imports torch, which reads them once
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
RJS = "baselines/rejection_sampling.py@RejectionSampling"
EXPERIMENT: dict[str, Any] = {
    "name": "small",
    "task": {"use": "sim_hh", "options": {"world_seed": 0, "demonstrations_per_cluster": 2, "prompts_per_cluster": 2}},
    "seeds": [0, 1],
    "models": {
        "policy": {
            "architecture": {**LLAMA},
            "max_prompt_tokens": 32,
            "max_response_tokens": 16,
            "warmup": {"learning_rate": 1e-3, "epochs": 1},
            "training": {"learning_rate": 1e-4, "batch_size": 8, "micro_batch_size": 4},
            "sampling": {"max_new_tokens": 16},
        },
        "reward": {
            "kind": "neural",
            "architecture": {**LLAMA},
            "training": {"learning_rate": 1e-4, "lora": {"target_modules": ["q_proj"]}},
        },
        "gold": [{"name": "linear", "model": {"kind": "ngram"}, "seeds": [0, 1, 2]}],
    },
    "evaluation": {"sampling": {"max_new_tokens": 16}, "prompts": 20},
    "budget": {"human_pairs": 100, "golden_responses": 20},
    "arms": {
        "rjs": {"use": RJS, "rounds": 1},
        "apo_rjs": {"use": "apo_bench.apo@APO", "rounds": 1, "player": {"use": RJS}},
    },
    "compare": {"primary": [{"a": "apo_rjs", "b": "rjs", "matched": ["samples"]}], "axes": ["all"]},
}


@pytest.fixture
def tree() -> dict[str, Any]:
    """A valid experiment, to be changed at will."""
    return copy.deepcopy(EXPERIMENT)


@pytest.fixture
def write_experiment(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes an experiment into a folder of its own and returns the file."""

    def write(tree: dict[str, Any]) -> Path:
        path = tmp_path / "beside" / "experiment.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A randomly initialised one-layer policy in a folder, and its settings."""
    from apo_bench.config.schema import PolicyModel
    from apo_bench.models import policy as policies

    folder = tmp_path_factory.mktemp("tiny_policy")
    words = "how do i wash it rinse and dry no boil".split()
    policies.save_model(*policies.new_policy({**LLAMA, "initializer_range": 0.5}, words, seed=1), folder)
    spec = {
        "path": str(folder), "max_prompt_tokens": 16, "max_response_tokens": 8,
        "training": {"learning_rate": 1e-2, "batch_size": 4}, "sampling": {"max_new_tokens": 6},
    }  # fmt: skip
    return folder, PolicyModel.model_validate(spec)
