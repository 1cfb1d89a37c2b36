"""Token ids as text: a tokenizer whose every character is a token, for trainers that insist on tokenizing texts themselves.

What goes in comes out: a text of such characters has the ids that it was written from, whatever it is joined to, so that a trainer from
elsewhere reads exactly the tokens that `ChatFormat` gives.
"""

from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

FIRST = 0xE000  # a token's character is that many places after its id: beyond it all of Unicode may stand in a file
UNREAD = chr(FIRST - 0x1000)  # nothing after it in a text is read, such as an end that a trainer adds to a response that was cut


def to_text(ids: Sequence[int]) -> str:
    """Token ids as a text. Raises ValueError for an id that is too large, of a vocabulary beyond a million."""
    return "".join([chr(FIRST + token) for token in ids])


def to_ids(text: str) -> list[int]:
    """The ids that a text was written from."""
    return [ord(character) - FIRST for character in text.partition(UNREAD)[0]]


class TokenText(PreTrainedTokenizerBase):
    """A tokenizer of such texts. It adds nothing, cuts on the left if told a length, and decodes to such texts, padding apart.

    `end_id`: what trainers take for the end of a sequence.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (transformers' own name)

    def __init__(self, vocabulary: int, pad_id: int, end_id: int) -> None:
        super().__init__(pad_token=to_text([pad_id]), eos_token=to_text([end_id]), padding_side="left", truncation_side="left")
        self.vocabulary = vocabulary

    def __call__(self, text: str | Sequence[str] = "", *_: Any, padding: Any = False, **options: Any) -> BatchEncoding:
        """Ids and attention masks of a text, or of several."""
        limit = options.get("max_length") if options.get("truncation") else None
        rows = [to_ids(each)[-limit if limit else None :] for each in ([text] if isinstance(text, str) else text)]
        encoded: dict[str, Any] = {"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]}
        if isinstance(text, str) and not options.get("return_tensors"):
            encoded = {name: several[0] for name, several in encoded.items()}
        if padding or options.get("return_tensors"):
            return self.pad(encoded, padding=padding, return_tensors=options.get("return_tensors"))
        return BatchEncoding(encoded)

    def decode(self, token_ids: Any, *_: Any, **__: Any) -> Any:
        """Ids, or several rows of them, as texts, without padding."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        if len(ids) and not isinstance(ids[0], int):
            return [self.decode(row) for row in ids]
        return to_text([token for token in ids if token != self.pad_token_id])

    def batch_decode(self, sequences: Any, *_: Any, **__: Any) -> list[str]:
        return [self.decode(row) for row in sequences]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return to_ids(tokens)[0] if isinstance(tokens, str) else [to_ids(token)[0] for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, *_: Any, **__: Any) -> Any:
        return to_text([ids]) if isinstance(ids, int) else [to_text([token]) for token in ids]

    def get_vocab(self) -> dict[str, int]:
        return {to_text([token]): token for token in range(self.vocabulary)}

    def __repr__(self) -> str:
        return f"TokenText({self.vocabulary}, {self.pad_token_id}, {self.eos_token_id})"

    def __len__(self) -> int:
        return self.vocabulary

    @property
    def vocab_size(self) -> int:
        return self.vocabulary
