"""Turns end with what the template puts after an answer, which need not be the tokenizer's end of a sequence.

Reported of others: axolotl-ai-cloud/axolotl#3754, huggingface/trl#7039 and #3299, hiyouga/LlamaFactory#7454.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_families import FAMILIES, family_policy, family_tokenizer
from tiny_tokenizers import prompt

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.losses import SFTLoss
from apo_bench.models.generate import generate
from apo_bench.models.policy import load_policy
from apo_bench.models.tokenize import ChatFormat
from apo_bench.training.encoding import encode_items, response_logps
from apo_bench.types import Demonstration

ENDS = {
    "llama3": "<|eot|>", "dated": "<|eot|>", "gemma": "<end_turn>", "phi3": "<|end|>", "qwen3": "<|im_end|>", "r1": "</s>",
    "silent": "</s>", "chatml": "<|im_end|>", "base": "<|end|>",
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_and_scored_responses_end_with_the_templates_token(name: str) -> None:
    chat = ChatFormat(family_tokenizer(name))
    question = prompt("how do I wash it", "by hand", "and dry it")
    end = chat.tokenizer.convert_tokens_to_ids(ENDS[name])
    assert chat.end_id == end
    trained, scored = chat.encode_response(question, "well", 99), chat.encode_scored(question, "well", 999).ids
    assert (trained[-1], trained.count(end)) == (end, 1)
    assert scored[-1] == end
    assert scored[: -len("well")].count(end) == chat.encode_prompt(question, 999).ids.count(end)  # of the turns before


def samples(folder: Path) -> tuple[Any, Any, PolicyModel, list[Any]]:
    """A policy's own responses to one prompt: some end by themselves, since each of 400 tokens is about as likely as another."""
    model, tokenizer = load_policy(folder)
    sampling = Sampling(max_new_tokens=200, batch_size=64)
    spec = PolicyModel(
        path=str(folder), max_prompt_tokens=99, max_response_tokens=300, training=Recipe(learning_rate=1e-3), sampling=sampling
    )
    responses, _ = generate(model, tokenizer, [prompt("how do I wash it")], 32, sampling, spec, seed=3)
    return model, tokenizer, spec, responses


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "qwen3"])
def test_samples_are_trained_on_with_the_log_probabilities_they_were_drawn_with(name: str, tmp_path: Path) -> None:
    """Against one plain pass over the ids of prompt and sample; the prompt's are those of the whole templated text."""
    model, tokenizer, spec, responses = samples(family_policy(name, tmp_path))
    chat = ChatFormat.of(tokenizer, spec)
    ended = [response for response in responses if response.finish == "eos"]
    assert len(ended) > 5
    assert {response.token_ids[-1] for response in ended} <= {chat.end_id, tokenizer.eos_token_id}
    data = [Demonstration(response.prompt, response.text) for response in responses]
    ids = {responses[0].prompt.id: {response.text: response.token_ids for response in responses}}
    items = encode_items(tokenizer, data, SFTLoss(), spec, ids)
    trained = response_logps(model, items, tokenizer.pad_token_id, 8)
    start = chat.encode_prompt(responses[0].prompt, 99).ids
    for response, [logps] in zip(responses, trained, strict=True):
        whole = torch.tensor([[*start, *response.token_ids]])
        with torch.no_grad():
            plain = model(whole).logits[0, len(start) - 1 : -1].log_softmax(dim=-1)
        drawn = plain.gather(1, whole[0, len(start) :, None]).sum()
        assert logps.sum().item() == pytest.approx(drawn.item(), abs=1e-3)


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "chatml"])
def test_a_text_is_trained_on_as_the_template_writes_it(name: str) -> None:
    """The ids of prompt and target are those of the whole conversation, up to the end of the turn."""
    chat = ChatFormat(family_tokenizer(name), None)
    question = prompt("how do I wash it")
    messages = [{"role": "user", "content": "how do I wash it"}, {"role": "assistant", "content": "by hand"}]
    whole = chat.tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    ours = chat.encode_prompt(question, 99).ids + chat.encode_response(question, "by hand", 99)
    assert whole[: len(ours)] == ours
    assert ours[-1] == chat.end_id
