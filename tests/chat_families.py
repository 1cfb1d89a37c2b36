"""Tiny models whose tokenizers and chat templates behave as those of real families do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = ["Tell me how I could wash a woollen jumper by hand, and dry it well? Use cold water. " * 4, "assistant user system model think"]
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What sets a family apart. `adds_bos`: its tokenizer puts the first token before every text. `plain`: added, but not special."""

    template: str | None
    eos: str
    bos: str | None = None
    pad: str | None = None
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    adds_bos: bool = True
    stripping: tuple[str, ...] = field(default=())  # special tokens that take the whitespace after them


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = (
    "{% for m in messages %}{{ '<|header|>' + m.role + '<|end_header|>\\n\\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|end_header|>\\n\\n' }}{% endif %}"
)
FAMILIES = {
    # writes the first token itself, although its tokenizer adds one too; trims contents
    "llama3": Family("{{ bos_token }}" + HEADERS, "<|eot|>", "<|begin|>", special=("<|header|>", "<|end_header|>")),
    # as llama3, under a line with the date
    "dated": Family(
        "{{ bos_token }}{{ '<|header|>system<|end_header|>\\n\\nToday: ' + strftime_now('%d %b %Y') + '<|eot|>' }}" + HEADERS,
        "<|eot|>", "<|begin|>", special=("<|header|>", "<|end_header|>"),
    ),
    # no system turn; a turn ends with a token that is not the tokenizer's end of a sequence
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{% for m in messages %}"
        "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}",
        "<eos>", "<bos>", "<pad>", ("<turn>", "<end_turn>"),
    ),
    # an end of turns, and after the last one the end of the sequence; its tokens take the whitespace after them
    "phi3": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|endoftext|>", special=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), adds_bos=False,
        stripping=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    ),
    # thinks: an empty thought stands before a last answer, and before the answer itself where thinking is off
    "qwen3": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{% if loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
        "<|im_end|>", pad="<|endoftext|>", special=("<|im_start|>",), plain=("<think>", "</think>"),
    ),
    # opens a thought in the generation prompt, and drops thoughts from answers
    "r1": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}",
        "</s>", "<s>", special=("<|User|>", "<|Assistant|>"),
    ),
    # knows users and assistants, and passes over anything else
    "silent": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "</s>", "<s>",
    ),
    "chatml": Family(CHATML, "<|im_end|>", pad="<pad>", special=("<|im_start|>",)),
    # no template
    "base": Family(None, "<|end|>", "<|begin|>"),
}  # fmt: skip


def family_tokenizer(name: str) -> Any:
    """A byte-level tokenizer with a family's control tokens and template."""
    family = FAMILIES[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [token for token in (family.bos, family.eos, family.pad) if token] + list(family.special)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, rstrip=True, special=True) for token in family.stripping])
    backend.add_tokens(list(family.plain))
    if family.bos and family.adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, backend.token_to_id(family.bos))]
        )
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=family.template, clean_up_tokenization_spaces=False,
        additional_special_tokens=list(family.special) or None, **{key: token for key, token in named.items() if token},
    )  # fmt: skip


def family_policy(name: str, folder: Path, seed: int = 0) -> Path:
    """A random policy of a family, in a folder."""
    tokenizer = family_tokenizer(name)
    torch.manual_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(tokenizer), **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
