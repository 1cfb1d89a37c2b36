"""Precision: what `auto` means on a device, what is computed in bf16, and that fp32 on a CPU is what it was."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_tokenizers import WORDS, prompt
from tiny_world import tiny_bench, tiny_lab
from torch import Tensor
from training_items import AXES, LLAMA, RECIPE, SPEC, apart, demonstrations, pairs

from apo_bench.config.schema import Lora, NeuralReward, NgramReward, PolicyModel, Recipe, Sampling
from apo_bench.engines.protocol import SamplingJob, ScoringJob
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.errors import InputError
from apo_bench.losses import SFTLoss
from apo_bench.models import device, precision
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.precision import resolved
from apo_bench.training import encoding
from apo_bench.training.trainer import TrainResult, fit
from apo_bench.training.training_spec import PolicyTraining
from apo_bench.types import Policy, RewardModel

WIDE = {**LLAMA, "num_hidden_layers": 2, "attention_dropout": 0.1}


# --- what is meant ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype", "training"),
    [("cuda", "bfloat16", ("bf16", True)), ("cpu", "float32", ("fp32", False))],
)
def test_auto_is_bf16_and_checkpointing_on_a_gpu_and_fp32_on_a_cpu(kind: str, dtype: str, training: tuple[str, bool]) -> None:
    reward = NeuralReward(architecture=LLAMA, warmup=RECIPE, training=RECIPE)
    for settings in (resolved(SPEC, kind), resolved(reward, kind)):
        assert (settings.dtype, settings.stored_dtype, settings.attention) == (dtype, "float32", "sdpa")
        for recipe in (settings.training, settings.warmup):
            assert recipe is None or (recipe.precision, recipe.gradient_checkpointing) == training
        assert resolved(settings, kind) == resolved(settings, "cpu") == settings
    assert resolved(NgramReward(), kind) == NgramReward()
    assert resolved(SPEC, None) is SPEC


def test_what_is_given_stays() -> None:
    """A dtype that is given is that of stored weights too; either can be given alone."""
    fp32 = Recipe(learning_rate=1, precision="fp32", gradient_checkpointing=False)
    given = SPEC.model_copy(update={"dtype": "float16", "training": fp32})
    assert resolved(given, "cuda").model_dump() == {**given.model_dump(), "stored_dtype": "float16", "attention": "sdpa"}
    halves = resolved(SPEC.model_copy(update={"stored_dtype": "bfloat16"}), "cpu")
    assert (halves.dtype, halves.stored_dtype) == ("float32", "bfloat16")


def test_flash_attention_in_fp32_is_refused() -> None:
    flash = SPEC.model_copy(update={"attention": "flash_attention_2"})
    assert resolved(flash, "cuda").attention == "flash_attention_2"
    with pytest.raises(InputError, match="attention: flash_attention_2 computes in 16 bits"):
        resolved(flash, "cpu")


def test_quantized_weights_need_adapters_a_path_and_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {**SPEC.model_dump(), "quantize": "4bit"}
    with pytest.raises(ValueError, match=r"quantize: 4bit goes with path and training\.lora"):
        PolicyModel.model_validate(fields)
    fields["training"] = {**fields["training"], "lora": Lora()}
    assert PolicyModel.model_validate(fields).quantize == "4bit"
    with pytest.raises(InputError, match=r"quantize: 4bit needs bitsandbytes, .* pip install 'apo-bench\[quantize\]'"):
        precision.load_options(quantize="4bit")
    monkeypatch.setattr(precision, "_installed", lambda package: True)
    with pytest.raises(InputError, match="quantize: 4bit needs a GPU, and there is none"):
        precision.load_options(quantize="4bit")


@pytest.mark.parametrize(("optimizer", "line"), [("sdg", "transformers has no 'sdg'"), ("adamw_bnb_8bit", "needs bitsandbytes")])
def test_an_optimizer_that_is_not_there_is_one_line(optimizer: str, line: str) -> None:
    model, tokenizer = policies.new_policy(LLAMA, WORDS, seed=0)
    items = encoding.encode_items(tokenizer, demonstrations(2), SFTLoss(), SPEC)
    with pytest.raises(InputError, match=f"optimizer: .*{line}"):
        fit(model, items, partial(encoding.collate, pad_id=0), lambda model, batch: None, Recipe(learning_rate=1, optimizer=optimizer), 0)


# --- what names a result ------------------------------------------------------------------------------------------------------------


def keys(folder: Path, monkeypatch: pytest.MonkeyPatch, hardware: dict[str, Any], **changes: Any) -> list[str]:
    """Keys of a sample, a trained policy and a score under a faked device; nothing is computed."""
    bench = tiny_bench(folder)
    monkeypatch.setattr(device, "hardware", lambda: hardware)
    named: list[str] = []

    def only_named(kind: str, inputs: Any, compute: Any, save: Any = None, load: Any = None) -> Any:
        from apo_bench.hashing import digest
        from apo_bench.store import Artifact

        named.append(digest({"kind": kind, **inputs}))
        return Artifact(named[-1], folder, {}, 0.0, 0.0), [0.0] if kind == "scores" else []

    monkeypatch.setattr(bench.store, "computed", only_named)
    policy = bench.experiment.models.policy.model_copy(update=changes.get("policy", {}))
    recipe = policy.training.model_copy(update=changes.get("recipe", {}))
    reward = bench.experiment.models.reward.model_copy(update=changes.get("reward", {}))
    models = bench.experiment.models.model_copy(update={"policy": policy.model_copy(update={"training": recipe}), "reward": reward})
    object.__setattr__(bench, "experiment", bench.experiment.model_copy(update={"models": models}))
    lab, prompts = tiny_lab(bench), bench.task.prompts["policy"][:1]
    named.clear()
    lab.sample(Policy("p"), prompts)
    lab.train_policy(Policy("p"), bench.task.demonstrations[:1], SFTLoss())
    lab.score(RewardModel("r"), [(prompts[0], "sorry")])
    return named


GPU = {"device": "cuda", "gpu": "NVIDIA H100 80GB HBM3", "cuda": "13.0", "tf32": False}


@pytest.mark.slow
def test_keys_hold_what_auto_became(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for what `auto` means gives the same keys; asking for anything else, other ones, each where it can change a result."""
    named = partial(keys, tmp_path, monkeypatch)
    usual = named(GPU)
    same = {"policy": {"dtype": "bfloat16", "stored_dtype": "float32", "attention": "sdpa"}, "reward": {"dtype": "bfloat16"}}
    same["recipe"] = {"precision": "bf16", "gradient_checkpointing": True}
    same["reward"] |= {"stored_dtype": "float32", "attention": "sdpa", "training": resolved(RECIPE_OF_REWARD, "cuda")}
    assert named(GPU, **same) == usual
    changed: dict[str, tuple[dict[str, Any], set[int]]] = {
        "dtype": ({"policy": {"dtype": "float32"}}, {0, 1}),
        "stored_dtype": ({"policy": {"stored_dtype": "bfloat16"}}, {0, 1}),
        "attention": ({"policy": {"attention": "eager"}}, {0, 1}),
        "precision": ({"recipe": {"precision": "fp32"}}, {1}),
        "checkpointing": ({"recipe": {"gradient_checkpointing": False}}, {1}),
        "optimizer": ({"recipe": {"optimizer": "adafactor"}}, {1}),
        "reward": ({"reward": {"dtype": "float32"}}, {2}),
    }
    for name, (change, places) in changed.items():
        assert {place for place, key in enumerate(named(GPU, **change)) if key != usual[place]} == places, name
    for hardware in ({**GPU, "gpu": "NVIDIA A100-SXM4-80GB"}, {**GPU, "cuda": "12.8"}, {"device": "cpu"}):
        assert not set(named(hardware)) & set(usual)


