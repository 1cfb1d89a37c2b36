"""Token ids as text: what goes into a trainer from elsewhere comes out of its tokenizer."""

import torch
from transformers import PreTrainedTokenizerBase

from apo_bench.models.token_text import UNREAD, TokenText, to_ids, to_text

IDS = [0, 1, 5, 6143, 6144, 8191, 262_143, 1_000_000]  # of which 6144 and beyond pass the end of Unicode's first plane or of its second


def tokenizer() -> TokenText:
    return TokenText(10, pad_id=9, end_id=2)


def test_ids_come_back_from_a_file() -> None:
    assert to_ids(to_text(IDS).encode("utf-8").decode("utf-8")) == IDS


def test_texts_that_are_joined_are_ids_that_are_joined() -> None:
    assert to_ids(to_text([1, 2]) + to_text([3])) == [1, 2, 3]


def test_an_end_that_is_added_to_a_cut_response_is_not_read() -> None:
    texts = tokenizer()
    assert texts(to_text([1, 3]) + UNREAD + texts.eos_token)["input_ids"] == [1, 3]
    assert texts(to_text([1, 3]) + texts.eos_token)["input_ids"] == [1, 3, 2]


def test_it_is_a_tokenizer_whose_special_tokens_have_their_ids() -> None:
    texts = tokenizer()
    assert isinstance(texts, PreTrainedTokenizerBase)
    assert (texts.pad_token_id, texts.eos_token_id, texts.bos_token_id, len(texts)) == (9, 2, None, 10)
    assert texts.eos_token in texts.get_vocab()


def test_batches_are_padded_on_the_left_and_cut_there() -> None:
    batch = tokenizer()([to_text([1, 2, 3]), to_text([4])], padding=True, truncation=True, max_length=2, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[2, 3], [9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]


def test_decoding_leaves_nothing_out_but_padding() -> None:
    rows = torch.tensor([[4, 2, 9], [9, 5, 6]])
    assert [to_ids(text) for text in tokenizer().batch_decode(rows, skip_special_tokens=True)] == [[4, 2], [5, 6]]
    assert to_ids(tokenizer().decode(rows[0])) == [4, 2]
