"""Losses against numbers derived by hand, and DPO against TRL."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_views import even_view

from apo_bench.errors import InputError
from apo_bench.losses import APOLoss, DPOLoss, RankingLoss, RRHFLoss, SFTLoss, View, denominator_of, token_logps


def test_ranking_loss_is_minus_log_sigmoid():
    """-log sigmoid(0) = log 2; -log sigmoid(log 3) = log(1 + 1/3) = log(4/3); -log sigmoid(-log 3) = log(1 + 3) = log 4."""
    margin = torch.tensor([0.0, math.log(3), -math.log(3)])
    terms = RankingLoss()(margin, torch.tensor([False, True, False]))
    assert terms.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])


def test_apo_loss_weighs_golden_pairs_by_coefficient_over_samples():
    """apo_coeff 0.1 over 4 samples is 0.025 a pair; human pairs weigh 1: terms log 2, 0.025 log 2, 0.025 log 4."""
    terms = APOLoss(apo_coeff=0.1, samples_per_prompt=4)(torch.tensor([0.0, 0.0, -math.log(3)]), torch.tensor([False, True, True]))
    assert terms.tolist() == pytest.approx([math.log(2), 0.025 * math.log(2), 0.025 * math.log(4)])


def test_a_duel_may_cost_the_bare_difference():
    """Weight 0.025 as above: a human pair at margin 0 costs log 2 as ever; duels at 0, -log 3 and 2 cost 0, 0.025 log 3 and -0.05.

    The gradient of a duel is -0.025 whatever its margin: a critic is not satisfied by winning clearly.
    """
    margin = torch.tensor([0.0, 0.0, -math.log(3), 2.0], requires_grad=True)
    terms = APOLoss(0.1, 4, "difference")(margin, torch.tensor([False, True, True, True]))
    assert terms.tolist() == pytest.approx([math.log(2), 0, 0.025 * math.log(3), -0.05])
    terms.sum().backward()
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([-0.5, -0.025, -0.025, -0.025])


def test_dpo_loss_by_hand():
    """Log-ratios: chosen -1 - (-2) = 1, rejected -3 - (-2) = -1; beta 0.5 * 2 = 1; -log sigmoid(1) = log(1 + e^-1)."""
    view = View(torch.tensor([[[-1.0], [-3.0]]]), torch.ones(1, 2, 1), {"reference_logps": torch.tensor([[[-2.0], [-2.0]]])})
    assert DPOLoss(beta=0.5)(view).tolist() == pytest.approx([math.log(1 + math.exp(-1))])


def test_dpo_reads_response_tokens_only():
    """The case above with each response's log-probability over two tokens, beside a prompt token and padding that are masked."""
    logps = torch.tensor([[[-7.0, -0.25, -0.75, 99.0], [-7.0, -2.0, -1.0, 99.0]]])
    reference = torch.tensor([[[-5.0, -1.5, -0.5, 50.0], [-5.0, -1.0, -1.0, 50.0]]])
    view = View(logps, torch.tensor([[[0, 1, 1, 0], [0, 1, 1, 0]]]), {"reference_logps": reference})
    assert DPOLoss(beta=0.5)(view).tolist() == pytest.approx([math.log(1 + math.exp(-1))])


def test_token_logps_and_sft_by_hand():
    """Two equal logits give log 1/2, logits (log 3, 0) give log 3/4 and log 1/4. Tokens 0, 1, 0: position 1 is token 1 under logits
    (log 3, 0): log 1/4; position 2 is token 0 under (0, 0): log 1/2. With both in the response, SFT is log 4 + log 2 = log 8."""
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0], [5.0, 5.0]]])
    logps = token_logps(logits, torch.tensor([[0, 1, 0]]))
    assert logps[0].tolist() == pytest.approx([0.0, math.log(1 / 4), math.log(1 / 2)])
    for mask, expected in (([0, 1, 1], math.log(8)), ([0, 0, 1], math.log(2))):
        terms = SFTLoss()(View(logps[:, None], torch.tensor([[mask]])))
        assert terms.tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("scores", "expected", "gradient"),
    [
        ([0.0, 1.0, 1.0], 9.0, [1.0, -4 / 3, -1.0]),
        ([2.0, 1.0, 0.0], 2.0, [-1.0, 0.0, 0.0]),
        ([5.0, 5.0, 5.0], 2.0, [-1.0, 0.0, 0.0]),
        ([0.0, 0.0, 7.0], 6.0, [1 / 2, 1 / 3, -3.0]),
    ],
    ids=["likelier but worse", "in order", "all tied", "two against one"],
)
def test_rrhf_loss_by_hand(scores: list[float], expected: float, gradient: list[float]):
    """Summed log-probabilities -2, -6, -3 over 2, 3, 1 tokens: p = -1, -2, -3, in that order of likelihood.

    Likelier but worse: the first is scored below both others and costs (-1 + 2) + (-1 + 3) = 3; the tied two cost nothing though the
    second is likelier; the best is the first of the tied two, 6 nats. 3 + 6 = 9. Gradient: 2 * 1/2; -1/3 - 1; -1/1.
    In order, and tied: only the best's 2 nats. Two against one: (-1 + 3) + (-2 + 3) = 3 and the best's 3 nats; 1/2, 1/3, -2 - 1.
    """
    logps = torch.tensor([[-2.0, -6.0, -3.0]], requires_grad=True)
    loss = RRHFLoss()(even_view(logps, torch.tensor([[2, 3, 1]]), scores=torch.tensor([scores])))
    assert loss.tolist() == pytest.approx([expected])
    loss.sum().backward()
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx(gradient)


