"""What was sampled is trained on and compared as the ids that were sampled: token in, token out.

Reported of others: huggingface/trl#5224, THUDM/slime#117.
"""

from pathlib import Path

import pytest
import torch
from chat_families import family_policy
from tiny_tokenizers import prompt

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.losses import SFTLoss
from apo_bench.models.generate import generate
from apo_bench.models.kl_divergence import kl
from apo_bench.models.policy import load_policy
from apo_bench.training.encoding import encode_items
from apo_bench.types import Demonstration


def test_a_text_that_encodes_to_other_ids_is_the_ids_that_were_sampled(tmp_path: Path) -> None:
    """A random policy draws letters that its tokenizer would have merged. Its KL to another is the sum over the sampled ids, by hand."""
    (model, tokenizer), (other, _) = (load_policy(family_policy("llama3", tmp_path / str(seed), seed)) for seed in (0, 1))
    sampling = Sampling(max_new_tokens=30, batch_size=64)
    spec = PolicyModel(
        path="x", max_prompt_tokens=99, max_response_tokens=99, training=Recipe(learning_rate=1e-3), sampling=sampling, system_prompt=None
    )
    responses, _ = generate(model, tokenizer, [prompt("how do I wash it")], 16, sampling, spec, seed=0)
    differs = [
        each for each in responses if each.token_ids and tokenizer(each.text, add_special_tokens=False)["input_ids"] != [*each.token_ids]
    ]
    assert differs
    ids = {differs[0].prompt.id: {each.text: each.token_ids for each in differs}}
    items = encode_items(tokenizer, [Demonstration(each.prompt, each.text) for each in differs], SFTLoss(), spec, ids)
    nats = kl(model, other, tokenizer, differs, spec, batch_size=4)
    for response, item, total in zip(differs, items, nats, strict=True):
        [(whole, mask)] = item["sides"]
        start = mask.index(1)
        assert tuple(whole[start:]) == response.token_ids
        with torch.no_grad():
            p, q = (each(torch.tensor([whole])).logits[0, start - 1 : -1] for each in (model, other))
        for logits in (p, q):
            logits[:, tokenizer.pad_token_id] = -1e4  # never drawn
        by_hand = (p.log_softmax(-1).exp() * (p.log_softmax(-1) - q.log_softmax(-1))).sum()
        assert total == pytest.approx(by_hand.item(), rel=1e-4)
