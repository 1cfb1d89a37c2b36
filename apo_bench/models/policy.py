"""Policies: building one, sampling from it, and the log-probabilities it gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apo_bench.config.schema import PolicyModel, Sampling
from apo_bench.errors import InputError
from apo_bench.losses import DPOLoss, PolicyLoss, RRHFLoss, SFTLoss, token_logps
from apo_bench.models import flops
from apo_bench.models.tokenize import HUMAN_TURN, encode_prompt, encode_response, load_tokenizer, pad, word_tokenizer
from apo_bench.types import Demonstration, Group, Pair, Prompt, Response, identity


def on_device(model: Any) -> Any:
    """The model on the accelerator, if there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def in_one_thread() -> None:
    """One torch thread, as the run's workers have (two on shared cores are many times slower, and other counts give other bits), and no
    progress bar for every file."""
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_policy(folder: str | Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) in fp32; the embedding grows where the tokenizer was given a padding token of its own."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder, trust_remote_code)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code)
    fit_embedding(model, tokenizer)
    return on_device(model), tokenizer


def new_policy(architecture: Mapping[str, Any], vocabulary: Sequence[str], seed: int) -> tuple[Any, Any]:
    """(model, tokenizer) of a randomly initialised architecture with a word-level tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = word_tokenizer(vocabulary)
    fields = dict(architecture)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, **token_ids(tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return on_device(model), tokenizer


def token_ids(tokenizer: Any) -> dict[str, Any]:
    """The configuration fields that follow from a tokenizer."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return {"vocab_size": len(tokenizer), **special}


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """An ordinary transformers folder with safetensors."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def parameters(model: Any) -> int:
    """Weights that take part in matrix products for every token: all but embeddings that are only looked up."""
    return flops.size(model).weights


@torch.no_grad()
def sample(
    folder: str | Path, prompts: Sequence[Prompt], n: int, sampling: Sampling, spec: PolicyModel, seed: int
) -> tuple[list[Response], dict[str, float]]:
    """n responses to each prompt, prompt by prompt, and the counts spent.

    Prompts of like length share a batch. A response ends at the end-of-sequence token, at the next human turn, or at
    max_new_tokens; the padding token is never drawn. The draw depends on the seed and the batch, never on the global generator.
    """
    from transformers import GenerationConfig

    model, tokenizer = load_policy(folder, spec.trust_remote_code)
    model.eval()
    encoded = [encode_prompt(tokenizer, prompt, spec.system_prompt, spec.max_prompt_tokens) for prompt in prompts]
    ends = {tokenizer.eos_token_id, *_as_list(getattr(model.generation_config, "eos_token_id", None))} - {None}
    model.generation_config = GenerationConfig(
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
    stop = {} if tokenizer.chat_template else {"stop_strings": [HUMAN_TURN], "tokenizer": tokenizer}
    order = sorted(range(len(prompts)), key=lambda place: (len(encoded[place].ids), place))
    size = max(1, sampling.batch_size // n)
    answers: dict[int, list[Response]] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        ids, mask = pad([encoded[place].ids for place in batch], tokenizer.pad_token_id, side="left")
        with torch.random.fork_rng():
            torch.manual_seed(int(identity(str(seed), str(start)), 16) % 2**63)
            output = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), num_return_sequences=n, **stop)
        rows = output[:, ids.shape[1] :].tolist()
        for number, place in enumerate(batch):
            answers[place] = [_response(tokenizer, prompts[place], row, ends) for row in rows[number * n : (number + 1) * n]]
    responses = [response for place in range(len(prompts)) for response in answers[place]]
    sampled_tokens = sum(response.tokens for response in responses)
    size = flops.size(model)
    read = [len(one.ids) for one in encoded for _ in range(n)]
    counts: dict[str, float] = {
        "sampled_responses": len(responses),
        "sampled_tokens": sampled_tokens,
        "flops": sum(size.generation(prompt, response.tokens) for prompt, response in zip(read, responses, strict=True)),
        "truncated_prompts": sum(one.truncated for one in encoded),
    }
    return responses, counts


def _response(tokenizer: Any, prompt: Prompt, row: list[int], ends: set[int]) -> Response:
    end = next((place for place, token in enumerate(row) if token in ends), None)
    tokens = len([token for token in row if token != tokenizer.pad_token_id]) if end is None else end + 1
    text = tokenizer.decode(row[:tokens], skip_special_tokens=True)
    before_turn, turn, _ = text.partition(HUMAN_TURN)
    finish = "turn" if turn else "length" if end is None else "eos"
    return Response(prompt, before_turn.strip(), tokens, finish)


def training_items(
    tokenizer: Any, data: Sequence[Demonstration] | Sequence[Pair] | Sequence[Group], loss: PolicyLoss, spec: PolicyModel
) -> list[dict[str, Any]]:
    """Encoded items for `training.fit`: `size` is an item's part of the update's denominator, `length` buckets it.

    Raises InputError for data that the loss does not train on, and for groups of different sizes.
    """

    def encode(prompt: Prompt, response: str) -> tuple[list[int], list[int]]:
        start = encode_prompt(tokenizer, prompt, spec.system_prompt, spec.max_prompt_tokens).ids
        end = encode_response(tokenizer, response, spec.max_response_tokens)
        return start + end, [0] * len(start) + [1] * len(end)

    items: list[dict[str, Any]] = []
    for one in data:
        if isinstance(one, Demonstration):
            kind, texts = "demonstrations", (one.response,)
        elif isinstance(one, Pair):
            kind, texts = "pairs", (one.chosen, one.rejected)
        else:
            kind, texts = "groups", one.responses
        if kind != loss.trains_on:
            raise InputError(f"lab.train_policy: {type(loss).__name__} trains on {loss.trains_on}, got {kind}")
        sides = [encode(one.prompt, text) for text in texts]
        size = sum(sides[0][1]) if isinstance(loss, SFTLoss) else 1
        items.append({"sides": sides, "size": size, "length": sum(len(ids) for ids, _ in sides)})
        if isinstance(one, Group):
            items[-1]["scores"] = one.scores
    if len({len(item["sides"]) for item in items}) > 1:
        raise InputError("lab.train_policy: groups of different sizes; give each prompt the same number of responses")
    return items


def collate(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Sides stacked: all first sides (chosen), then all second ones (rejected), and so on."""
    sides = [item["sides"][side] for side in range(len(items[0]["sides"])) for item in items]
    ids, attention = pad([side[0] for side in sides], pad_id)
    batch = {"input_ids": ids, "attention_mask": attention, "response_mask": pad([side[1] for side in sides], 0)[0]}
    if "reference" in items[0]:
        batch["reference"] = torch.tensor([item["reference"] for item in items])  # (B, 2)
    if "scores" in items[0]:
        batch["scores"] = torch.tensor([item["scores"] for item in items])  # (B, n)
    return batch


