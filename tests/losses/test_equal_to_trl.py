"""Shipped losses against TRL's own trainers, value and gradient, on one recorded batch of logits.

TRL's methods run as they are, on a trainer that was given its attributes and no more; its model's outputs come from the recorded logits.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trl_doubles import model_of, trainer_of

from apo_bench.losses import SHIPPED, PolicyLoss, View, shipped_loss, token_logps
from apo_bench.models.output_layer import log_collision

pytestmark = pytest.mark.slow  # TRL takes seconds to import

B, T, V = 4, 9, 11
GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(1, V, (B, 2, T), generator=GENERATOR)
LOGITS, REFERENCE = (torch.randn(B, 2, T, V, generator=GENERATOR) for _ in range(2))
STARTS, ENDS = torch.tensor([[1], [3], [2], [1]]), torch.tensor([[5, 9], [9, 6], [7, 7], [4, 8]])  # of responses, behind prompts
PLACES = torch.arange(T)
MASK = (STARTS[..., None] <= PLACES) & (ENDS[..., None] > PLACES)  # (B, 2, T)
LABELS = torch.tensor([True, False, False, True])


def logps_of(logits: Tensor) -> Tensor:
    """(B, 2, T), 0 off the response."""
    return token_logps(logits.flatten(0, 1), IDS.flatten(0, 1)).view(B, 2, T) * MASK


def view(logits: Tensor, rows: slice = slice(None)) -> View:
    collision = log_collision(logits[:, :, :-1].flatten(0, 2)).view(B, 2, T - 1)
    optional = {"reference_logps": logps_of(REFERENCE), "log_collision": F.pad(collision, (1, 0)), "labels": LABELS}
    return View(logps_of(logits)[rows], MASK[rows].long(), {name: value[rows] for name, value in optional.items()})


def by_side(value: Tensor) -> Tensor:
    """(B, 2, ...) as TRL has it: all chosen, then all rejected."""
    return value.transpose(0, 1).flatten(0, 1)


def dpo(logits: Tensor, loss_type: str, **changes: Any) -> Tensor:
    from trl.trainer.dpo_trainer import DPOTrainer

    settings: dict[str, Any] = {
        "beta": 0.3, "label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
        "use_weighting": False, "precompute_ref_logps": True, "args": SimpleNamespace(discopop_tau=0.05), **changes,
    }  # fmt: skip
    trainer = trainer_of(DPOTrainer, loss_types=[loss_type], loss_weights=[1.0], **settings)
    reference, ids, mask = logps_of(REFERENCE).sum(dim=-1), by_side(IDS), by_side(MASK).long()
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask,
        "ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1],
    }  # fmt: skip
    return trainer._compute_loss(model_of(by_side(logits), ids), inputs, False)


def reference_free(logits: Tensor, kind: str, **settings: Any) -> Tensor:
    """TRL's CPO or ORPO trainer, a pair at a time: over several it weights their likelihoods by tokens."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    cls = {"cpo": CPOTrainer, "orpo": ORPOTrainer}[kind]
    trainer = trainer_of(cls, is_encoder_decoder=False, pad_token_id=0, padding_value=0, **settings)
    total = logits.new_zeros(())
    for row in range(B):
        batch, ends = {}, ENDS[row].tolist()
        for number, side in enumerate(("chosen", "rejected")):
            ids = IDS[row, number, : ends[number]][None]
            batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"] = ids, torch.ones_like(ids)
            batch[f"{side}_labels"] = ids.masked_fill(~MASK[row, number, : ends[number]], -100)
        width = max(ends)
        padded = torch.stack([F.pad(IDS[row, number, :end], (0, width - end)) for number, end in enumerate(ends)])
        model = model_of(logits[row, :, :width], padded)

        def forward(input_ids: Tensor, model: Callable[..., Any] = model, **more: Any) -> Any:
            return model(input_ids=input_ids, **more)

        total = total + trainer.get_batch_loss_metrics(forward, batch)[0] / B
    return total


def kto(logits: Tensor, loss_type: str, **changes: Any) -> Tensor:
    """The second side of each item is its mismatched response."""
    from trl.trainer.kto_trainer import KTOTrainer

    settings = {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.0, "precompute_ref_logps": True, **changes}
    trainer = trainer_of(KTOTrainer, loss_type=loss_type, calculate_KL=loss_type == "kto", **settings)
    reference, attention = logps_of(REFERENCE).sum(dim=-1), torch.ones(B, T, dtype=torch.long)
    inputs = {
        "input_ids": IDS[:, 0], "attention_mask": attention, "completion_mask": MASK[:, 0].long(), "ref_logps": reference[:, 0],
        "KL_input_ids": IDS[:, 1], "KL_attention_mask": attention, "KL_completion_mask": MASK[:, 1].long(),
        "ref_KL_logps": reference[:, 1], "label": LABELS,
    }  # fmt: skip
    models = [model_of(logits[:, side], IDS[:, side]) for side in range(2)]

    def model(input_ids: Tensor, **more: Any) -> Any:
        return models[0 if torch.equal(input_ids, IDS[:, 0]) else 1](input_ids=input_ids, **more)

    return trainer._compute_loss(model, {**inputs, "label": LABELS}, False)


