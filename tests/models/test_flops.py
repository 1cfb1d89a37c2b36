"""FLOPs by rule: by hand, and against torch's counter on small and shipped architectures, trained as recipes train them."""

import copy
import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from apo_bench.config.load import load_experiment
from apo_bench.config.schema import Lora, NeuralReward, PolicyModel, Recipe
from apo_bench.engines.model_sizes import policy_size, reward_size
from apo_bench.models import adapters, flops, output_layer
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.known_shapes import MINILM_L6, PUBLISHED, SMOLLM2_135M
from apo_bench.package_data import shipped_root

WIDE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
PLAIN = Recipe(learning_rate=1.0)
BATCH = 2
IMPORTED = {"smollm2": SMOLLM2_135M, "minilm": MINILM_L6}  # what experiments call them


def build(fields: dict[str, Any], auto: Any = AutoModelForCausalLM, device: str = "meta") -> Any:
    own = dict(fields)
    with torch.device(device):
        # of attention in one piece torch counts nothing on the CPU
        return auto.from_config(AutoConfig.for_model(own.pop("model_type"), **own), attn_implementation="eager")


def counted(model: Any, length: int, *, backward: bool) -> float:
    """What torch counts of two sequences of this length."""
    ids = torch.ones((BATCH, length), dtype=torch.long, device=model.device)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids).logits
        if backward:
            logits.sum().backward()
    return float(counter.get_total_flops())


def shipped() -> dict[str, tuple[dict[str, Any], bool, int]]:
    """Every distinct (configuration, whether it generates, tokens at most) of the shipped experiments' models, with a name to read."""
    cases = {}
    for path in sorted((shipped_root() / "experiments").glob("*.yaml")):
        models = load_experiment(path).models
        specs: list[Any] = [models.policy, models.reward, *(gold.model for gold in models.gold)]
        for spec in specs:
            if not isinstance(spec, PolicyModel | NeuralReward):
                continue
            body = models.policy if isinstance(spec, NeuralReward) and spec.initial else spec
            published = {**PUBLISHED, **IMPORTED}.get(body.path or "")
            fields = {"pad_token_id": 0, **(published or {**(body.architecture or {}), "vocab_size": 158})}
            generates = isinstance(spec, PolicyModel)
            length = spec.max_prompt_tokens + spec.max_response_tokens if isinstance(spec, PolicyModel) else spec.max_tokens
            what = (body.path or fields["model_type"]).rpartition("/")[2]
            cases[f"{what}{'' if generates else ' reward'}, {length} tokens"] = (fields, generates, length)
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "generates", "length"), shipped().values(), ids=shipped())
def test_every_shipped_model_is_within_two_percent_of_torchs_count(fields: dict[str, Any], generates: bool, length: int) -> None:
    """Forward and training with logits of all positions, at the longest texts the experiment lets through."""
    device = "cpu" if fields["model_type"] == "gpt2" else "meta"  # which looks into its weights
    model = build(fields, AutoModelForCausalLM if generates else AutoModelForSequenceClassification, device)
    lengths = [length] * BATCH
    forward, training = flops.size(model).forward(lengths), flops.training(model, PLAIN).flops(BATCH * length, lengths)
    assert forward == pytest.approx(counted(model, length, backward=False), rel=0.02)
    assert training == pytest.approx(counted(model, length, backward=True), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize(("name", "generates"), [("HuggingFaceTB/SmolLM2-135M-Instruct", True), ("Qwen/Qwen3-0.6B-Base", False)])
def test_adapters_of_shipped_models(name: str, generates: bool, targets: Any) -> None:
    model = build(dict(PUBLISHED[name]), AutoModelForCausalLM if generates else AutoModelForSequenceClassification)
    recipe = Recipe(learning_rate=1.0, lora=Lora(rank=16, target_modules=targets if targets == "all-linear" else tuple(targets)))
    cost = flops.training(model, recipe)
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules=targets, modules_to_save=None if generates else ["score"]))
    assert cost.flops(BATCH * 256, [256] * BATCH) == pytest.approx(counted(adapted, 256, backward=True), rel=0.02)


# --- small architectures, trained in every way --------------------------------------------------------------------------------

