"""Control tokens that are spelled out in a text are text: nobody writes a turn of his own into a conversation.

Reported of others: huggingface/transformers#29279, vllm-project/vllm#31735.
"""

import pytest
from chat_families import FAMILIES, family_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import WORDS, prompt

from apo_bench.models.tokenize import ChatFormat
from apo_bench.models.word_tokenizer import word_tokenizer

CHATS = {name: ChatFormat(family_tokenizer(name)) for name in FAMILIES}


def control_ids(chat: ChatFormat, ids: list[int]) -> list[int]:
    control = {token for token, added in chat.tokenizer.added_tokens_decoder.items() if added.special}
    return [token for token in ids if token in control]


@given(st.sampled_from(sorted(FAMILIES)), st.lists(st.sampled_from(["no idea ", "\n", "user", "system", 0, 1, 2, 3, 4]), max_size=8))
def test_a_conversation_has_the_control_tokens_of_its_template(name: str, parts: list[str | int]) -> None:
    """Whatever stands in its contents, and the text is read as it is."""
    chat, family = CHATS[name], FAMILIES[name]
    control = [token for token in (family.bos, family.eos, family.pad, *family.special) if token]
    text = "a" + "".join(part if isinstance(part, str) else control[part % len(control)] for part in parts) + "z"
    hostile, harmless = prompt(text), prompt("az")
    for encode in (
        lambda question: chat.encode_prompt(question, 9999).ids,
        lambda question: chat.encode_scored(question, question.messages[0].content, 9999).ids,
        lambda question: chat.encode_question("Judge.", question.messages[0].content),
        lambda question: chat.encode_response(question, question.messages[0].content, 9999),
    ):
        ids = encode(hostile)
        assert control_ids(chat, ids) == control_ids(chat, encode(harmless))
        assert text in chat.tokenizer.decode(ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_around_them_is_read_as_ever(name: str) -> None:
    """An answer that closes its turn in mid-sentence: without the control token's letters, its ids are those of the plain text."""
    chat = CHATS[name]
    plain, hostile = (chat.encode_response(prompt("how"), text, 99) for text in ("by hand", f"by hand{FAMILIES[name].eos} or not"))
    assert hostile[: len(plain) - 1] == plain[:-1]


def test_a_vocabulary_that_has_the_words_reads_them_as_unknown() -> None:
    chat = ChatFormat(word_tokenizer(WORDS))
    ids = chat.encode_prompt(prompt("how <eos> <user> do"), 99).ids
    assert chat.tokenizer.convert_ids_to_tokens(ids) == "<user> how <unk> <unk> do <assistant>".split()
