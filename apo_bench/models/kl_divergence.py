"""How far a policy is from its reference: the exact KL divergence at every token of its responses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apo_bench.config.schema import PolicyModel
from apo_bench.models.output_layer import Positions, is_recognised, response_positions
from apo_bench.models.padding import pad
from apo_bench.models.tokenize import ChatFormat
from apo_bench.types import Response

TOKENS_A_PASS = 4096  # padding included, so that what the layers of a pass hold stays below what a chunk of logits does


@torch.no_grad()
def kl(policy: Any, reference: Any, tokenizer: Any, responses: Sequence[Response], spec: PolicyModel, batch_size: int) -> list[float]:
    """KL(policy || reference) of each response in nats: exact over the vocabulary at every token, summed over tokens.

    With responses sampled untruncated from the policy at temperature 1, the mean estimates the sequence-level KL.
    """
    chat = ChatFormat.of(tokenizer, spec)
    items: list[tuple[list[int], list[int]]] = []
    lengths: list[int] = []
    for response in responses:
        start = chat.encode_prompt(response.prompt, spec.max_prompt_tokens).ids
        cut = response.finish != "eos"  # the policy sampled no end token
        end = chat.encode_response(response.prompt, response.text, spec.max_response_tokens, response.token_ids, cut=cut)
        if cut and end[-1:] == [chat.end_id]:  # in the place of a human turn
            end = end[:-1]
        lengths.append(len(start) + len(end))
        items.append((start + end, [0] * len(start) + [1] * len(end)))
    order = sorted(range(len(items)), key=lambda place: lengths[place])
    models = [(model.eval(), is_recognised(model)) for model in (policy, reference)]
    sums: dict[int, float] = {}
    while order:
        rows = next((n for n in range(min(batch_size, len(order)), 1, -1) if n * lengths[order[n - 1]] <= TOKENS_A_PASS), 1)
        places, order = order[:rows], order[rows:]
        ids, attention = pad([items[place][0] for place in places], tokenizer.pad_token_id)
        mask, _ = pad([items[place][1] for place in places], 0)
        inputs = (ids.to(policy.device), attention.to(policy.device), mask)
        p, q = (response_positions(model, *inputs, recognised) for model, recognised in models)
        per_token = torch.zeros(mask.shape)
        per_token[:, 1:][mask[:, 1:] == 1] = divergence(p, q, tokenizer.pad_token_id).cpu()
        sums.update(zip(places, per_token.sum(dim=1).tolist(), strict=True))
    return [sums[place] for place in range(len(items))]


def divergence(p: Positions, q: Positions, pad_id: int) -> Tensor:
    """KL(p || q) at each position, (P,)."""
    parts = []
    p_chunks = p.chunks
    for p_states, q_states in zip(p_chunks, q.states.split([len(chunk) for chunk in p_chunks]), strict=True):
        p_logps = _drawn_from(p.logits(p_states), pad_id)
        difference = _drawn_from(q.logits(q_states), pad_id).neg_().add_(p_logps)
        parts.append(difference.mul_(p_logps.exp_()).sum(dim=-1))
    return torch.cat(parts)


def _drawn_from(logits: Tensor, pad_id: int) -> Tensor:
    """Log-probabilities (n, V) that `sample` draws from at temperature 1: those without the padding token. Overwrites the logits."""
    padding = torch.arange(logits.shape[-1], device=logits.device) == pad_id
    return logits.float().masked_fill_(padding, -1e4).log_softmax(dim=-1)  # finite, so that 0 * difference is 0
