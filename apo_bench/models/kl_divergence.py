"""How far a policy is from its reference: the exact KL divergence at every token of its responses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apo_bench.config.schema import PolicyModel
from apo_bench.models.tokenize import encode_prompt, encode_response, pad
from apo_bench.types import Response


@torch.no_grad()
def kl(policy: Any, reference: Any, tokenizer: Any, responses: Sequence[Response], spec: PolicyModel, batch_size: int) -> list[float]:
    """KL(policy || reference) of each response in nats: exact over the vocabulary at every token, summed over tokens.

    With responses sampled untruncated from the policy at temperature 1, the mean estimates the sequence-level KL.
    """
    items: list[tuple[list[int], list[int]]] = []
    lengths: list[int] = []
    for response in responses:
        start = encode_prompt(tokenizer, response.prompt, spec.system_prompt, spec.max_prompt_tokens).ids
        end = encode_response(tokenizer, response.text, spec.max_response_tokens, response.token_ids)
        lengths.append(len(start) + len(end))
        if response.finish != "eos" and end[-1] == tokenizer.eos_token_id:  # the policy did not end here: it sampled no end token
            end = end[:-1]
        items.append((start + end, [0] * len(start) + [1] * len(end)))
    order = sorted(range(len(items)), key=lambda place: lengths[place])
    sums: dict[int, float] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        ids, attention = pad([items[place][0] for place in places], tokenizer.pad_token_id)
        mask, _ = pad([items[place][1] for place in places], 0)
        inputs = {"input_ids": ids.to(policy.device), "attention_mask": attention.to(policy.device)}
        p, q = (_drawn_from(model.eval()(**inputs).logits[:, :-1], tokenizer.pad_token_id) for model in (policy, reference))
        per_token = (p.exp() * (p - q)).sum(dim=-1).cpu() * mask[:, 1:]
        sums.update(zip(places, per_token.sum(dim=1).tolist(), strict=True))
    return [sums[place] for place in range(len(items))]


def _drawn_from(logits: Tensor, pad_id: int) -> Tensor:
    """Log-probabilities (B, T, V) that `sample` draws from at temperature 1: those without the padding token."""
    padding = torch.arange(logits.shape[-1], device=logits.device) == pad_id
    return logits.float().masked_fill(padding, -1e4).log_softmax(dim=-1)  # finite, so that 0 * difference is 0
