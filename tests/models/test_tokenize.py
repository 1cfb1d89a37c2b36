"""Conversations to token ids: round trips, system prompts, truncation, specials."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import WORDS, bert_tokenizer, chatml_tokenizer, prompt
from transformers import AutoTokenizer

from apo_bench.errors import InputError
from apo_bench.models.tokenize import (
    PAD,
    encode_prompt,
    encode_response,
    encode_scored,
    in_like_lengths,
    like_lengths,
    load_tokenizer,
    pad,
    transcript,
    word_tokenizer,
)

# Like SmolLM2's: a conversation that opens without a system message is given one.


def test_word_tokenizer_round_trip_and_template() -> None:
    """Five specials come first, so "how" is 5; a conversation is <user> ... <assistant> ... <eos> <user> ... <assistant>."""
    tokenizer = word_tokenizer(WORDS)
    assert tokenizer("how it")["input_ids"] == [5, 9]
    assert tokenizer.decode(tokenizer("rinse and dry")["input_ids"]) == "rinse and dry"
    assert tokenizer.convert_ids_to_tokens(tokenizer("how rabbit")["input_ids"]) == ["how", "<unk>"]
    ids = encode_prompt(tokenizer, prompt("how", "rinse", "and it"), "", 99).ids
    assert tokenizer.convert_ids_to_tokens(ids) == "<user> how <assistant> rinse <eos> <user> and it <assistant>".split()
    answer = encode_response(tokenizer, "dry it", 99)
    assert tokenizer.convert_ids_to_tokens(answer) == ["dry", "it", "<eos>"]
    scored = encode_scored(tokenizer, prompt("how", "rinse", "and it"), "dry it", axis_input=False, max_tokens=99)
    assert scored.ids == ids + answer  # a reward model reads what a policy is trained on


def test_a_word_given_twice_counts_once() -> None:
    assert len(word_tokenizer(["how", "it", "how"])) == 5 + 2


def test_word_tokenizer_is_the_same_after_saving(tmp_path: Path) -> None:
    ours = word_tokenizer(WORDS)
    ours.save_pretrained(tmp_path)
    for theirs in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert theirs.get_vocab() == ours.get_vocab()
        assert theirs.chat_template == ours.chat_template
        assert (theirs.pad_token, theirs.eos_token, theirs.unk_token) == ("<pad>", "<eos>", "<unk>")
        text = "<user> how do i wash it <assistant> rinse , dry <eos>"
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]
        assert theirs.decode(ours(text)["input_ids"], skip_special_tokens=True) == "how do i wash it rinse dry"


def test_an_empty_system_prompt_keeps_a_templates_default_out() -> None:
    """An empty prompt is a system message without words; None gives none, and then the template puts its own first."""
    tokenizer = chatml_tokenizer()

    def tokens(system: str | None) -> str:
        return " ".join(tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, prompt("how"), system, 99).ids))

    assert tokens("") == "<|start|> system <|end|> <|start|> user how <|end|> <|start|> assistant"
    assert tokens("boil no") == "<|start|> system boil no <|end|> <|start|> user how <|end|> <|start|> assistant"
    assert tokens(None) == "<|start|> system default words <|end|> <|start|> user how <|end|> <|start|> assistant"


def test_prompts_without_a_template_are_transcripts() -> None:
    tokenizer = bert_tokenizer()
    conversation = prompt("how", "rinse", "dry")
    assert transcript(conversation) == "\n\nHuman: how\n\nAssistant: rinse\n\nHuman: dry"
    ids = encode_prompt(tokenizer, conversation, "", 99).ids
    assert tokenizer.convert_ids_to_tokens(ids) == "human : how assistant : rinse human : dry assistant :".split()


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), room=st.integers(1, 16))
def test_long_prompts_lose_their_left(words: list[str], room: int) -> None:
    """<user>, the words, <assistant>: what is kept is the end, and `truncated` says whether something is missing."""
    tokenizer = word_tokenizer(WORDS)
    whole = encode_prompt(tokenizer, prompt(" ".join(words)), "", 99)
    cut = encode_prompt(tokenizer, prompt(" ".join(words)), "", room)
    assert (len(whole.ids), whole.truncated) == (len(words) + 2, False)
    assert cut.ids == whole.ids[-room:]
    assert cut.truncated == (len(words) + 2 > room)


def test_a_response_cut_on_the_right_has_no_end() -> None:
    tokenizer = word_tokenizer(WORDS)
    text = "rinse and dry"
    assert encode_response(tokenizer, text, 4)[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(encode_response(tokenizer, text, 3)) == ["rinse", "and", "dry"]
    assert tokenizer.convert_ids_to_tokens(encode_response(tokenizer, text, 2)) == ["rinse", "and"]
    assert encode_response(tokenizer, "", 4) == [tokenizer.eos_token_id]


def test_an_encoder_reads_specials_axis_and_the_end() -> None:
    """[CLS] helpful : human : how assistant : rinse [SEP] is 10 tokens; at 8, the two after the axis's go."""
    tokenizer = bert_tokenizer()

    def tokens(room: int, axis_input: bool) -> tuple[str, bool]:
        encoded = encode_scored(tokenizer, prompt("how"), "rinse", axis_input, room)
        return " ".join(tokenizer.convert_ids_to_tokens(encoded.ids)), encoded.truncated

    assert tokens(10, True) == ("[CLS] helpful : human : how assistant : rinse [SEP]", False)
    assert tokens(8, True) == ("[CLS] helpful : how assistant : rinse [SEP]", True)
    assert tokens(5, True) == ("[CLS] helpful : rinse [SEP]", True)
    assert tokens(3, True) == ("[CLS] helpful [SEP]", True)  # never more than there is room for
    assert tokens(8, False) == ("[CLS] human : how assistant : rinse [SEP]", False)
    assert tokens(3, False) == ("[CLS] rinse [SEP]", True)