N, LENGTH, RESPONSE = 8, 24, 10  # sequences, their tokens, those of a response
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "pad_token_id": 0,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 100, "n_positions": 64, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
DEBERTA = {"model_type": "deberta-v2", "relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"],
           "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}  # fmt: skip
POLICIES: dict[str, dict[str, Any]] = {
    "llama, untied": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": False, **SHAPE},
    "llama, tied": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True, **SHAPE},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True, **SHAPE},
    "gemma2, local": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, **SHAPE},
    "gpt2": GPT2,
    "gpt_neox": {"model_type": "gpt_neox", **SHAPE},
}
REWARDS: dict[str, dict[str, Any]] = {
    "llama reward": POLICIES["llama, untied"],
    "gpt2 reward": GPT2,
    "bert": {"model_type": "bert", **SHAPE},
    "electra": {"model_type": "electra", "embedding_size": 32, **SHAPE},
    "modernbert, local": {"model_type": "modernbert", "local_attention": 8, **SHAPE},
    "deberta": {**DEBERTA, **SHAPE},
}
QUERY_VALUE = ("q_proj", "v_proj", "c_attn", "query_key_value", "query", "value", "Wqkv", "query_proj", "value_proj")
RECIPES = {
    "all": PLAIN,
    "lower half frozen": Recipe(learning_rate=1.0, freeze=r"emb|wte|wpe|\.(h|layers?)\.[01]\."),
    "MLPs of the upper half": Recipe(learning_rate=1.0, freeze=r"^(?!.*\.[23]\.(mlp|intermediate|output)\.)"),
    "adapters": Recipe(learning_rate=1.0, lora=Lora(rank=4)),
    "adapters on q and v": Recipe(learning_rate=1.0, lora=Lora(rank=4, target_modules=QUERY_VALUE)),
}


def small(name: str, device: str = "cpu") -> Any:
    auto = AutoModelForCausalLM if name in POLICIES else AutoModelForSequenceClassification
    return build({**POLICIES, **REWARDS}[name], auto, device)


def prepared(model: Any, recipe: Recipe) -> Any:
    """The model as training has it: frozen by the pattern, or with peft's adapters."""
    if recipe.lora:
        targets = recipe.lora.target_modules
        head = [name for name in adapters.CLASSIFICATION_HEADS if hasattr(model, name)] or None
        modules = targets if isinstance(targets, str) else list(targets)
        model = get_peft_model(model, LoraConfig(r=recipe.lora.rank, target_modules=modules, modules_to_save=head))
    for name, weight in model.named_parameters():
        if recipe.freeze and re.search(recipe.freeze, name):
            weight.requires_grad_(False)
    return model.train()


