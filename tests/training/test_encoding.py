"""Encoding: token ids and masks by hand, and log-probabilities against passes over single responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_tokenizers import prompt
from torch import Tensor
from transformers import AutoTokenizer

from apo_bench.errors import InputError
from apo_bench.losses import DPOLoss, RRHFLoss, SFTLoss, View, WPOLoss, token_logps
from apo_bench.losses.policy_loss import Reads
from apo_bench.models import policy as policies
from apo_bench.models.tokenize import ChatFormat
from apo_bench.training import encoding
from apo_bench.types import Demonstration, Group, Pair, UnpairedExample


@dataclass(frozen=True)
class ReadsLabels:
    """Likelihood of desirable responses, and its opposite for the others."""

    reads: ClassVar[Reads] = "unpaired"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        return torch.where(view.labels, -1.0, 1.0) * view.response_logps.squeeze(1)


def test_training_items_by_hand(tiny_policy: Any) -> None:
    """Ids: <user> 3, <assistant> 4, <eos> 1, and the words from 5. A pair weighs 1, a demonstration its response's tokens."""
    folder, spec = tiny_policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [Demonstration(prompt("how do"), "i wash"), Demonstration(prompt("how"), "it it it it it it it it")]
    items = encoding.encode_items(tokenizer, data, SFTLoss(), spec)
    assert items == [
        {"sides": [([3, 5, 6, 4, 7, 8, 1], [0, 0, 0, 0, 1, 1, 1])], "size": 3, "length": 7},
        {"sides": [([3, 5, 4] + [9] * 8, [0] * 3 + [1] * 8)], "size": 8, "length": 11},  # cut at 8, without an end
    ]
    batch = encoding.collate(items, tokenizer.pad_token_id)
    assert batch["input_ids"].tolist() == [[[3, 5, 6, 4, 7, 8, 1] + [0] * 4, [3, 5, 4] + [9] * 8]]
    assert batch["attention_mask"].tolist() == [[[1] * 7 + [0] * 4, [1] * 11]]
    assert batch["response_mask"].tolist() == [[[0] * 4 + [1] * 3 + [0] * 4, [0] * 3 + [1] * 8]]
    [pair] = encoding.encode_items(tokenizer, [Pair(prompt("how"), "do", "i wash")], DPOLoss(0.1), spec)
    assert pair == {"sides": [([3, 5, 4, 6, 1], [0, 0, 0, 1, 1]), ([3, 5, 4, 7, 8, 1], [0, 0, 0, 1, 1, 1])], "size": 1, "length": 11}


def test_sampled_responses_are_trained_on_as_their_ids(tiny_policy: Any) -> None:
    """By prompt and text. Sampled: "do" as other ids, cut at the length limit and so without an end; and a long one, cut at 8.

    All else came as a text: the same words after another prompt, and what was never sampled.
    """
    folder, spec = tiny_policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    how, no = prompt("how"), prompt("no")
    token_ids = {how.id: {"do": (2, 6), "it it": (9,) * 9}}
    data = [Pair(how, "do", "i wash"), Pair(no, "do", "it it"), Pair(how, "it it", "do")]
    items = encoding.encode_items(tokenizer, data, DPOLoss(0.1), spec, token_ids)
    responses = [[[token for token, is_response in zip(*side, strict=True) if is_response] for side in item["sides"]] for item in items]
    assert responses == [[[2, 6], [7, 8, 1]], [[6, 1], [9, 9, 1]], [[9] * 8, [2, 6]]]
    sizes = [item["size"] for item in encoding.encode_items(tokenizer, [Demonstration(how, "do")], SFTLoss(), spec, token_ids)]
    assert sizes == [2]


def test_unpaired_items_by_hand(tiny_policy: Any) -> None:
    """One side each and a label; an item weighs 1."""
    folder, spec = tiny_policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [UnpairedExample(prompt("how"), "do", True), UnpairedExample(prompt("do"), "i wash", False)]
    items = encoding.encode_items(tokenizer, data, ReadsLabels(), spec)
    assert items[0] == {"sides": [([3, 5, 4, 6, 1], [0, 0, 0, 1, 1])], "size": 1, "length": 5, "labels": True}
    batch = encoding.collate(items, tokenizer.pad_token_id)
    assert batch["input_ids"].tolist() == [[[3, 5, 4, 6, 1, 0], [3, 6, 4, 7, 8, 1]]]
    assert batch["labels"].tolist() == [True, False]


def test_a_mismatched_response_is_a_second_side(tiny_policy: Any) -> None:
    """The item of above, and another's response behind its own prompt."""
    folder, spec = tiny_policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    [item] = encoding.encode_items(tokenizer, [UnpairedExample(prompt("how"), "do", True, "i wash")], ReadsLabels(), spec)
    assert item["sides"] == [([3, 5, 4, 6, 1], [0, 0, 0, 1, 1]), ([3, 5, 4, 7, 8, 1], [0, 0, 0, 1, 1, 1])]


