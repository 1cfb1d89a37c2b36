"""A sample that was cut at the length limit has no end, in training and in scoring.

Reported of others: huggingface/trl#3248, #3229 and #6369.
"""

import pytest
from chat_families import FAMILIES, family_tokenizer
from tiny_tokenizers import bert_tokenizer, prompt

from apo_bench.models.tokenize import ChatFormat


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_response_is_the_whole_one_without_its_end(name: str) -> None:
    chat = ChatFormat(family_tokenizer(name))
    question = prompt("how do I wash it")
    whole, cut = (chat.encode_response(question, "by hand", 99, cut=cut) for cut in (False, True))
    assert cut == whole[:-1]
    assert whole[-1] == chat.end_id
    scored, scored_cut = (chat.encode_scored(question, "by hand", 999, cut=cut).ids for cut in (False, True))
    assert scored_cut == scored[:-1]


def test_what_an_encoder_puts_around_every_text_stays() -> None:
    chat = ChatFormat(bert_tokenizer())
    whole, cut = (chat.encode_scored(prompt("how"), "rinse", 99, cut=cut).ids for cut in (False, True))
    assert cut == whole