def test_an_encoders_specials_survive_saving(tmp_path: Path) -> None:
    bert_tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == "[PAD]"  # it has one of its own already
    question = prompt("how do i wash it")
    assert encode_scored(loaded, question, "boil", True, 7) == encode_scored(bert_tokenizer(), question, "boil", True, 7)


def test_a_templates_axis_comes_first_and_survives_truncation() -> None:
    tokenizer = chatml_tokenizer()

    def tokens(room: int, axis_input: bool = True) -> str:
        encoded = encode_scored(tokenizer, prompt("how do i wash it", axis="harmless"), "boil it", axis_input, room)
        assert encoded.truncated == (room < 17)
        return " ".join(tokenizer.convert_ids_to_tokens(encoded.ids))

    whole = "<|start|> system harmless <|end|> <|start|> user how do i wash it <|end|> <|start|> assistant boil it <|end|>"
    assert tokens(99) == whole
    assert tokens(8) == "<|start|> system harmless <|start|> assistant boil it <|end|>"
    assert tokens(5, axis_input=False) == "<|start|> assistant boil it <|end|>"


def test_an_axis_that_a_template_leaves_out_is_refused() -> None:
    """The word template has no system message, so the axis would be dropped without a word."""
    with pytest.raises(InputError, match="axis_input"):
        encode_scored(word_tokenizer(WORDS), prompt("how"), "rinse", axis_input=True, max_tokens=99)


def test_padding_is_never_the_end_token(tmp_path: Path) -> None:
    chatml_tokenizer().save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain.pad_token_id == plain.eos_token_id  # what the folder says
    ours = load_tokenizer(tmp_path)
    assert (ours.pad_token, ours.pad_token_id) == (PAD, len(plain))
    assert ours.eos_token == "<|end|>"
    assert ours("how it")["input_ids"] == plain("how it")["input_ids"]
    ours.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").pad_token_id == ours.pad_token_id  # and is not added twice


def test_padding_sides() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 9)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]])
    ids, mask = pad([[1, 2, 3], [4]], 9, side="left")
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [9, 9, 4]], [[1, 1, 1], [0, 0, 1]])


def test_like_lengths() -> None:
    """From 3 tokens up to 35, from 40 to 72, from 200 to 250; six of one length, four at most, are four and two."""
    lengths = [3, 10, 35, 40, 72, 200, 250, 251]
    assert [lengths[batch] for batch in like_lengths(lengths)] == [[3, 10, 35], [40, 72], [200, 250], [251]]
    assert like_lengths([5] * 6, most=4) == [slice(0, 4), slice(4, 6)]
    assert like_lengths([]) == []


def test_in_like_lengths_keeps_rows_in_order() -> None:
    """Rows of 50, 3, 60 and 5 tokens: those of 3 and 5 to a width of 5, those of 50 and 60 to 60. Rows of like length are one part."""

    def computed(lengths: list[int]) -> tuple[list[int], list[int]]:
        attention, widths = pad([[1] * length for length in lengths], 0)[1], []

        def tokens(rows: Any, width: int) -> torch.Tensor:
            widths.append(width)
            return attention[rows, :width].sum(dim=-1)

        return in_like_lengths(attention, tokens).tolist(), widths

    assert computed([50, 3, 60, 5]) == ([50, 3, 60, 5], [5, 60])
    assert computed([30, 3]) == ([30, 3], [30])