Case = tuple[str | Mapping[str, Any], Callable[..., Tensor], dict[str, Any]]
CASES: list[Case] = [  # ours, TRL's trainer, and its settings
    *(({"name": name, "beta": 0.3}, dpo, {"loss_type": name}) for name in (
        "sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "discopop", "sigmoid_norm",
    )),
    *(({"name": name, "beta": 0.3, "label_smoothing": 0.2}, dpo, {"loss_type": name, "label_smoothing": 0.2}) for name in (
        "robust", "exo_pair", "aot", "aot_unpaired",
    )),
    ({"name": "anchored_zero", "beta": 0.3}, dpo, {"loss_type": "apo_zero"}),
    ({"name": "anchored_down", "beta": 0.3}, dpo, {"loss_type": "apo_down"}),
    ({"name": "discopop", "beta": 0.3, "tau": 0.5}, dpo, {"loss_type": "discopop", "args": SimpleNamespace(discopop_tau=0.5)}),
    *(({"name": "f_dpo", "beta": 0.3, "divergence": ours}, dpo, {"loss_type": "sigmoid", "f_divergence_type": theirs}) for ours, theirs in (
        ("reverse_kl", "reverse_kl"), ("forward_kl", "forward_kl"), ("js", "js_divergence"),
    )),
    ({"name": "f_dpo", "beta": 0.3, "divergence": "alpha", "alpha": 0.3}, dpo,
     {"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}),
    *(({"name": "wpo", "loss": {"name": name, "beta": 0.3}}, dpo, {"loss_type": name, "use_weighting": True}) for name in (
        "sigmoid", "ipo", "bco_pair",  # not hinge, which TRL weights in place: it has no gradient there
    )),
    ({"name": "simpo", "beta": 2.0, "gamma": 0.7}, reference_free,
     {"kind": "cpo", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "alpha": 0.0, "cpo_alpha": 0.0, "label_smoothing": 0.0}),
    ({"name": "cpo", "beta": 0.3, "likelihood_weight": 0.5}, reference_free,
     {"kind": "cpo", "loss_type": "sigmoid", "beta": 0.3, "alpha": 0.0, "cpo_alpha": 0.5, "label_smoothing": 0.0}),
    ({"name": "kto", "beta": 0.3}, kto, {"loss_type": "kto"}),
    ({"name": "kto", "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}, kto,
     {"loss_type": "kto", "desirable_weight": 1.2, "undesirable_weight": 0.8}),
    ({"name": "anchored_zero_unpaired", "beta": 0.3}, kto, {"loss_type": "apo_zero_unpaired"}),
]  # fmt: skip
UNLIKE_TRL = {"cdpo", "dpop", "r_dpo", "orpo", "bco", "rrhf", "sft"}  # without the form in TRL, or compared below or elsewhere


def assert_equal(loss: PolicyLoss, theirs: Callable[[Tensor], Tensor]) -> None:
    values, gradients = [], []
    for compute in (lambda logits: loss(view(logits)).mean(), theirs):
        logits = LOGITS.clone().requires_grad_()
        values.append(compute(logits))
        gradients.append(torch.autograd.grad(values[-1], logits)[0])
    torch.testing.assert_close(*values, atol=1e-5, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    assert gradients[1].abs().max() > 1e-3


def named(case: Case) -> str:
    return " ".join(str(value) for value in (case[0].values() if isinstance(case[0], Mapping) else [case[0]]))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_value_and_gradient_are_trls(case: Case) -> None:
    pytest.importorskip("trl")
    choice, theirs, settings = case
    assert_equal(shipped_loss(choice), lambda logits: theirs(logits, **settings))


def test_orpo_is_trls_where_a_prompt_is_a_single_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's likelihood term is of prompt and response; of a prompt of a single token nothing is predicted."""
    pytest.importorskip("trl")
    monkeypatch.setitem(globals(), "MASK", (PLACES >= 1) & (ENDS[..., None] > PLACES))
    assert_equal(shipped_loss({"name": "orpo", "beta": 0.3}), lambda logits: reference_free(logits, kind="orpo", beta=0.3))


def test_every_loss_that_trl_has_is_compared() -> None:
    compared = {str(choice["name"]) for choice, _, _ in CASES if isinstance(choice, Mapping)}
    assert compared | UNLIKE_TRL == set(SHIPPED)
    assert not compared & UNLIKE_TRL


def test_the_recorded_batch_decides_between_losses() -> None:
    """Every clamp is on both sides: hinge margins, DPO-positive's penalty; and the estimated KL of KTO is above 0."""
    chosen, rejected = (view(LOGITS).response_logps - view(LOGITS).reference_response_logps).unbind(dim=1)
    assert {bool(margin) for margin in 0.3 * (chosen - rejected) < 1} == {True, False}
    assert {bool(below) for below in chosen < 0} == {True, False}
    assert rejected.mean() > 0
