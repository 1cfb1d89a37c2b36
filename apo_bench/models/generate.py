"""Responses sampled from a policy."""

from collections.abc import Sequence
from typing import Any

import torch

from apo_bench.config.schema import PolicyModel, Sampling
from apo_bench.models import flops
from apo_bench.models.device import seeded
from apo_bench.models.tokenize import HUMAN_TURN, encode_prompt, pad
from apo_bench.types import Prompt, Response, identity


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], n: int, sampling: Sampling, spec: PolicyModel, seed: int
) -> tuple[list[Response], dict[str, float]]:
    """n responses to each prompt, prompt by prompt, and the counts spent.

    Prompts of like length share a batch. A response ends at the end-of-sequence token, at the next human turn, or at
    max_new_tokens; the padding token is never drawn. The draw depends on the seed and the batch, never on the global generator.
    """
    model.eval()
    encoded = [encode_prompt(tokenizer, prompt, spec.system_prompt, spec.max_prompt_tokens) for prompt in prompts]
    own = model.generation_config  # what is saved with the weights, and decides nothing here but which tokens end a response
    ends = {tokenizer.eos_token_id, *_as_list(getattr(own, "eos_token_id", None))} - {None}
    stop = {} if tokenizer.chat_template else {"stop_strings": [HUMAN_TURN], "tokenizer": tokenizer}
    order = sorted(range(len(prompts)), key=lambda place: (len(encoded[place].ids), place))
    size = max(1, sampling.batch_size // n)
    answers: dict[int, list[Response]] = {}
    model.generation_config = _generation_config(tokenizer, sampling, ends)
    try:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            ids, mask = pad([encoded[place].ids for place in batch], tokenizer.pad_token_id, side="left")
            with seeded(int(identity(str(seed), str(start)), 16) % 2**63):
                output = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), num_return_sequences=n, **stop)
            rows = output[:, ids.shape[1] :].tolist()
            for number, place in enumerate(batch):
                answers[place] = [_response(tokenizer, prompts[place], row, ends) for row in rows[number * n : (number + 1) * n]]
    finally:
        model.generation_config = own
    responses = [response for place in range(len(prompts)) for response in answers[place]]
    sampled_tokens = sum(response.tokens for response in responses)
    cost = flops.size(model)
    read = [len(prompt.ids) for prompt in encoded for _ in range(n)]
    counts: dict[str, float] = {
        "sampled_responses": len(responses),
        "sampled_tokens": sampled_tokens,
        "flops": sum(cost.generation(prompt, response.tokens) for prompt, response in zip(read, responses, strict=True)),
        "truncated_prompts": sum(prompt.truncated for prompt in encoded),
    }
    return responses, counts


def _generation_config(tokenizer: Any, sampling: Sampling, ends: set[int]) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
        suppress_tokens=[tokenizer.pad_token_id],  # padding is no word; an added one has a row that nothing trained
    )


def _response(tokenizer: Any, prompt: Prompt, row: list[int], ends: set[int]) -> Response:
    end = next((place for place, token in enumerate(row) if token in ends), None)
    tokens = len([token for token in row if token != tokenizer.pad_token_id]) if end is None else end + 1
    text = tokenizer.decode(row[:tokens], skip_special_tokens=True)
    before_turn, turn, _ = text.partition(HUMAN_TURN)
    finish = "turn" if turn else "length" if end is None else "eos"
    return Response(prompt, before_turn.strip(), tokens, finish)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
