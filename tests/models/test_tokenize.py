"""Conversations to token ids: round trips, system prompts, truncation, specials."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import WORDS, bert_tokenizer, chatml_tokenizer, prompt
from transformers import AutoTokenizer

from apo_bench.errors import InputError
from apo_bench.models.tokenize import PAD, ChatFormat, load_tokenizer, transcript
from apo_bench.models.word_tokenizer import word_tokenizer

# Like SmolLM2's: a conversation that opens without a system message is given one.


def test_word_tokenizer_round_trip_and_template() -> None:
    """Five specials come first, so "how" is 5; a conversation is <user> ... <assistant> ... <eos> <user> ... <assistant>."""
    tokenizer = word_tokenizer(WORDS)
    assert tokenizer("how it")["input_ids"] == [5, 9]
    assert tokenizer.decode(tokenizer("rinse and dry")["input_ids"]) == "rinse and dry"
    assert tokenizer.convert_ids_to_tokens(tokenizer("how rabbit")["input_ids"]) == ["how", "<unk>"]
    ids = ChatFormat(tokenizer).encode_prompt(prompt("how", "rinse", "and it"), 99).ids
    assert tokenizer.convert_ids_to_tokens(ids) == "<user> how <assistant> rinse <eos> <user> and it <assistant>".split()
    answer = ChatFormat(tokenizer).encode_response(prompt("how"), "dry it", 99)
    assert tokenizer.convert_ids_to_tokens(answer) == ["dry", "it", "<eos>"]
    scored = ChatFormat(tokenizer).encode_scored(prompt("how", "rinse", "and it"), "dry it", 99)
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
        return " ".join(tokenizer.convert_ids_to_tokens(ChatFormat(tokenizer, system).encode_prompt(prompt("how"), 99).ids))

    assert tokens("") == "<|start|> system <|end|> <|start|> user how <|end|> <|start|> assistant"
    assert tokens("boil no") == "<|start|> system boil no <|end|> <|start|> user how <|end|> <|start|> assistant"
    assert tokens(None) == "<|start|> system default words <|end|> <|start|> user how <|end|> <|start|> assistant"


def test_prompts_without_a_template_are_transcripts() -> None:
    tokenizer = bert_tokenizer()
    conversation = prompt("how", "rinse", "dry")
    assert transcript(conversation) == "\n\nHuman: how\n\nAssistant: rinse\n\nHuman: dry"
    ids = ChatFormat(tokenizer).encode_prompt(conversation, 99).ids
    assert tokenizer.convert_ids_to_tokens(ids) == "[CLS] human : how assistant : rinse human : dry assistant :".split()


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), room=st.integers(2, 16))
def test_a_long_turn_loses_its_left_and_keeps_its_header(words: list[str], room: int) -> None:
    """<user>, the words, <assistant>: the last words that fit between the two, and `truncated` says whether one is missing."""
    chat = ChatFormat(word_tokenizer(WORDS))
    cut = chat.encode_prompt(prompt(" ".join(words)), room)
    kept = words[max(0, len(words) - (room - 2)) :]
    assert chat.tokenizer.convert_ids_to_tokens(cut.ids) == ["<user>", *kept, "<assistant>"]
    assert cut.truncated == (len(kept) < len(words))


def test_a_prompt_without_room_for_its_headers_is_refused() -> None:
    with pytest.raises(InputError, match="max_prompt_tokens: 1 has no room for the 2 tokens"):
        ChatFormat(word_tokenizer(WORDS)).encode_prompt(prompt("how do i"), 1)


def test_whole_turns_go_first_from_the_oldest() -> None:
    """<user> how <assistant> rinse <eos> <user> do it <assistant> dry <eos> <user> boil no <assistant> is 15 tokens, without its first
    two turns 10, and the last alone 4."""
    tokenizer = word_tokenizer(WORDS)
    conversation = prompt("how", "rinse", "do it", "dry", "boil no")

    def tokens(room: int) -> tuple[str, bool]:
        encoded = ChatFormat(tokenizer).encode_prompt(conversation, room)
        return " ".join(tokenizer.convert_ids_to_tokens(encoded.ids)), encoded.truncated

    last_two = "<user> do it <assistant> dry <eos> <user> boil no <assistant>"
    whole = f"<user> how <assistant> rinse <eos> {last_two}"
    assert tokens(15) == (whole, False)
    assert tokens(14) == tokens(10) == (last_two, True)
    assert tokens(9) == tokens(4) == ("<user> boil no <assistant>", True)
    assert tokens(3) == ("<user> no <assistant>", True)


def test_a_response_cut_on_the_right_has_no_end() -> None:
    tokenizer = word_tokenizer(WORDS)
    text = "rinse and dry"

    def answer(text: str, room: int, cut: bool = False) -> list[int]:
        return ChatFormat(tokenizer).encode_response(prompt("how"), text, room, cut=cut)

    assert tokenizer.convert_ids_to_tokens(answer(text, 4, cut=True)) == ["rinse", "and", "dry"]
    assert answer(text, 4)[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(answer(text, 3)) == ["rinse", "and", "dry"]
    assert tokenizer.convert_ids_to_tokens(answer(text, 2)) == ["rinse", "and"]
    assert answer("", 4) == [tokenizer.eos_token_id]


def test_an_encoder_reads_specials_axis_and_the_end() -> None:
    """[CLS] helpful : human : how assistant : rinse [SEP] is 10 tokens; then the question goes, then the answer, never a header."""
    tokenizer = bert_tokenizer()

    def tokens(room: int, axis_input: bool) -> tuple[str, bool]:
        encoded = ChatFormat(tokenizer).encode_scored(prompt("how"), "rinse", room, axis_input=axis_input)
        return " ".join(tokenizer.convert_ids_to_tokens(encoded.ids)), encoded.truncated

    assert tokens(10, True) == ("[CLS] helpful : human : how assistant : rinse [SEP]", False)
    assert tokens(9, True) == ("[CLS] helpful : human : assistant : rinse [SEP]", True)
    assert tokens(8, True) == ("[CLS] helpful : human : assistant : [SEP]", True)
    assert tokens(8, False) == ("[CLS] human : how assistant : rinse [SEP]", False)
    assert tokens(7, False) == ("[CLS] human : assistant : rinse [SEP]", True)
    with pytest.raises(InputError, match="max_tokens: 5 has no room for the 6 tokens"):
        tokens(5, False)


def test_an_encoders_specials_survive_saving(tmp_path: Path) -> None:
    bert_tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == "[PAD]"  # it has one of its own already
    read = [ChatFormat(each).encode_scored(prompt("how do i wash it"), "boil", 10, axis_input=True) for each in (loaded, bert_tokenizer())]
    assert read[0] == read[1]


def test_a_templates_axis_comes_first_and_survives_truncation() -> None:
    tokenizer = chatml_tokenizer()

    def tokens(room: int, axis_input: bool = True) -> str:
        encoded = ChatFormat(tokenizer).encode_scored(prompt("how do i wash it", axis="harmless"), "boil it", room, axis_input=axis_input)
        assert encoded.truncated == (room < 17)
        return " ".join(tokenizer.convert_ids_to_tokens(encoded.ids))

    whole = "<|start|> system harmless <|end|> <|start|> user how do i wash it <|end|> <|start|> assistant boil it <|end|>"
    assert tokens(99) == whole
    assert tokens(14) == "<|start|> system harmless <|end|> <|start|> user wash it <|end|> <|start|> assistant boil it <|end|>"
    assert tokens(11) == "<|start|> system harmless <|end|> <|start|> user <|end|> <|start|> assistant it <|end|>"
    assert tokens(11, axis_input=False) == "<|start|> system <|end|> <|start|> user <|end|> <|start|> assistant boil it <|end|>"


def test_an_axis_that_a_template_leaves_out_is_refused() -> None:
    """The word template has no system message, so the axis would be dropped without a word."""
    with pytest.raises(InputError, match="axis_input"):
        ChatFormat(word_tokenizer(WORDS)).encode_scored(prompt("how"), "rinse", 99, axis_input=True)


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