def loss_terms(model: Any, batch: Mapping[str, Tensor], loss: PolicyLoss) -> Tensor:
    """One loss term per item, (B,)."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = token_logps(logits, batch["input_ids"])
    if isinstance(loss, SFTLoss):
        return loss(logps, batch["response_mask"])
    sums = (logps * batch["response_mask"]).sum(dim=1)
    if isinstance(loss, RRHFLoss):
        groups = len(batch["scores"])
        lengths = batch["response_mask"].sum(dim=1)
        return loss(sums.view(-1, groups).T, lengths.view(-1, groups).T, batch["scores"])
    assert isinstance(loss, DPOLoss)
    chosen, rejected = sums.chunk(2)
    return loss(chosen, rejected, *batch["reference"].unbind(dim=1))


@torch.no_grad()
def add_reference(model: Any, tokenizer: Any, items: list[dict[str, Any]], batch_size: int) -> None:
    """Put the reference policy's log-probabilities of both sides beside each pair item."""
    model.eval()
    order = sorted(range(len(items)), key=lambda place: items[place]["length"])
    for start in range(0, len(order), batch_size):
        chosen = [items[place] for place in order[start : start + batch_size]]
        batch = {name: value.to(model.device) for name, value in collate(chosen, tokenizer.pad_token_id).items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        sums = (token_logps(logits, batch["input_ids"]) * batch["response_mask"]).sum(dim=1)
        for item, both in zip(chosen, torch.stack(sums.chunk(2), dim=1).tolist(), strict=True):
            item["reference"] = both


@torch.no_grad()
def kl(folder: Path, reference: Path, responses: Sequence[Response], spec: PolicyModel, batch_size: int) -> list[float]:
    """KL(policy || reference) of each response in nats: exact over the vocabulary at every token, summed over tokens.

    With responses sampled untruncated from the policy at temperature 1, the mean estimates the sequence-level KL.
    """
    policy, tokenizer = load_policy(folder, spec.trust_remote_code)
    base, _ = load_policy(reference, spec.trust_remote_code)
    items = training_items(tokenizer, [Demonstration(one.prompt, one.text) for one in responses], SFTLoss(), spec)
    for item, one in zip(items, responses, strict=True):
        [(ids, mask)] = item["sides"]
        if one.finish != "eos" and ids[-1] == tokenizer.eos_token_id:  # the policy did not end here: it sampled no end token
            item["sides"] = [(ids[:-1], mask[:-1])]
    order = sorted(range(len(items)), key=lambda place: items[place]["length"])
    sums: dict[int, float] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collate([items[place] for place in places], tokenizer.pad_token_id)
        inputs = {name: batch[name].to(policy.device) for name in ("input_ids", "attention_mask")}
        p, q = (_drawn_from(model.eval()(**inputs).logits[:, :-1], tokenizer.pad_token_id) for model in (policy, base))
        per_token = (p.exp() * (p - q)).sum(dim=-1).cpu() * batch["response_mask"][:, 1:]
        sums.update(zip(places, per_token.sum(dim=1).tolist(), strict=True))
    return [sums[place] for place in range(len(items))]


def _drawn_from(logits: Tensor, pad_id: int) -> Tensor:
    """Log-probabilities (B, T, V) that `sample` draws from at temperature 1: those without the padding token."""
    padding = torch.arange(logits.shape[-1], device=logits.device) == pad_id
    return logits.float().masked_fill(padding, -1e4).log_softmax(dim=-1)  # finite, so that 0 * difference is 0


def fit_embedding(model: Any, tokenizer: Any) -> None:
    """Give a padding token added to the tokenizer its embedding row, and tell the model which id pads."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