def response_logps(model: Any, ids: Tensor) -> Tensor:
    """As training computes them; of chunks of 32 positions all but the last are computed again in the backward pass."""
    return output_layer.token_logps(model, ids, torch.ones_like(ids), (torch.arange(LENGTH) >= LENGTH - RESPONSE).expand(N, LENGTH))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK", 32 * SHAPE["vocab_size"])


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", [*POLICIES, *REWARDS])
@pytest.mark.usefixtures("small_chunks")
def test_training_is_within_two_percent_of_torchs_count(name: str, recipe: Recipe, checkpointing: bool) -> None:
    model = small(name)
    cost = flops.training(model, recipe, checkpointing=checkpointing)
    trained = prepared(model, recipe)
    if checkpointing:
        trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.ones((N, LENGTH), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        output = response_logps(trained, ids) if name in POLICIES else trained(input_ids=ids).logits
        output.sum().backward()
    expected = cost.flops(N * LENGTH, [LENGTH] * N, [RESPONSE] * N if name in POLICIES else None, N)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_generation_and_a_references_pass_are_within_two_percent_of_torchs_count(name: str) -> None:
    """A prompt read once for responses of 5, 9 and 1 tokens, each fed token by token but for its last; logits of what is drawn."""
    model, prompt, responses = small(name).eval(), torch.ones((1, 14), dtype=torch.long), [5, 9, 1]
    head, size = model.get_output_embeddings(), flops.size(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        read = model.base_model(input_ids=prompt, use_cache=True)
        head(read.last_hidden_state[:, -1:])
        for response in responses:
            cache = copy.deepcopy(read.past_key_values)
            for _ in range(response - 1):
                step = model.base_model(input_ids=prompt[:, :1], past_key_values=cache, use_cache=True)
                head(step.last_hidden_state)
    assert size.generation(14, responses) == pytest.approx(counter.get_total_flops(), rel=0.02)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        response_logps(model, torch.ones((N, LENGTH), dtype=torch.long))
    assert size.forward([LENGTH] * N, [RESPONSE] * N) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama, untied", "modernbert, local"])
def test_attention_in_one_piece_computes_what_is_masked_too(name: str) -> None:
    """sdpa, which torch counts on the meta device: grouped queries, and a window of 8 tokens."""
    model = small(name, "meta")
    model.set_attn_implementation("sdpa")
    size, recipe = flops.size(model), flops.training(model, PLAIN)
    assert size.forward([LENGTH] * BATCH) == pytest.approx(counted(model, LENGTH, backward=False), rel=0.02)
    assert recipe.flops(BATCH * LENGTH, [LENGTH] * BATCH) == pytest.approx(counted(model, LENGTH, backward=True), rel=0.02)


@pytest.mark.slow
def test_experts_count_as_often_as_tokens_are_sent_to_them() -> None:
    """Two of four experts a token; torch counts them where they are computed one by one."""
    fields = {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, **SHAPE}
    model = build(fields, device="cpu").train()
    model.set_experts_implementation("eager")
    cost, lengths = flops.training(model, PLAIN), [LENGTH] * BATCH
    assert cost.size.forward(lengths) == pytest.approx(counted(model, LENGTH, backward=False), rel=0.02)
    assert cost.flops(BATCH * LENGTH, lengths) == pytest.approx(counted(model, LENGTH, backward=True), rel=0.02)


# --- by hand ------------------------------------------------------------------------------------------------------------------


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama, 2 layers of width 16: 4 x 16 x 16 + 3 x 16 x 32 weights a layer, 50 x 16 of the output; attention 2 x 16 wide.

    A pass over 3 and 5 tokens, with logits at 1 and 2: twice the weights times rows, and 4 x 32 x (9 + 25). Two responses of 4 and 1
    tokens to a prompt of 3: the prompt, its last logits, and 3 steps that attend to 4, 5 and 6 tokens. Training on such sequences twice:
    three times the forward pass; of a pass' 9 positions in chunks of 4, the logits of 8 once more.
    """
    model = build(WIDE)
    body, output = 2 * (4 * 256 + 3 * 512), 800
    size = flops.size(model)
    forward = 16 * body + 6 * output + 128 * 34
    assert size.forward([3, 5], [1, 2]) == forward
    assert size.forward([3, 5]) == 16 * (body + output) + 128 * 34
    assert size.generation(3, [4, 1]) == 2 * body * 6 + 2 * output * 4 + 128 * (9 + 15)
    assert size.generation(3, [4, 1], outputs=None) == 2 * body * 6 + 2 * output * 6 + 128 * (9 + 15)
    cost = flops.training(model, PLAIN)
    assert cost.flops(16, [3, 5], [1, 2]) == 2 * 3 * forward
    monkeypatch.setattr(output_layer, "CHUNK", 4 * 50)
    assert cost.flops(16, [3, 5], [1, 2], sequences=6) == pytest.approx(2 * (3 * forward + 2 * output * 3 * 8 / 9))
    assert cost.flops(16, [3, 5]) == 2 * 3 * size.forward([3, 5])


def test_windows_by_hand() -> None:
    """Layers that keep 5 tokens: 6 steps after a prompt of 3 attend to 4, 5, 5, 5, 5, 5 tokens; after one of 7 to 5 each."""
    size = flops.size(build({**WIDE, "model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 5}))
    body = 2 * (4 * 256 + 3 * 512)
    assert size.generation(3, [7]) == 2 * body * 9 + 2 * 800 * 7 + 128 * (9 + 29)
    assert size.generation(7, [7]) == 2 * body * 13 + 2 * 800 * 7 + 128 * (49 + 30)


def test_frozen_layers_by_hand() -> None:
    """Of 2 layers of 2,560 weights the first is frozen with the embeddings: forward alone. The second's norm before q, k and v is trained,
    so all of it is computed three times, as are the output layer and half of attention; with only its MLP trained nothing below gets a
    gradient, nor do the MLP's inputs through frozen weights."""
    model, layer, output = build(WIDE), 4 * 256 + 3 * 512, 800
    frozen = flops.training(model, Recipe(learning_rate=1.0, freeze=r"embed|layers\.0"))
    assert frozen.flops(10, [10]) == 10 * (2 * layer + 6 * layer + 6 * output) + (1 + 3) * 64 * 100
    mlp = flops.training(model, Recipe(learning_rate=1.0, freeze=r"^(?!.*1\.mlp)"))
    trained = 4 * 2 * 512 + 6 * 512  # gate and up read what has no gradient; down reads what they give
    assert mlp.flops(10, [10]) == 10 * (2 * layer + 2 * 4 * 256 + trained + 4 * output) + 2 * 128 * 50


def test_checkpointing_by_hand() -> None:
    """Each layer once more but for its last product; the output layer is none of them, and attention comes four times in place of three."""
    model, layer = build(WIDE), 4 * 256 + 3 * 512
    plain, again = (flops.training(model, PLAIN, checkpointing=flag).flops(10, [10]) for flag in (False, True))
    assert again - plain == 10 * 2 * 2 * (layer - 512) + 128 * 100


def test_a_plan_counts_what_the_loaded_model_counts() -> None:
    """The meta device has the configuration alone."""
    words = [f"w{number}" for number in range(40)]
    wide, bert = ({name: value for name, value in fields.items() if name not in ("vocab_size", "pad_token_id")}
                  for fields in (WIDE, REWARDS["bert"]))  # fmt: skip
    spec = PolicyModel.model_validate({"architecture": wide, "training": PLAIN, "warmup": PLAIN, "sampling": {"max_new_tokens": 4}})
    planned, model = policy_size(spec, words), policies.new_policy(wide, words, 0)[0]
    loaded = flops.size(model)
    assert planned.forward_flops([3, 5], [1, 2]) == loaded.forward([3, 5], [1, 2])
    for recipe in RECIPES.values():
        assert planned.training_flops(recipe, 16, [3, 5], [1, 2]) == flops.training(model, recipe).flops(16, [3, 5], [1, 2])
    reward = NeuralReward.model_validate({"kind": "neural", "architecture": bert, "training": PLAIN})
    planned_reward, model = reward_size(reward, spec, ["helpful"], words), rewards.new_reward_model(reward, None, ["helpful"], words, 0)[0]
    assert planned_reward.forward_flops([3, 5]) == flops.size(model).forward([3, 5])
    for recipe in RECIPES.values():
        assert planned_reward.training_flops(recipe, 16, [3, 5]) == flops.training(model, recipe).flops(16, [3, 5])


def test_a_classification_head_is_trained_beside_adapters() -> None:
    """And lora adds nothing to it: 6 FLOPs a weight and token, of a head that reads every position."""
    model = build({**WIDE, "pad_token_id": 0}, AutoModelForSequenceClassification)
    recipe = Recipe(learning_rate=1.0, lora=Lora(rank=4, target_modules=("q_proj",)))
    less = flops.training(build(WIDE), recipe).flops(1, [1], [0])
    assert flops.training(model, recipe).flops(1, [1]) - less == 6 * model.score.weight.numel()


@pytest.mark.slow
def test_a_model_with_adapters_costs_what_they_multiply_too() -> None:
    """By hand: rank 4 beside every linear layer of a width-16 one-layer model multiplies 4 x (in + out) more a token, 2 FLOPs each.

    A fit of adapters costs the same whether they are on the model already or not.
    """
    one_layer = {name: value for name, value in WIDE.items() if name != "vocab_size"} | {"num_hidden_layers": 1}
    plain = policies.new_policy(one_layer, ["a", "b"], seed=0)[0]
    adapted = adapters.add(plain, Lora(rank=4), seed=0)
    more = flops.size(adapted).forward([7], [0]) - flops.size(plain).forward([7], [0])
    assert more == 2 * 7 * 4 * (4 * 32 + 3 * 48)
    recipe = Recipe(learning_rate=1.0, lora=Lora(rank=4))
    assert flops.training(adapted, recipe) == flops.training(plain, recipe)