def test_what_a_loss_also_reads_is_computed_from_the_logits(tiny_policy: Any) -> None:
    """The log-collision by the model's own softmax, of the position before each response token; no gradient, and 0 off the response."""
    model, tokenizer = policies.load_policy(tiny_policy[0])
    pairs = [Pair(prompt("how do i"), "do", "i wash it and"), Pair(prompt("dry " * 14), "no no no", "")]
    batch = encoding.collate(encoding.encode_items(tokenizer, pairs, WPOLoss(), tiny_policy[1]), tokenizer.pad_token_id)
    view = encoding.view_of(model, batch, also=("log_collision",))
    ids, attention = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask"))
    squares = model(input_ids=ids, attention_mask=attention).logits.softmax(dim=-1).square().sum(dim=-1).log()
    expected = torch.nn.functional.pad(squares[:, :-1], (1, 0)).view(batch["input_ids"].shape).transpose(0, 1) * view.mask
    torch.testing.assert_close(view.log_collision, expected, atol=1e-5, rtol=0)
    assert not torch.autograd.grad(view.log_collision.sum(), list(model.parameters()), allow_unused=True)[0].any()
    torch.testing.assert_close(view.logps, encoding.view_of(model, batch).logps)
    with pytest.raises(InputError, match="log_collision"):
        _ = encoding.view_of(model, batch).log_collision


def test_the_reference_stands_beside_each_token(tiny_policy: Any) -> None:
    """Under the policy itself every log-ratio is 0, and a response's log-probability is the reference's."""
    folder, spec = tiny_policy
    model, tokenizer = policies.load_policy(folder)
    pairs = [Pair(prompt("how do i"), "do", "i wash it and"), Pair(prompt("dry"), "no no no", "")]
    items = encoding.encode_items(tokenizer, pairs, DPOLoss(0.1), spec)
    all_logps = encoding.response_logps(model, items, tokenizer.pad_token_id, batch_size=1)
    batch = encoding.collate([{**item, "reference_logps": logps} for item, logps in zip(items, all_logps, strict=True)], 0)
    with torch.no_grad():
        view = encoding.view_of(model, batch)
    assert view.lengths.tolist() == [[2, 5], [4, 1]]
    torch.testing.assert_close(view.reference_logps, view.logps * view.mask, atol=1e-5, rtol=0)
    assert view.reference_response_logps.max() < -0.1


