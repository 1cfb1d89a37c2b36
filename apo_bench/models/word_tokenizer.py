"""The tokenizer of policies that are built anew: a word a token, over a task's vocabulary."""

from collections.abc import Sequence
from typing import Any

from apo_bench.types import SPECIAL_WORDS

# A word-level tokenizer's own template; it has no place for a system message.
WORD_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} "
    "{% elif m['role'] == 'assistant' %}<assistant> {{ m['content'] }} <eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_tokenizer(vocabulary: Sequence[str]) -> Any:
    """A word-level tokenizer with a chat template, as an ordinary transformers tokenizer that any tool loads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate([*SPECIAL_WORDS, *dict.fromkeys(vocabulary)])}
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
