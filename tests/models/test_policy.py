"""Policies: loaded, built, saved, and with a padding token of their own."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from constant_policy import LLAMA
from tiny_tokenizers import turn_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from apo_bench.models import device
from apo_bench.models import policy as policies
from apo_bench.models.tokenize import PAD


def test_a_new_policy_depends_on_its_seed_alone() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return policies.new_policy(LLAMA, ["a", "b"], seed)[0].state_dict()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(weight, first[name]) for name, weight in weights(0).items())
    assert not torch.equal(weights(1)["lm_head.weight"], first["lm_head.weight"])


def test_a_folder_is_an_ordinary_transformers_folder(tiny_policy: Any) -> None:
    folder, _ = tiny_policy
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours, _ = policies.load_policy(folder)
    ids = torch.tensor([tokenizer("<user> how do i wash it <assistant>")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours(ids).logits)
    assert (folder / "model.safetensors").exists()


def test_a_model_that_pads_with_its_end_token_gets_a_row_of_its_own(tmp_path: Path) -> None:
    """7 tokens and <end> as padding: the policy pads with id 7, and the logits of the first 7 stay as they were."""
    tokenizer = turn_tokenizer()
    config = AutoConfig.for_model(**LLAMA, **policies.token_ids(tokenizer))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    policies.save_model(base, tokenizer, tmp_path / "base")
    model, own = policies.load_policy(tmp_path / "base")
    assert (own.pad_token, own.pad_token_id, model.config.pad_token_id) == (PAD, 7, 7)
    policies.save_model(model, own, tmp_path / "saved")
    again, _ = policies.load_policy(tmp_path / "saved")
    ids = torch.tensor([[2, 4, 5, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[..., :7], base.eval()(ids).logits)
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_what_is_to_be_sharded_is_not_placed_and_what_is_read_is_loaded_whole(
    tiny_policy: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an FSDP configuration a policy that is read has its weights on every process; the configuration is left as it was."""
    placed: list[Any] = []
    monkeypatch.setattr(policies, "on_device", lambda model: placed.append(os.environ[device.EFFICIENT]) or model)
    during: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def watched(*arguments: Any, **options: Any) -> Any:
        during.append(os.environ[device.EFFICIENT])
        return load(*arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    monkeypatch.setenv(device.EFFICIENT, "true")
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "true")
        policies.load_policy(tiny_policy[0], shards=True)
        monkeypatch.delenv(name)
    assert placed == []
    assert during == ["true", "true"]
    policies.load_policy(tiny_policy[0])
    policies.load_policy(tiny_policy[0], shards=True)  # nothing shards
    assert placed == ["true", "true"]
    assert during[2:] == ["false", "false"]


@pytest.mark.parametrize(("rank", "efficient", "empty"), [("0", "true", False), ("1", "true", True), ("1", "false", False)])
def test_a_process_that_gets_its_shards_from_another_loads_no_weights(
    tiny_policy: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, rank: str, efficient: str, empty: bool
) -> None:
    """It has every weight on the meta device, tied as in the others, and its buffers in memory, since nobody sends them."""
    variables = {"ACCELERATE_USE_FSDP": "true", device.EFFICIENT: efficient, "LOCAL_RANK": rank}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model, _ = policies.load_policy(tiny_policy[0], shards=True)
    assert {weight.is_meta for weight in model.parameters()} == {empty}
    assert not any(buffer.is_meta for buffer in model.buffers())
    read, _ = policies.load_policy(tiny_policy[0])
    assert not any(weight.is_meta for weight in read.parameters())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in read.named_parameters()]
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), read.buffers(), strict=True))
