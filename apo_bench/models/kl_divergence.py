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
def kl(
    policy: Any, reference: Any, tokenizer: Any, responses: Sequence[Response], spec: PolicyModel, batch_size: int,
    beside: tuple[Any, PolicyModel] | None = None,
) -> list[float]:  # fmt: skip
    """KL(policy || reference) of each response in nats: exact over the vocabulary at every token, summed over tokens.

    With responses sampled untruncated from the policy at temperature 1, the mean estimates the sequence-level KL. `beside`: tokenizer and
    settings of a reference that reads prompts otherwise, in its own template; of responses both read the policy's tokens.
    """
    chat, other = ChatFormat.of(tokenizer, spec), None if beside is None else ChatFormat.of(*beside)
    items: list[list[tuple[list[int], list[int]]]] = []  # for each model
    lengths: list[int] = []
    for response in responses:
        start = chat.encode_prompt(response.prompt, spec.max_prompt_tokens).ids
        cut = response.finish != "eos"  # the policy sampled no end token
        end = chat.encode_response(response.prompt, response.text, spec.max_response_tokens, response.token_ids, cut=cut)
        if cut and end[-1:] == [chat.end_id]:  # in the place of a human turn
            end = end[:-1]
        starts = [start]
        if other is not None and beside is not None:
            starts.append(other.encode_prompt(response.prompt, beside[1].max_prompt_tokens).ids)
        lengths.append(max(map(len, starts)) + len(end))
        items.append([(start + end, [0] * len(start) + [1] * len(end)) for start in starts])
    order = sorted(range(len(items)), key=lambda place: lengths[place])
    models = [(model.eval(), is_recognised(model)) for model in (policy, reference)]
    sums: dict[int, float] = {}
    while order:
        rows = next((n for n in range(min(batch_size, len(order)), 1, -1) if n * lengths[order[n - 1]] <= TOKENS_A_PASS), 1)
        places, order = order[:rows], order[rows:]
        read = [_padded([items[place][side] for place in places], tokenizer.pad_token_id) for side in range(len(items[places[0]]))]
        p, q = (
            response_positions(model, ids.to(policy.device), attention.to(policy.device), mask, recognised)
            for (model, recognised), (ids, attention, mask) in zip(models, (read[0], read[-1]), strict=True)
        )
        mask = read[0][-1]
        per_token = torch.zeros(mask.shape)
        per_token[:, 1:][mask[:, 1:] == 1] = divergence(p, q, tokenizer.pad_token_id).cpu()
        sums.update(zip(places, per_token.sum(dim=1).tolist(), strict=True))
    return [sums[place] for place in range(len(items))]


def is_known(policy: Any, reference: Any, tokenizer: Any, other: Any) -> bool:
    """Whether there is a KL: both policies give probabilities to the same tokens."""
    rows = {model.get_output_embeddings().weight.shape[0] for model in (policy, reference)}
    return len(rows) == 1 and (tokenizer is other or tokenizer.get_vocab() == other.get_vocab())


def _padded(items: Sequence[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention, mask) of a batch."""
    ids, attention = pad([ids for ids, _ in items], pad_id)
    return ids, attention, pad([mask for _, mask in items], 0)[0]


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
