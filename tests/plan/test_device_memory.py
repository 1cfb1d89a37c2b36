"""Device memory: parts by hand at a tiny shape, more work never takes less, and shipped experiments fit what their headers say."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import tiny_task, tiny_tree
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.config.load import load_experiment
from apo_bench.config.schema import Experiment, Lora, NeuralReward, PolicyModel, Recipe, Sampling
from apo_bench.data.task import load_task
from apo_bench.engines.model_sizes import policy_size, reward_size
from apo_bench.engines.passes import Pass
from apo_bench.errors import InputError
from apo_bench.models.precision import resolved
from apo_bench.package_data import shipped_root
from apo_bench.plan.device_memory import CONTEXT, GIB, StageMemory, options, parse_memory, read_weights, stage_memory
from apo_bench.plan.make_plan import Plan, plan
from apo_bench.plan.match_spend import with_value

pytestmark = pytest.mark.slow

WORDS = [f"w{n}" for n in range(95)]  # with five special tokens, a vocabulary of 100
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LAYER = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
WEIGHTS = 2 * LAYER + 2 * 100 * 16 + 16  # embeddings, output layer and the last norm
RECIPE = Recipe(learning_rate=1.0, batch_size=8, micro_batch_size=2)
SAMPLING = Sampling(max_new_tokens=10, batch_size=8)
POLICY = PolicyModel(architecture=LLAMA, warmup=RECIPE, training=RECIPE, sampling=SAMPLING, max_prompt_tokens=20, max_response_tokens=12)


def policy(**changes: Any) -> PolicyModel:
    return resolved(POLICY.model_copy(update=changes), "cuda")


def stage(verb: Any, model: PolicyModel, items: int = 2, sides: int = 1, recipe: Recipe | None = None) -> StageMemory:
    recipe = resolved(recipe or model.training, "cuda") if verb == "train policy" else None
    part = Pass(verb, model, items, sides, recipe, model.sampling if verb == "sample" else None)
    return stage_memory(verb, policy_size(POLICY, WORDS), part)


def test_weights_gradients_and_states_by_hand() -> None:
    """fp32 weights, gradients and AdamW's two moments take 4 + 4 + 8 bytes a weight; a policy that is read 2."""
    assert policy_size(POLICY, WORDS).n_weights == WEIGHTS
    trained = stage("train policy", policy())
    assert (trained.weights, trained.gradients, trained.optimizer) == (4 * WEIGHTS, 4 * WEIGHTS, 8 * WEIGHTS)
    few_bits = stage("train policy", policy(), recipe=RECIPE.model_copy(update={"optimizer": "adamw_bnb_8bit"}))
    assert few_bits.optimizer == 2 * WEIGHTS
    assert math.isnan(stage("train policy", policy(), recipe=RECIPE.model_copy(update={"optimizer": "lomo"})).optimizer)
    layers_frozen = stage("train policy", policy(), recipe=RECIPE.model_copy(update={"freeze": "layers"}))
    assert layers_frozen.gradients == 4 * (WEIGHTS - 2 * LAYER)
    assert stage("sample", policy()).weights == 2 * WEIGHTS
    assert stage("sample", policy(dtype="float32")).weights == 4 * WEIGHTS
    assert stage("KL", policy()).weights == 2 * 2 * WEIGHTS
    total = trained.weights + trained.gradients + trained.optimizer + trained.activations
    assert trained.total == CONTEXT + total


def test_adapters_by_hand() -> None:
    """Rank 2 on every linear layer: of q, k, v, o 2 x (16 + 16), of gate, up, down 2 x (16 + 32). KL reads one base with and without them.

    In 4 bits the layers' products take 0.5625 bytes a weight, and all else two.
    """
    pytest.importorskip("peft")
    lora = RECIPE.model_copy(update={"lora": Lora(rank=2)})
    adapters = 2 * (4 * 2 * 32 + 3 * 2 * 48)
    trained = stage("train policy", policy(training=lora))
    assert trained.weights == 2 * WEIGHTS + 4 * adapters
    assert (trained.gradients, trained.optimizer) == (4 * adapters, 8 * adapters)
    assert stage("KL", policy(training=lora)).weights == 2 * WEIGHTS + 4 * adapters
    linear = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    base, _ = read_weights(policy_size(POLICY, WORDS), policy(training=lora, quantize="4bit"))
    assert base == 0.5625 * linear + 2 * (WEIGHTS - linear)