RECIPE_OF_REWARD = Recipe(learning_rate=1e-2, epochs=1, batch_size=16)  # that of the tiny world


# --- what is computed -----------------------------------------------------------------------------------------------------------------


def fit_policy(recipe: Recipe, seen: list[torch.dtype] | None = None) -> tuple[Any, TrainResult]:
    """A tiny policy fitted to demonstrations; `seen`: dtypes that its first product came in."""
    model, tokenizer = policies.new_policy(WIDE, WORDS, seed=0)
    if seen is not None:
        model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    items = encoding.encode_items(tokenizer, demonstrations(64), SFTLoss(), SPEC)
    terms = partial(encoding.loss_terms, loss=SFTLoss())
    return fit(model, items, partial(encoding.collate, pad_id=0), terms, recipe, 0)


@pytest.mark.slow
def test_bf16_trains_fp32_weights_by_products_in_bf16() -> None:
    """The loss falls as in fp32, to bf16's 8 bits; weights, and updates of less than 2 ** -8 of them, are fp32."""
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-2, "epochs": 8.0, "precision": "bf16"})
    seen: list[torch.dtype] = []
    model, result = fit_policy(recipe, seen)
    plain_seen: list[torch.dtype] = []
    _, plain_result = fit_policy(recipe.model_copy(update={"precision": "fp32"}), plain_seen)
    assert set(seen) == {torch.bfloat16}
    assert set(plain_seen) == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.losses == pytest.approx(plain_result.losses, rel=0.02)
    assert any((weight.bfloat16().float() != weight).any() for weight in model.parameters())
    assert fit_policy(recipe)[1].losses == result.losses
    assert fit_policy(recipe.model_copy(update={"precision": "auto"}))[1].losses == plain_result.losses  # nothing stays switched on


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_checkpointing_changes_no_bit(lora: Lora | None) -> None:
    """Dropout included, whose mask is drawn again as it was; and nothing is recomputed once the fit is over."""
    recipe = RECIPE.model_copy(update={"epochs": 2.0, "lora": lora})
    model, result = fit_policy(recipe)
    again, same = fit_policy(recipe.model_copy(update={"gradient_checkpointing": True}))
    assert same == result
    assert apart(model.state_dict(), again.state_dict()) == 0
    assert not any(getattr(module, "gradient_checkpointing", False) for module in again.modules())


