"""Tokenizers of a few words, and prompts in those words."""

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from apo_bench.types import Message, Prompt, prompt_id

WORDS = "how do i wash it rinse and dry no boil".split()
CHATML_WITH_DEFAULT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|start|> system default words <|end|> {% endif %}"
    "<|start|> {{ m['role'] }} {{ m['content'] }} <|end|> {% endfor %}{% if add_generation_prompt %}<|start|> assistant{% endif %}"
)


def prompt(*turns: str, axis: str = "helpful") -> Prompt:
    """User and assistant turns in alternation."""
    messages = tuple(Message("assistant" if place % 2 else "user", text) for place, text in enumerate(turns))
    return Prompt(prompt_id(axis, messages), messages, axis, turns[0])


def chatml_tokenizer() -> Any:
    """pad == eos, a template with a default system message."""
    special = ["<|end|>", "<|start|>", "<unk>"]
    names = ["system", "user", "assistant", "default", "words", "helpful", "harmless"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*special, *names, *WORDS])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", unk_token="<unk>", additional_special_tokens=["<|start|>"],
        chat_template=CHATML_WITH_DEFAULT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def bert_tokenizer() -> Any:
    """No template, [CLS] ... [SEP] around every text."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ":", "human", "assistant", "helpful", "harmless", *WORDS, "##ing"]
    backend = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.post_processor = processors.BertProcessing(("[SEP]", pieces.index("[SEP]")), ("[CLS]", pieces.index("[CLS]")))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )  # fmt: skip


def turn_tokenizer() -> Any:
    """No chat template; a next human turn is one token."""
    tokens = ["<end>", "?", "\n\nHuman:", "\n\nAssistant:", " hi", " ho", "abcdef"]  # transformers tries stop strings after the last
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n\n\\w+:| h[io]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="?", pad_token="<end>")