def test_online_training_takes_its_turns_on_one_set_of_weights() -> None:
    """What training takes for weights, gradients and moments; beside them what is larger, its activations or sampling with its cache."""
    model = policy()
    shape, recipe = policy_size(POLICY, WORDS), model.training

    def online(prompts: int) -> StageMemory:
        return stage_memory("", shape, Pass("train online", model, 2, 1, recipe, model.sampling, (prompts, 4)))

    trained = stage("train policy", model)
    few, many = online(1), online(4096)
    assert (few.weights, few.gradients, few.optimizer) == (trained.weights, trained.gradients, trained.optimizer)
    assert (few.activations, few.cache) == (trained.activations, 0)
    sampled = stage("sample", model, items=4096, sides=4)
    assert (many.activations, many.cache) == (sampled.activations, sampled.cache)


def test_the_cache_by_hand() -> None:
    """2 layers x keys and values x 2 prompts x 3 responses x (20 + 10 tokens and room for 64) x 16 numbers of 2 bytes."""
    assert stage("sample", policy(), items=2, sides=3).cache == 2 * 2 * 6 * 94 * 16 * 2


def test_reward_models_are_trained_in_fp32() -> None:
    spec = resolved(NeuralReward(initial="policy", training=RECIPE, max_tokens=16), "cuda")
    shape = reward_size(spec, POLICY, ["helpful"], WORDS)
    body = WEIGHTS - 100 * 16 + 16  # a head in place of the output layer
    trained = stage_memory("", shape, Pass("train reward model", spec, 2, 2, spec.training))
    assert (trained.weights, trained.gradients, trained.optimizer) == (4 * body, 4 * body, 8 * body)
    assert stage_memory("", shape, Pass("score", spec, 4)).weights == 2 * body


@settings(max_examples=10, deadline=None)
@given(items=st.integers(1, 6), more=st.integers(1, 4), checkpointing=st.booleans())
def test_more_at_a_time_never_takes_less(items: int, more: int, checkpointing: bool) -> None:
    recipe = RECIPE.model_copy(update={"gradient_checkpointing": checkpointing})
    for verb in ("train policy", "sample", "KL"):
        few, many = (stage(verb, policy(), items=n, sides=2, recipe=recipe) for n in (items, items + more))
        assert few.total <= many.total


@settings(max_examples=5, deadline=None)
@given(items=st.integers(2, 8))
def test_no_change_that_is_tried_takes_more_in_training(items: int) -> None:
    part = Pass("train policy", policy(dtype="float32"), items, 2, resolved(RECIPE.model_copy(update={"batch_size": 64}), "cuda"))
    plain = stage_memory("", policy_size(POLICY, WORDS), part).total
    for kind in ("batch", "checkpointing", "optimizer"):
        for _, changed in options(kind, part):
            assert stage_memory("", policy_size(POLICY, WORDS), changed).total <= plain