@pytest.mark.slow
def test_fp32_is_what_plain_torch_computes() -> None:
    """Three updates by AdamW without any of this: the default optimizer's fused kernel, no autocast, no scaling."""
    data, recipe = demonstrations(16), Recipe(learning_rate=1e-3, epochs=3, batch_size=16)
    model, tokenizer = policies.new_policy(LLAMA, WORDS, seed=0)
    items = encoding.encode_items(tokenizer, data, SFTLoss(), SPEC)
    plain = copy.deepcopy(model)
    terms = partial(encoding.loss_terms, loss=SFTLoss())
    order: list[list[int]] = []

    def collate(batch: Any) -> dict[str, Tensor]:
        order.append([next(place for place, item in enumerate(items) if item["sides"] is entry["sides"]) for entry in batch])
        return encoding.collate(batch, pad_id=0)

    trained, result = fit(model, items, collate, terms, recipe, 0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    losses = []
    for places in order:
        batch = encoding.collate([items[place] for place in places], pad_id=0)
        weights = torch.tensor([1 / sum(items[place]["size"] for place in places)] * len(places), dtype=torch.float32)
        loss = (terms(plain.train(), batch) * weights).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert list(result.losses) == pytest.approx(losses, abs=1e-6)
    assert apart(trained.state_dict(), plain.state_dict()) < 1e-7


# --- what is read and stored ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_are_stored_as_asked_and_read_as_asked(tmp_path: Path) -> None:
    """Trained in fp32 either way; a stored dtype rounds what is written, a dtype what is read, and memory never differs from disk."""
    policies.save_model(*policies.new_policy(LLAMA, WORDS, seed=0), tmp_path / "start")
    results = {}
    settings: dict[str, dict[str, str]] = {
        "plain": {},
        "read": {"dtype": "bfloat16", "stored_dtype": "float32"},
        "stored": {"dtype": "bfloat16"},
        "eager": {"attention": "eager"},
    }
    start = Policy(str(tmp_path / "start"))
    for name, changes in settings.items():
        spec = SPEC.model_copy(update=changes)
        engine, into = TransformersEngine(tmp_path), tmp_path / "store" / "policies" / name
        engine.train_policy(PolicyTraining(start, tuple(demonstrations(8)), SFTLoss(), None, spec, RECIPE, 0), into)
        job = SamplingJob(Policy(name), (prompt("how do i"),), 4, Sampling(max_new_tokens=6), spec, 3)
        results[name] = load_file(into / "model.safetensors"), engine.generate(job).value
        assert TransformersEngine(tmp_path).generate(job).value == results[name][1]
        dtype = resolved(spec, "cpu").dtype
        (read, _) = engine.models.resident.get(("policy", name) if dtype == "float32" else ("policy", name, dtype), pytest.fail)  # pyright: ignore
        assert {weight.dtype for weight in read.parameters()} == {getattr(torch, dtype)}
        assert read.config._attn_implementation == ("eager" if name == "eager" else "sdpa")
    plain, read, stored = (results[name][0] for name in ("plain", "read", "stored"))
    assert apart(plain, read) == 0
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert all(torch.equal(stored[name], plain[name].bfloat16()) for name in plain)


@pytest.mark.slow
def test_a_reward_models_head_scores_in_fp32(tmp_path: Path) -> None:
    """Two bf16 scores near 1 differ by at least 2 ** -8; here 40 texts get 40 scores, close to those in fp32."""
    spec = NeuralReward(architecture=WIDE, training=RECIPE)
    policies.save_model(*rewards.new_reward_model(spec, None, AXES, WORDS, seed=0), tmp_path / "reward")
    items = tuple((pair.prompt, pair.chosen) for pair in pairs(40))
    scores = {}
    for dtype in ("float32", "bfloat16"):
        job = ScoringJob(RewardModel(str(tmp_path / "reward")), items, spec.model_copy(update={"dtype": dtype}))
        scores[dtype] = TransformersEngine(tmp_path).score(job).value
    assert len(set(scores["bfloat16"])) == len(set(scores["float32"]))
    assert scores["bfloat16"] == pytest.approx(scores["float32"], abs=0.1)
    assert scores["bfloat16"] != scores["float32"]
