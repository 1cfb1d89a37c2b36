"""The first token of a sequence is there once, from the template or from the tokenizer, and stays where the left is cut.

Reported of others: EleutherAI/lm-evaluation-harness#1465, #3295 and #1455.
"""

import pytest
from chat_families import FAMILIES, family_tokenizer
from tiny_tokenizers import prompt

from apo_bench.models.tokenize import ChatFormat

WITH_BOS = [name for name, family in FAMILIES.items() if family.bos]


@pytest.mark.parametrize("name", WITH_BOS)
@pytest.mark.parametrize("room", [999, 60])
def test_it_is_there_once(name: str, room: int) -> None:
    """For policies, reward models and local judges, also where a conversation of 200 words is cut to 60 tokens."""
    chat = ChatFormat(family_tokenizer(name))
    bos = chat.tokenizer.bos_token_id
    question = prompt("how do I wash it " * 8, "by hand " * 8, "and dry it " * 30)
    read = [chat.encode_prompt(question, room), chat.encode_scored(question, "well", room)]
    for encoded in read:
        assert (encoded.ids[0], encoded.ids.count(bos)) == (bos, 1)
        assert encoded.truncated == (room == 60)
        assert len(encoded.ids) <= room
    question = chat.encode_question("Judge.", "Which?")
    assert (question[0], question.count(bos)) == (bos, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spelled_out_first_token_is_text(name: str) -> None:
    chat = ChatFormat(family_tokenizer(name))
    bos = FAMILIES[name].bos
    ids = chat.encode_prompt(prompt(f"{bos}how"), 999).ids
    assert ids.count(chat.tokenizer.bos_token_id) == (1 if bos else 0)