@pytest.mark.parametrize(("text", "size"), [("80GB", 80e9), ("79.2 GiB", 79.2 * GIB), ("1GiB", GIB)])
def test_sizes_are_read(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["80", "80 gb", "0GB", "-1GB", "many"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--device-memory"):
        parse_memory(text)


def planned(device_bytes: float | None, **changes: Any) -> Plan:
    return plan(
        Experiment.model_validate_json(json.dumps({**tiny_tree(), "seeds": [0], **changes})), tiny_task(), device_bytes=device_bytes
    )


def test_models_of_other_stages_stay_up_to_a_limit() -> None:
    """By default half of the device; all that the run loads is less than that, and more than what one stage reads."""
    roomy = planned(4e9).memory
    assert roomy.fits
    assert all(0 < stage.resident < 1e6 for stage in roomy.stages)
    tight = planned(4e9, engine={"use": "transformers", "memory_gb": 1e-6}).memory
    assert all(stage.resident == 0 or stage.resident < 1100 for stage in tight.stages)
    assert planned(None).memory.fits is None
    assert {stage.stage for stage in roomy.stages} == {"sample", "score", "train reward model", "train policy", "KL"}


def test_a_model_of_unknown_shape_is_not_known_to_fit() -> None:
    tree = tiny_tree()
    tree["models"]["policy"] = {"path": "nobody/nothing", "training": {"learning_rate": 1e-3}, "sampling": {"max_new_tokens": 10}}
    memory = planned(4e9, models=tree["models"]).memory
    assert memory.fits is None
    assert math.isnan(memory.peak.total)


# --- shipped experiments --------------------------------------------------------------------------------------------------------

LORA_80GB = {  # what the headers of the hh_llama files say
    "models.policy.training.lora": {"rank": 64, "alpha": 128},
    "models.reward.training.lora": {"rank": 64, "alpha": 128},
    "models.policy.sampling.batch_size": 64,
    "engine.memory_gb": 25,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """4,000 short conversations of each axis."""
    folder, files = tmp_path_factory.mktemp("hh"), []
    for axis in ("helpful", "harmless"):
        lines = (
            {"prompt": f"\n\nHuman: {axis} question {n}?\n\nAssistant:", "chosen": f"answer {n}", "rejected": "no", "subset": axis}
            for n in range(4000)
        )
        files.append(folder / f"{axis}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(path) for path in files]


def of_few_rows(name: str, rows: list[str], changes: dict[str, Any], device: str) -> Plan:
    """An experiment as shipped, on one seed and fewer prompts, which no pass takes at a time."""
    path = shipped_root() / "experiments" / f"{name}.yaml"
    shipped = load_experiment(path, {**changes, "seeds": [0], "task.options": {"data_files": rows}})
    arms = dict(shipped.arms)
    for arm in arms:
        for key in ("prompts_per_round", "player.prompts_per_round"):
            if key.split(".")[0] in (arms[arm].model_extra or {}):
                arms[arm] = with_value(arms[arm], key, 300)
    experiment = shipped.model_copy(update={"arms": arms})
    task = load_task("hh", experiment.task.options, base=path.parent)
    return plan(experiment, task, base=path.parent, device_bytes=parse_memory(device))


@pytest.mark.parametrize(
    ("name", "device", "changes"),
    [
        ("hh_modern", "80GB", {}),
        ("hh_llama", "141GB", {}),
        ("hh_llama", "80GB", LORA_80GB),
        ("hh_llama2_chat", "141GB", {}),
        ("hh_llama2_chat", "80GB", LORA_80GB),
    ],
)
def test_gpu_experiments_fit_what_their_headers_say(name: str, device: str, changes: dict[str, Any], rows: list[str]) -> None:
    pytest.importorskip("peft")
    projected = of_few_rows(name, rows, changes, device)
    assert not projected.failures
    assert projected.memory.fits, projected.memory.peak
    header = (shipped_root() / "experiments" / f"{name}.yaml").read_text().partition("\nname:")[0]
    assert device.replace("GB", " GB") in header


def test_full_fine_tuning_of_7b_does_not_fit_80_gb_and_the_plan_says_what_does(rows: list[str]) -> None:
    memory = of_few_rows("hh_llama", rows, {}, "80GB").memory
    assert memory.fits is False
    assert ("train policy", "models.policy.training.lora: {rank: 32, alpha: 64}") in memory.changes
    assert {stage for stage, _ in memory.changes} >= {"train policy", "train reward model", "sample"}


def test_the_command_line_ends_with_status_1_where_a_run_does_not_fit(write_experiment: Callable[[Any], Path]) -> None:
    """CUDA alone takes 1 GB."""
    path = str(write_experiment(tiny_tree()))
    outcomes = [CliRunner().invoke(app, ["plan", path, "--no-probe", "--device-memory", size]) for size in ("1GB", "4GB", "much")]
    assert [outcome.exit_code for outcome in outcomes] == [1, 0, 2]
    assert "does NOT fit a device of 1.0 GB" in outcomes[0].output
    assert "Nothing that is tried makes train policy fit." in outcomes[0].output
    assert "fits a device of 4.0 GB" in outcomes[1].output
