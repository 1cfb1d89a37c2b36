"""Conversations to token ids, for policies and for reward models."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from apo_bench.errors import InputError
from apo_bench.types import Prompt

PAD = "<|apo_pad|>"
HUMAN_TURN = "\n\nHuman:"
# A word-level tokenizer's own template; it has no place for a system message.
WORD_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} "
    "{% elif m['role'] == 'assistant' %}<assistant> {{ m['content'] }} <eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """Token ids, and whether something was cut off their left."""

    ids: list[int]
    truncated: bool = False


def word_tokenizer(vocabulary: Sequence[str]) -> Any:
    """A word-level tokenizer with a chat template, as an ordinary transformers tokenizer that any tool loads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
    words = {word: number for number, word in enumerate([*special, *dict.fromkeys(vocabulary)])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=WORD_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: str | Path, trust_remote_code: bool = False) -> Any:
    """A tokenizer whose padding token is its own, never the end-of-sequence token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


def encode_prompt(tokenizer: Any, prompt: Prompt, system_prompt: str | None, max_tokens: int) -> Encoded:
    """The ids a policy continues. A system prompt, "" too, keeps a template's default out; None leaves it to the template."""
    if tokenizer.chat_template:
        text = _chat(tokenizer, prompt, system_prompt, add_generation_prompt=True)
    else:
        text = transcript(prompt) + "\n\nAssistant:"
    return _left_truncated(tokenizer(text, add_special_tokens=False)["input_ids"], max_tokens)


def encode_response(tokenizer: Any, text: str, max_tokens: int, token_ids: Sequence[int] | None = None) -> list[int]:
    """A response's ids with the end-of-sequence token, or the ids it was sampled as; one too long is cut on the right and has no end."""
    if token_ids is not None:
        return list(token_ids)[:max_tokens]
    if not tokenizer.chat_template:
        text = " " + text
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:max_tokens]


def encode_scored(tokenizer: Any, prompt: Prompt, response: str, axis_input: bool, max_tokens: int) -> Encoded:
    """The ids a reward model reads: the conversation with the response, and the axis's name first if it is an input.

    Raises InputError where the chat template would leave the axis out.
    """
    if tokenizer.chat_template:
        text, head = _chat(tokenizer, prompt, "", response), ""
        if axis_input:
            bare, text = text, _chat(tokenizer, prompt, prompt.axis, response)
            if text == bare:
                raise InputError("axis_input: the tokenizer's chat template has no place for a system message; use axis_heads")
            head = text[: text.index(prompt.axis) + len(prompt.axis)]
        ids, kept = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, head))
        return _left_truncated(ids, max_tokens, keep=len(kept))
    axis = f"{prompt.axis}: " if axis_input else ""
    text = f"{axis}{transcript(prompt)}\n\nAssistant: {response}"
    bare, whole = (tokenizer(text, add_special_tokens=special)["input_ids"] for special in (False, True))
    specials = len(whole) - len(bare)
    before = next(place for place in range(specials + 1) if whole[place : place + len(bare)] == bare)  # such as [CLS]
    kept = _left_truncated(bare, max_tokens - specials, keep=len(tokenizer(axis, add_special_tokens=False)["input_ids"]) if axis else 0)
    return Encoded(whole[:before] + kept.ids + whole[before + len(bare) :], kept.truncated)


def _chat(tokenizer: Any, prompt: Prompt, system: str | None, response: str | None = None, **options: Any) -> str:
    """The conversation in the template's form. A template that refuses system messages needs no empty one to silence it."""
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    if system is None:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    try:
        return tokenizer.apply_chat_template([{"role": "system", "content": system}, *messages], tokenize=False, **options)
    except TemplateError as error:
        if system:
            raise InputError(f"system message {system!r}: the tokenizer's chat template refuses it: {error}") from None
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def transcript(prompt: Prompt) -> str:
    """The conversation in the Human/Assistant form of Anthropic's HH data."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[message.role]}: {message.content}" for message in prompt.messages)


def pad(sequences: Sequence[Sequence[int]], value: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (B, T)."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    return ids, mask


def like_lengths(lengths: Sequence[int], most: int = sys.maxsize) -> list[slice]:
    """Slices of ascending lengths that make a batch, of `most` at most: the longest exceeds the shortest by a quarter or by 32 tokens."""
    starts, longest = [], -1
    for place, length in enumerate(lengths):
        if length > longest or place == starts[-1] + most:
            starts.append(place)
            longest = length + max(32, length // 4)
    return [slice(*ends) for ends in pairwise([*starts, len(lengths)])]


def in_like_lengths(attention: Tensor, compute: Callable[[Any, int], Tensor]) -> Tensor:
    """`compute(rows, width)` of all rows of a batch padded on the right: (B, ...) in the batch's order. `attention` is its mask (B, T).

    On a CPU rows of like length are computed at a time, to their own width: padding costs what tokens cost. Else all are at once: a GPU
    has room for padding, and processes that share weights need equally many passes.
    """
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    if attention.device.type != "cpu" or shared:
        return compute(slice(None), attention.shape[1])
    lengths, order = attention.sum(dim=-1).sort(stable=True)
    if len(parts := like_lengths(lengths.tolist())) == 1:
        return compute(slice(None), attention.shape[1])
    return torch.cat([compute(order[part], int(lengths[part.stop - 1])) for part in parts])[order.argsort()]


def _left_truncated(ids: list[int], max_tokens: int, keep: int = 0) -> Encoded:
    """Cut on the left, but keep the first `keep` ids."""
    if len(ids) <= max_tokens:
        return Encoded(ids)
    keep = min(keep, max_tokens)
    return Encoded(ids[:keep] + ids[len(ids) - (max_tokens - keep) :], truncated=True)
