"""Responses sampled from a policy: each prompt is read once for its n responses, and each response has a seed of its own."""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apo_bench.config.schema import PolicyModel, Sampling
from apo_bench.models import flops
from apo_bench.models.padding import like_lengths, pad
from apo_bench.models.tokenize import HUMAN_TURN, ChatFormat, Encoded
from apo_bench.types import Prompt, Response, identity

LEAVE = 8  # finished rows leave the batch once they are an eighth of it: leaving copies the cache, as every token does


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], n: int, sampling: Sampling, spec: PolicyModel, seed: int
) -> tuple[list[Response], dict[str, float]]:
    """n responses to each prompt, prompt by prompt, and the counts spent; as a Generation samples them, batch after batch."""
    generation = Generation.of(model, tokenizer, prompts, n, sampling, spec, seed)
    return generation.joined([generation.sample(number) for number in range(len(generation.batches))])


@dataclass(frozen=True)
class Generation:
    """n responses to each prompt, sampled batch by batch, in any order and by any process: batches know nothing of each other.

    A response ends at the token that ends a turn or a sequence, at the next human turn, or at max_new_tokens; the padding token is never
    drawn. Response j of a prompt depends on the seed, the prompt's id and j, and up to rounding on nothing else: not on n, on other prompts
    or on the batch. A prompt that occurs twice is answered twice. Prompts of like length share a batch; `batches` holds their places.
    """

    model: Any
    tokenizer: Any
    prompts: Sequence[Prompt]
    encoded: Sequence[Encoded]
    n: int
    seeds: Sequence[Sequence[int]]
    batches: Sequence[Sequence[int]]
    rules: "_Rules"

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, prompts: Sequence[Prompt], n: int, sampling: Sampling, spec: PolicyModel, seed: int
    ) -> "Generation":
        """Equal arguments give equal batches, in every process."""
        model = getattr(model.eval(), "get_base_model", lambda: model)()  # of adapters: the model that they were put into
        chat = ChatFormat.of(tokenizer, spec)
        encoded = [chat.encode_prompt(prompt, spec.max_prompt_tokens) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda place: (len(encoded[place].ids), place))
        size = max(1, sampling.batch_size // n)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rules = _Rules.of(model, chat, sampling)
        return cls(model, tokenizer, prompts, encoded, n, [*_seeds(seed, prompts, n)], batches, rules)

    @torch.no_grad()
    def sample(self, number: int) -> list[list[int]]:
        """Token ids of a batch's responses, n a prompt, in the order of its places."""
        batch = self.batches[number]
        seeds = [seed for place in batch for seed in self.seeds[place]]
        return _sample(self.model, [self.encoded[place].ids for place in batch], self.n, seeds, self.rules)

    def joined(self, sampled: Sequence[Sequence[list[int]]]) -> tuple[list[Response], dict[str, float]]:
        """The responses, prompt by prompt, and the counts spent, of what `sample` gave for every batch."""
        n, rows = self.n, dict[int, Sequence[list[int]]]()
        for batch, several in zip(self.batches, sampled, strict=True):
            rows.update((place, several[start : start + n]) for place, start in zip(batch, range(0, len(several), n), strict=True))
        places = range(len(self.prompts))
        responses = [response_of(self.tokenizer, self.prompts[place], row, self.rules.ends) for place in places for row in rows[place]]
        cost, lengths = flops.size(self.model), [response.tokens for response in responses]
        counts: dict[str, float] = {
            "sampled_responses": len(responses),
            "sampled_tokens": sum(lengths),
            "flops": sum(cost.generation(len(self.encoded[place].ids), lengths[n * place : n * (place + 1)]) for place in places),
            "truncated_prompts": sum(prompt.truncated for prompt in self.encoded),
            "cut_responses": sum(response.finish == "length" for response in responses),
        }
        return responses, counts


@dataclass(frozen=True)
class _Rules:
    """How scores become a token, and what ends a response. `turn`: whether ids end with the next human turn, where that ends one."""

    processors: Any
    greedy: bool
    ends: frozenset[int]
    turn: Any | None
    max_new_tokens: int
    pad_id: int

    @classmethod
    def of(cls, model: Any, chat: ChatFormat, sampling: Sampling) -> "_Rules":
        from transformers import StopStringCriteria

        tokenizer = chat.tokenizer

        own = getattr(model.generation_config, "eos_token_id", None)  # saved with the weights; the rest of it decides nothing here
        ends = frozenset({chat.end_id, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
        turn = None if tokenizer.chat_template else StopStringCriteria(tokenizer, [HUMAN_TURN])
        chosen = processors(sampling, tokenizer.pad_token_id, model.device)
        return cls(chosen, sampling.temperature == 0, ends, turn, sampling.max_new_tokens, tokenizer.pad_token_id)


def processors(sampling: Sampling, pad_id: int, device: Any) -> Any:
    """transformers' own, in the order in which its `generate` applies them. A penalty on padding changes nothing: it is never drawn."""
    from transformers.generation import logits_process as warp

    processors = warp.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(warp.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(warp.SuppressTokensLogitsProcessor([pad_id], device=device))  # an added row that nothing trained
    if sampling.temperature == 0:
        return processors
    if sampling.temperature != 1:
        processors.append(warp.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(warp.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(warp.TopPLogitsWarper(sampling.top_p))
    return processors


def _seeds(seed: int, prompts: Sequence[Prompt], n: int) -> Iterator[list[int]]:
    """n a prompt. A prompt that occurs again gets others."""
    before = Counter[str]()
    for prompt in prompts:
        occurrence = before[prompt.id]
        before[prompt.id] += 1
        yield [int(identity(str(seed), prompt.id, str(occurrence), str(number)), 16) % 2**63 for number in range(n)]


def _sample(model: Any, prompts: Sequence[list[int]], n: int, seeds: Sequence[int], rules: _Rules) -> list[list[int]]:
    """The ids of n responses to each prompt, one for each of the seeds."""
    from apo_bench.models import kv_cache

    generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    ids, mask = (part.to(model.device) for part in pad(prompts, rules.pad_id, side="left"))
    logits, cache = _read_prompts(model, ids, mask)
    copies = torch.arange(len(prompts), device=model.device).repeat_interleave(n)
    ids, mask, logits = _select(copies, ids, mask, logits, cache=cache)
    if cache is not None:
        kv_cache.make_room(cache)
    rows: list[list[int]] = [[] for _ in seeds]
    live = torch.arange(len(rows))  # which response each row of the batch is
    over = [False] * len(rows)
    while True:
        scores = rules.processors(ids, logits)
        tokens = scores.argmax(dim=-1) if rules.greedy else draw(scores, [generators[row] for row in live])
        ids, mask = torch.cat([ids, tokens[:, None]], dim=1), torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        turns = [False] * len(live) if rules.turn is None else rules.turn(ids, None).tolist()
        for row, token, turn in zip(live.tolist(), tokens.tolist(), turns, strict=True):
            if not over[row]:
                rows[row].append(token)
                over[row] = turn or token in rules.ends or len(rows[row]) == rules.max_new_tokens
        stay = torch.tensor([place for place, row in enumerate(live.tolist()) if not over[row]], dtype=torch.long)
        if not len(stay):
            return rows
        if (len(live) - len(stay)) * LEAVE >= len(live):
            live = live[stay]
            ids, mask = _select(stay.to(model.device), ids, mask, cache=cache)
        logits, cache = _read(model, ids, mask, cache)


def draw(scores: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A token a row (B,), with the probabilities of softmax(scores) (B, V), each row by its own generator.

    The first arrival of V exponential clocks with those probabilities as rates. Beside inverting the cumulative distribution, where a
    change in any token's last bits moves all tokens after it, another token is drawn only if two arrivals are within rounding.
    """
    uniform = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)  # 24 bits would be too coarse for rare tokens
    for row, generator in zip(uniform, generators, strict=True):
        row.uniform_(generator=generator)
    clocks = -torch.log1p(-uniform.float().clamp(min=1e-30, max=1 - 2**-24))
    return (scores.softmax(dim=-1) / clocks).argmax(dim=-1)


def _read_prompts(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any | None]:
    """As `_read`, rows of like length at a time where their caches can be joined. Rows are in ascending order of length."""
    from apo_bench.models import kv_cache

    lengths = mask.sum(dim=-1).tolist()
    logits, caches = [], []
    for rows in like_lengths(lengths):
        read = slice(ids.shape[1] - lengths[rows.stop - 1], None)
        scores, cache = _read(model, ids[rows, read], mask[rows, read], None)
        if not kv_cache.is_joinable(cache):
            return _read(model, ids, mask, None) if rows.stop < len(lengths) else (scores, cache)
        logits.append(scores)
        caches.append(cache)
    return torch.cat(logits), kv_cache.join(caches)


def _read(model: Any, ids: Tensor, mask: Tensor, cache: Any | None) -> tuple[Tensor, Any | None]:
    """Scores of the next token in fp32, (B, V), and the model's cache if rows can be selected from it.

    What the cache holds is not read again; without it, everything is.
    """
    from apo_bench.models import kv_cache

    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0), "logits_to_keep": 1}
    inputs = model.prepare_inputs_for_generation(
        ids,
        next_sequence_length=None if cache is None else 1,
        cache=cache,
        attention_mask=mask,
        use_cache=True,
        is_first_iteration=cache is None,
        **{name: value for name, value in options.items() if name in accepted},
    )
    output = model(**inputs, return_dict=True)
    return output.logits[:, -1].float(), kv_cache.selectable(getattr(output, "cache", None))


def _select(rows: Tensor, *parts: Tensor, cache: Any | None) -> tuple[Tensor, ...]:
    """These rows of each part and, in place, of the cache: fewer of them or more."""
    if cache is not None:
        cache.reorder_cache(rows)
    return tuple(part[rows] for part in parts)


def response_of(tokenizer: Any, prompt: Prompt, ids: list[int], ends: frozenset[int]) -> Response:
    """The text before a next human turn, if there is one; its ids then end with the end-of-sequence token in the turn's place."""
    spoken = ids[:-1] if ids[-1] in ends else ids  # the end of a turn need not be a special token
    before, turn, _ = tokenizer.decode(spoken, skip_special_tokens=True).partition(HUMAN_TURN)
    finish = "turn" if turn else "eos" if ids[-1] in ends else "length"
    trained = ids
    if turn:
        lengths = (length for length in range(len(ids)) if _starts(tokenizer, ids[:length], before))
        trained = [*ids[: next(lengths, len(ids) - 1)], tokenizer.eos_token_id]
    return Response(prompt, before.strip(), len(ids), finish, tuple(trained))


def _starts(tokenizer: Any, ids: list[int], text: str) -> bool:
    return tokenizer.decode(ids, skip_special_tokens=True).startswith(text)
