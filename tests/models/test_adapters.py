"""Adapters: what a model with them computes, what is stored of them, and that a base lends its weights and keeps them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_tokenizers import WORDS
from training_items import LLAMA, RECIPE, apart, demonstrations, pairs, train_policy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from apo_bench.config.schema import Lora
from apo_bench.engines.model_cache import model_bytes
from apo_bench.losses import DPOLoss, SFTLoss
from apo_bench.models import adapters
from apo_bench.models import policy as policies
from apo_bench.models.adapter_folder import BASE, base_of, is_adapter, settings_of

get_peft_model_state_dict = pytest.importorskip("peft").get_peft_model_state_dict
pytestmark = pytest.mark.slow

LORA = Lora(rank=2, alpha=4)
FIT = RECIPE.model_copy(update={"learning_rate": 1e-2, "epochs": 4, "lora": LORA})
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def start(tmp_path: Path) -> Path:
    policies.save_model(*policies.new_policy(LLAMA, WORDS, seed=0), tmp_path / "start")
    return tmp_path / "start"


def opened(folder: Path, base: Path) -> torch.nn.Module:
    return adapters.readable(adapters.load(policies.load_policy(base)[0], folder)).eval()


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), "all-linear"])
def test_adapters_move_only_what_they_are_put_on(modules: tuple[str, ...] | str, start: Path, tmp_path: Path) -> None:
    """Merged, the model has the names and the class of its base, and only the named projections differ; whatever torch drew before."""
    recipe = FIT.model_copy(update={"lora": Lora(rank=2, alpha=4, target_modules=modules)})  # pyright: ignore[reportArgumentType]
    for name in ("first", "second"):
        torch.rand(len(name))
        train_policy(start, demonstrations(16), SFTLoss(), recipe, tmp_path / name)
    assert (tmp_path / "first" / adapters.WEIGHTS).read_bytes() == (tmp_path / "second" / adapters.WEIGHTS).read_bytes()
    assert (tmp_path / "first" / adapters.CONFIG).read_bytes() == (tmp_path / "second" / adapters.CONFIG).read_bytes()
    base, _ = policies.load_policy(start)
    merged = adapters.plain(adapters.load(base, tmp_path / "first"))
    assert type(merged) is type(base)
    assert merged.state_dict().keys() == base.state_dict().keys()
    for name, weight in merged.state_dict().items():
        moves = "_proj" in name if modules == "all-linear" else "q_proj" in name or "v_proj" in name
        assert torch.equal(weight, base.state_dict()[name]) != moves, name


def test_a_model_with_adapters_computes_what_the_merged_one_does(start: Path, tmp_path: Path) -> None:
    train_policy(start, demonstrations(16), SFTLoss(), FIT, tmp_path / "trained")
    base, _ = policies.load_policy(start)
    with_adapters = adapters.load(base, tmp_path / "trained")
    with torch.no_grad():
        unmerged, merged, before = (model.eval()(IDS).logits for model in (with_adapters, adapters.plain(with_adapters), base))
    assert (unmerged - merged).abs().max() < 1e-5
    assert (unmerged - before).abs().max() > 1e-2


def test_what_is_stored_is_the_adapters_and_their_base(start: Path, tmp_path: Path) -> None:
    """By hand, one layer of width 16 and 32: rank 2 on q, k, v, o (16 + 16 each) and gate, up, down (16 + 32 each): 2 x (128 + 144)."""
    train_policy(start, demonstrations(16), SFTLoss(), FIT, tmp_path / "trained")
    assert {path.name for path in (tmp_path / "trained").iterdir()} == {
        BASE, adapters.CONFIG, adapters.WEIGHTS, "training_losses.json"
    }  # fmt: skip
    weights = load_file(tmp_path / "trained" / adapters.WEIGHTS)
    assert sum(weight.numel() for weight in weights.values()) == 544
    assert base_of(tmp_path / "trained") == str(start)
    assert settings_of(tmp_path / "trained") == LORA
    assert json.loads((tmp_path / "trained" / adapters.CONFIG).read_text())["base_model_name_or_path"] == str(start)
    assert not is_adapter(start)
    assert base_of(start) is None
    assert settings_of(start) is None


def test_adapters_of_a_large_model_are_a_small_part_of_it() -> None:
    """At a 1B shape (Llama 3.2's, without weights): rank 32 on all linear layers is under 5 % of the merged model's bytes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = AutoConfig.for_model("llama", **shape, vocab_size=128_256, tie_word_embeddings=True)
    with torch.device("meta"):
        model = adapters.add(AutoModelForCausalLM.from_config(config), Lora(rank=32), seed=0)
    of_adapters = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    whole = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    assert whole == 1_235_814_400  # as its makers count
    assert of_adapters == 32 * 16 * (4 * 2048 + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert of_adapters < 0.05 * whole


def test_a_base_lends_its_weights_and_keeps_them(start: Path, tmp_path: Path) -> None:
    train_policy(start, demonstrations(16), SFTLoss(), FIT, tmp_path / "trained")
    base, _ = policies.load_policy(start)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    first, second = (adapters.load(base, tmp_path / "trained") for _ in range(2))
    assert model_bytes(base, first, second) == model_bytes(base) + 2 * 4 * 544
    adapters.plain(first)
    assert apart(dict(base.state_dict()), before) == 0


def test_training_goes_on_with_adapters_of_the_same_settings(start: Path, tmp_path: Path) -> None:
    """The same base, and the adapters move on from where they were; DPO against the adapted policy itself begins at log 2."""
    train_policy(start, demonstrations(16), SFTLoss(), FIT, tmp_path / "first")
    train_policy(tmp_path / "first", pairs(16), DPOLoss(0.1), FIT, tmp_path / "second", reference=tmp_path / "first")
    assert base_of(tmp_path / "second") == str(start)
    assert json.loads((tmp_path / "second" / "training_losses.json").read_text())[0] == pytest.approx(0.693147, abs=1e-5)
    first, second = (load_file(tmp_path / name / adapters.WEIGHTS) for name in ("first", "second"))
    assert 0 < apart(first, second) < 0.2


def test_adapters_of_other_settings_stand_on_the_adapted_policy(start: Path, tmp_path: Path) -> None:
    train_policy(start, demonstrations(16), SFTLoss(), FIT, tmp_path / "first")
    other = FIT.model_copy(update={"lora": Lora(rank=1), "learning_rate": 1e-9})
    train_policy(tmp_path / "first", demonstrations(16), SFTLoss(), other, tmp_path / "second")
    assert base_of(tmp_path / "second") == str(tmp_path / "first")
    with torch.no_grad():
        first = opened(tmp_path / "first", start)(IDS).logits
        base = adapters.load(policies.load_policy(start)[0], tmp_path / "first")
        second = adapters.readable(adapters.load(base, tmp_path / "second")).eval()(IDS).logits
    assert (first - second).abs().max() < 1e-5


def test_training_in_full_starts_from_the_merged_weights(start: Path, tmp_path: Path) -> None:
    train_policy(start, demonstrations(16), SFTLoss(), FIT, tmp_path / "first")
    train_policy(tmp_path / "first", demonstrations(16), SFTLoss(), RECIPE.model_copy(update={"learning_rate": 1e-9}), tmp_path / "second")
    merged = adapters.plain(adapters.load(policies.load_policy(start)[0], tmp_path / "first"))
    assert not is_adapter(tmp_path / "second")
    assert apart(dict(policies.load_policy(tmp_path / "second")[0].state_dict()), dict(merged.state_dict())) < 1e-6


POLICY, REWARD = AutoModelForCausalLM, AutoModelForSequenceClassification


@pytest.mark.parametrize(
    ("kind", "auto", "modules"),
    [
        ("llama", POLICY, "all-linear"), ("llama", POLICY, ("q_proj", "mlp.down_proj")), ("llama", REWARD, "all-linear"),
        ("gpt2", POLICY, "all-linear"), ("bert", REWARD, "all-linear"), ("modernbert", REWARD, "all-linear"),
    ],
)  # fmt: skip
def test_shapes_of_adapters_are_those_that_peft_saves(kind: str, auto: Any, modules: tuple[str, ...] | str) -> None:
    fields = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
    own = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40} if kind == "gpt2" else fields
    model = auto.from_config(AutoConfig.for_model(kind, **own, pad_token_id=0))
    lora = Lora(rank=3, target_modules=modules)  # pyright: ignore[reportArgumentType]
    state = get_peft_model_state_dict(adapters.add(model, lora, 0), save_embedding_layers=False)
    assert adapters.trained_shapes(model, lora) == {name: tuple(value.shape) for name, value in state.items()}