def test_rows_of_unlike_length_are_computed_apart(tiny_policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 1 and 50 words, in passes of two widths: terms and gradients are those of one pass over the padded batch."""
    model, tokenizer = policies.load_policy(tiny_policy[0])
    spec = tiny_policy[1].model_copy(update={"max_prompt_tokens": 64})
    data = [Group(prompt(text), ("no", "dry it and dry it"), (0.0, 1.0)) for text in ("how do " * 25, "how", "wash it " * 25)]
    batch = encoding.collate(encoding.encode_items(tokenizer, data, RRHFLoss(), spec), tokenizer.pad_token_id)
    widths: list[int] = []
    model.register_forward_hook(lambda module, args, options, output: widths.append(options["input_ids"].shape[1]), with_kwargs=True)

    def terms_and_gradients() -> list[Tensor]:
        model.zero_grad()
        terms = encoding.loss_terms(model, batch, RRHFLoss())
        terms.sum().backward()
        return [terms.detach(), *(weight.grad.clone() for weight in model.parameters())]

    apart = terms_and_gradients()
    monkeypatch.setattr("apo_bench.models.padding.like_lengths", lambda lengths: [slice(0, len(lengths))])
    torch.testing.assert_close(apart, terms_and_gradients(), atol=1e-5, rtol=1e-5)
    assert widths == [9, 58, 58]


def logp_alone(model: Any, tokenizer: Any, question: str, answer: str) -> tuple[float, int]:
    """Of one answer in a pass of its own, without padding: log-probability and tokens, the end among them."""
    chat = ChatFormat(tokenizer)
    start, end = chat.encode_prompt(prompt(question), 16).ids, chat.encode_response(prompt(question), answer, 8)
    ids = torch.tensor([start + end])
    with torch.no_grad():
        return token_logps(model(ids).logits, ids)[0, len(start) :].sum().item(), len(end)


def test_group_items_by_hand(tiny_policy: Any) -> None:
    """As a pair's sides, for as many as there are; a group weighs 1. In a batch: all first answers, all second ones, all third."""
    folder, spec = tiny_policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    groups = [Group(prompt("how"), ("do", "i wash", ""), (0.5, -1.0, 0.5)), Group(prompt("do"), ("i", "how", "it"), (1.0, 2.0, 3.0))]
    items = encoding.encode_items(tokenizer, groups, RRHFLoss(), spec)
    mask = [0, 0, 0, 1, 1]
    assert items[0] == {
        "sides": [([3, 5, 4, 6, 1], mask), ([3, 5, 4, 7, 8, 1], [*mask, 1]), ([3, 5, 4, 1], mask[:-1])],
        "size": 1, "length": 15, "scores": (0.5, -1.0, 0.5),
    }  # fmt: skip
    batch = encoding.collate(items, tokenizer.pad_token_id)
    assert batch["input_ids"][:, :, 1].tolist() == [[5, 6]] * 3
    assert batch["input_ids"][:, :, 3].tolist() == [[6, 7], [7, 5], [1, 9]]
    assert batch["response_mask"].sum(dim=2).tolist() == [[2, 2], [3, 2], [1, 2]]
    assert batch["scores"].tolist() == [[0.5, -1.0, 0.5], [1.0, 2.0, 3.0]]


GROUPS = [
    Group(prompt("how do i wash"), ("rinse and dry", "no", "boil it", "no no no no no no"), (2.0, 0.0, 1.0, 2.0)),
    Group(prompt("dry"), ("it", "rinse rinse rinse", "", "wash it and dry it and rinse"), (0.0, 1.0, 0.0, -1.0)),
    Group(prompt("i"), ("no", "how do", "dry dry", "boil"), (-1.0, 3.0, 2.0, 1.0)),
]


def rrhf_terms(tiny_policy: Any, groups: Sequence[Group], padding: int = 0) -> list[float]:
    folder, spec = tiny_policy
    model, tokenizer = policies.load_policy(folder)
    batch = encoding.collate(encoding.encode_items(tokenizer, groups, RRHFLoss(2.0), spec), tokenizer.pad_token_id)
    for name, fill in (("input_ids", tokenizer.pad_token_id), ("attention_mask", 0), ("response_mask", 0)):
        batch[name] = torch.nn.functional.pad(batch[name], (0, padding), value=fill)
    with torch.no_grad():
        return encoding.loss_terms(model.eval(), batch, RRHFLoss(2.0)).tolist()


def test_rrhf_terms_against_single_passes(tiny_policy: Any) -> None:
    """Each answer alone, without padding, and the loss summed over pairs of answers in python. The ranking part is not idle."""
    model, tokenizer = policies.load_policy(tiny_policy[0])
    rankings = []
    for group, term in zip(GROUPS, rrhf_terms(tiny_policy, GROUPS), strict=True):
        alone = [logp_alone(model, tokenizer, group.prompt.messages[0].content, text) for text in group.responses]
        p = [logp / count for logp, count in alone]
        k = range(len(p))
        ranking = sum(p[i] - p[j] for i in k for j in k if group.scores[i] < group.scores[j] and p[i] > p[j])
        best = max(k, key=lambda place: group.scores[place])
        assert term == pytest.approx(2.0 * ranking - alone[best][0], abs=1e-4)
        rankings.append(ranking)
    assert max(rankings) > 0.05


def test_padding_changes_no_rrhf_term(tiny_policy: Any) -> None:
    """Lengths are the responses' own: alone, beside longer groups, and with 9 more columns of padding, a group costs the same."""
    together = rrhf_terms(tiny_policy, GROUPS)
    assert [rrhf_terms(tiny_policy, [group])[0] for group in GROUPS] == pytest.approx(together, abs=1e-4)
    assert rrhf_terms(tiny_policy, GROUPS, padding=9) == pytest.approx(together, abs=1e-4)


def test_reference_log_probabilities_against_single_passes(tiny_policy: Any) -> None:
    """Each side alone, without padding; pairs in no order of length, batches of 2."""
    folder, spec = tiny_policy
    model, tokenizer = policies.load_policy(folder)
    texts = [("how do i wash", "no", "boil it and"), ("dry", "rinse rinse rinse rinse", ""), ("i", "it", "do it")]
    items = encoding.encode_items(tokenizer, [Pair(prompt(p), c, r) for p, c, r in texts], DPOLoss(0.1), spec)
    all_logps = encoding.response_logps(model, items, tokenizer.pad_token_id, batch_size=2)
    for item, logps, (question, *answers) in zip(items, all_logps, texts, strict=True):
        assert [len(side) for side in logps] == [len(ids) for ids, _ in item["sides"]]
        expected = [logp_alone(model, tokenizer, question, answer)[0] for answer in answers]
        assert [side.sum().item() for side in logps] == pytest.approx(expected, abs=1e-4)
