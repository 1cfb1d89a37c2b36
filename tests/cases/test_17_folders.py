"""A user's folder is an input: OpenRLHF/OpenRLHF#1039, OptimalScale/LMFlow#104, huggingface/peft#523; and 44 and 46, in our own list."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_experiment import foreign_tree, refusal
from foreign_models import change_config, policy_folder, reward_folder, tokenizer
from safetensors.torch import load_file


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_end(folder: Path) -> None:
    own = tokenizer(template=False)
    own.eos_token = None
    own.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()


def named_templates(folder: Path) -> None:
    own = tokenizer()
    own.chat_template = {"tools": own.chat_template, "rag": own.chat_template}
    (folder / "chat_template.jinja").unlink()
    own.save_pretrained(folder)


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def larger_tokenizer(folder: Path) -> None:
    own = tokenizer()
    own.add_tokens(["surplus"])
    own.save_pretrained(folder)


def cut_in_half(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def configured(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: void(change_config(folder, **fields))


def void(_: Any) -> None:
    return


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled weights": (pickled, "its weights are pickled (pytorch_model.bin)"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no weights"),
    "half a file": (cut_in_half, "incomplete metadata"),
    "no end token": (without_end, "no end-of-sequence token"),
    "named templates": (named_templates, "Available template names are ['rag', 'tools']"),
    "no tokenizer": (without_tokenizer, "tokenizer"),
    "a larger tokenizer": (larger_tokenizer, "'surplus' as token 258, but the model 258 embeddings"),
    "GPTQ": (configured(quantization_config={"quant_method": "gptq", "bits": 4}), "GPTQ"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "is not a JSON object"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "a negative size": (configured(hidden_size=-5), "hidden_size: -5 is too small"),
    "a huge size": (configured(hidden_size=2**31), "hidden_size: 2147483648 is too large"),
    "too many layers": (configured(num_hidden_layers=10**9), "num_hidden_layers: 1000000000 is too large"),
    "text for a number": (configured(hidden_size="wide"), "hidden_size"),
    "an unknown type": (configured(model_type="nope"), "model type `nope`"),
    "heads that do not divide": (configured(num_attention_heads=5), "multiple"),
    "own code": (configured(model_type="nope", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}), "trust_remote_code"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_check_refuses_a_policy_in_one_line(tmp_path: Path, fault: str) -> None:
    folder = policy_folder(tmp_path / "policy")
    change, expected = BROKEN[fault]
    change(folder)
    line = refusal(tmp_path, foreign_tree(folder))
    assert "models.policy.path: " in line
    assert str(folder) in line
    assert expected in line


@pytest.mark.parametrize(
    ("spec", "labels", "expected"),
    [
        ({"kind": "neural", "training": {"learning_rate": 1e-4}}, 3, "score.weight is 3 x 32, not 1 x 32"),
        ({"kind": "neural", "training": {"learning_rate": 1e-4}, "axis_heads": True}, 3, "score.weight is 3 x 32, not 2 x 32"),
        ({"kind": "pretrained", "output": 3}, 3, "output: 3, but it has 3 outputs, counted from 0"),
    ],
)
def test_check_refuses_another_number_of_outputs(tmp_path: Path, spec: dict[str, Any], labels: int, expected: str) -> None:
    folder = reward_folder(tmp_path / "reward", labels=labels)
    line = refusal(tmp_path, foreign_tree(policy_folder(tmp_path / "policy"), reward={**spec, "path": str(folder)}))
    assert line.endswith(expected)
    assert "models.reward.path: " in line


def test_check_refuses_a_finished_model_without_a_template(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "reward", tokenizer(template=False))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    spec = {"kind": "pretrained", "path": str(folder)}
    policy = policy_folder(tmp_path / "policy")
    assert refusal(tmp_path, foreign_tree(policy, spec)).endswith("its tokenizer has no chat template; give template: transcript")


@pytest.mark.parametrize("path", ["./absent", "absent/", "models/a/b", "there/absent", "~/absent-model", ".absent"])
def test_a_mistyped_path_is_no_hub_id(tmp_path: Path, path: str) -> None:
    (tmp_path / "there").mkdir()
    assert f"models.policy.path: {path!r}: no such model folder" in refusal(tmp_path, foreign_tree(path))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
@pytest.mark.parametrize("size", [2**31, 10**9, 0, -1])
def test_check_refuses_absurd_architectures(tmp_path: Path, key: str, size: int) -> None:
    if key == "intermediate_size" and size < 1:
        return
    tree = foreign_tree("unused")
    architecture = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, key: size}
    policy = {**tree["models"]["policy"], "architecture": architecture, "warmup": {"learning_rate": 1e-3}}
    tree["models"]["policy"] = {name: value for name, value in policy.items() if name != "path"}
    assert f"models.policy.architecture: {key}: {size} is too" in refusal(tmp_path, tree)


def test_a_configuration_with_unusual_numbers_is_lawful(tmp_path: Path) -> None:
    """Fields that other code left behind do not matter."""
    from apo_bench.models.policy import load_policy

    folder = change_config(policy_folder(tmp_path), sliding_window=None, head_group=-1, note="x", rope_extra=1e9)
    assert json.loads((folder / "config.json").read_text())["head_group"] == -1
    load_policy(folder)