def test_rrhf_weighs_ranking_beside_the_best():
    """The first case above: 0.5 * 3 + 6."""
    view = even_view(torch.tensor([[-2.0, -6.0, -3.0]]), torch.tensor([[2, 3, 1]]), scores=torch.tensor([[0.0, 1.0, 1.0]]))
    assert RRHFLoss(0.5)(view).tolist() == pytest.approx([7.5])


def slow_rrhf(logps: Sequence[float], lengths: Sequence[float], scores: Sequence[float], weight: float) -> float:
    """One group in plain python: for each two responses, then the first of the best."""
    total, best = 0.0, 0
    for i in range(len(logps)):
        for j in range(len(logps)):
            if scores[i] < scores[j] and logps[i] / lengths[i] > logps[j] / lengths[j]:
                total += weight * (logps[i] / lengths[i] - logps[j] / lengths[j])
        if scores[i] > scores[best]:
            best = i
    return total - logps[best]


RESPONSE = st.tuples(st.floats(-50, -0.01), st.integers(1, 30), st.sampled_from([-1.0, 0.0, 0.5, 2.0]))


@pytest.mark.slow
@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 10))
def test_rrhf_equals_a_slow_loop(data: st.DataObject, n: int, batch: int, weight: float):
    groups = data.draw(st.lists(st.lists(RESPONSE, min_size=n, max_size=n), min_size=batch, max_size=batch))
    logps, lengths, scores = ([[response[part] for response in group] for group in groups] for part in range(3))
    view = even_view(torch.tensor(logps, dtype=torch.float64), torch.tensor(lengths), scores=torch.tensor(scores, dtype=torch.float64))
    losses = RRHFLoss(weight)(view)
    expected = [slow_rrhf(*columns, weight) for columns in zip(logps, lengths, scores, strict=True)]
    assert losses.tolist() == pytest.approx(expected)


def test_a_view_sums_over_response_tokens():
    """Two items of two sides and three tokens. A side without a response token has length 0 and log-probability 0."""
    logps = -torch.arange(12.0).view(2, 2, 3)
    mask = torch.tensor([[[0, 1, 1], [0, 0, 1]], [[1, 1, 1], [0, 0, 0]]])
    view = View(logps, mask, {"reference_logps": 2 * logps})
    assert view.lengths.tolist() == [[2, 1], [3, 0]]
    assert view.response_logps.tolist() == [[-3, -5], [-21, 0]]
    assert view.reference_response_logps.tolist() == [[-6, -10], [-42, 0]]


@pytest.mark.parametrize("field", ["scores", "labels", "reference_logps"])
def test_a_field_that_the_data_do_not_have_is_one_line(field: str):
    view = View(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    with pytest.raises(InputError, match=rf"^the loss reads view\.{field}, which is not there: [^\n]+$"):
        getattr(view, field)
    assert getattr(View(view.logps, view.mask, {field: view.logps}), field) is view.logps


def test_an_update_is_divided_by_items_unless_the_loss_says_tokens():
    assert denominator_of(SFTLoss()) == "tokens"
    assert [denominator_of(loss) for loss in (DPOLoss(), RRHFLoss())] == ["items", "items"]


def test_losses_differ_by_class_and_fields():
    assert DPOLoss(0.1) == DPOLoss(0.1) != DPOLoss(0.2)
    assert RRHFLoss() == RRHFLoss(1.0) != RRHFLoss(2.0)
    assert APOLoss(0.1, 4) == APOLoss(0.1, 4, "ranking") != APOLoss(0.1, 4, "difference")


@pytest.mark.slow
def test_dpo_equals_trl_on_one_batch(tmp_path: Path, tiny_policy: Any):
    """The same prompts, pairs and models through TRL's DPOTrainer.compute_loss."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from apo_bench.models import policy as policies
    from apo_bench.training import encoding
    from apo_bench.types import Message, Pair, Prompt, prompt_id

    folder, spec = tiny_policy
    rows = [("how do i wash it", "rinse and dry", "no"), ("how", "boil", "rinse rinse rinse dry"), ("wash it", "dry it", "no how")]

    def pair(text: str, chosen: str, rejected: str) -> Pair:
        messages = (Message("user", text),)
        return Pair(Prompt(prompt_id("helpful", messages), messages, "helpful", text), chosen, rejected)

    model, tokenizer = policies.load_policy(folder)
    with torch.no_grad():  # a policy that has moved away from its reference
        torch.manual_seed(0)
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    reference, _ = policies.load_policy(folder)
    items = encoding.encode_items(tokenizer, [pair(*row) for row in rows], DPOLoss(0.3), spec)
    reference_logps = encoding.response_logps(reference, items, tokenizer.pad_token_id, batch_size=2)
    items = [{**item, "reference_logps": logps} for item, logps in zip(items, reference_logps, strict=True)]
    batch = encoding.collate(items, tokenizer.pad_token_id)
    ours = encoding.loss_terms(model.eval(), batch, DPOLoss(0.3)).mean().item()

    def side(prompt: str, text: str) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": prompt}], "text": [{"role": "assistant", "content": text}]}

    dataset = Dataset.from_list([
        {"prompt": side(p, c)["prompt"], "chosen": side(p, c)["text"], "rejected": side(p, r)["text"]} for p, c, r in rows
    ])  # fmt: skip
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), beta=0.3, use_cpu=True, report_to=[], per_device_train_batch_size=3, max_length=64, bf16=False,
        disable_dropout=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(model=model, ref_model=reference, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item()
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert abs(ours - math.log(2)) > 1e-3  # not the trivial value of an unmoved policy
