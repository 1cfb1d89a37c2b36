"""Shipped losses of policies by hand, where TRL has no form of them or would not show why, and the registry of their names."""

import math
from typing import Any

import pytest
import torch
from loss_views import even_view

from apo_bench.errors import InputError
from apo_bench.losses import (
    SHIPPED,
    AnchoredZeroUnpairedLoss,
    AOTLoss,
    BCOLoss,
    CDPOLoss,
    CPOLoss,
    DPOLoss,
    DPOPositiveLoss,
    FDPOLoss,
    HingeLoss,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    PolicyLoss,
    RDPOLoss,
    RobustLoss,
    RRHFLoss,
    SimPOLoss,
    SPPOLoss,
    View,
    WPOLoss,
    also_reads,
    shipped_loss,
)
from apo_bench.training.data import couples_items


def pair_view(chosen: float, rejected: float, lengths: tuple[int, int] = (1, 1), **optional: torch.Tensor) -> View:
    """One pair with these log-ratios: the reference gives both responses log-probability -4."""
    lengths_of = torch.tensor([lengths])
    view = even_view(torch.tensor([[chosen - 4, rejected - 4]]), lengths_of, **optional)
    reference = even_view(torch.full((1, 2), -4.0), lengths_of).logps
    return View(view.logps, view.mask, {"reference_logps": reference, **optional})


@pytest.mark.parametrize(
    ("loss", "chosen", "rejected", "lengths", "expected"),
    [
        (CDPOLoss(0.5, 0.25), 1.0, -1.0, (1, 1), 0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1))),
        (CDPOLoss(0.5, 0.0), 1.0, -1.0, (1, 1), math.log(1 + math.exp(-1))),
        (DPOPositiveLoss(0.5, 3.0), -1.0, -5.0, (1, 1), math.log(1 + math.exp(-0.5))),
        (DPOPositiveLoss(0.5, 3.0), 1.0, -1.0, (1, 1), math.log(1 + math.exp(-1))),
        (RDPOLoss(0.5, 0.1), 1.0, -1.0, (7, 2), math.log(1 + math.exp(-1.5))),
        (RDPOLoss(0.5, 0.0), 1.0, -1.0, (7, 2), math.log(1 + math.exp(-1))),
        (IPOLoss(0.25), 6.0, -4.0, (3, 2), 4.0),
        (SPPOLoss(0.25), 1.0, -1.0, (1, 1), 2.0),
        (HingeLoss(0.5), 1.0, 0.0, (1, 1), 0.5),
        (HingeLoss(0.5), 3.0, 0.0, (1, 1), 0.0),
    ],
    ids=repr,
)
def test_pair_losses_by_hand(loss: PolicyLoss, chosen: float, rejected: float, lengths: tuple[int, int], expected: float):
    """m = beta (c - r) = 0.5 * 2 = 1 unless said; softplus(-m) = log(1 + e^-m).

    cDPO: 3/4 of the loss at m = 1 and 1/4 of that at -1. DPO-positive: c = -1, r = -5 and penalty 3: 0.5 (4 - 3 * 1) = 0.5; nothing is
    taken off where c > 0. R-DPO: 5 tokens more at 0.1: 1 + 0.5. IPO: 6 / 3 + 4 / 2 - 1 / 0.5 = 2, squared. SPPO: target 0.5 / 0.25 = 2,
    missed by 1 on both sides. Hinge: 1 - 0.5, and 0 beyond 1.
    """
    assert loss(pair_view(chosen, rejected, lengths)).tolist() == pytest.approx([expected])


def test_robust_loss_is_unbiased():
    """Of 1 - e true preferences and e flipped ones, e = 0.2, its mean is DPO's loss on the true ones, whatever the margin."""
    for chosen, rejected in ((1.0, -1.0), (-2.0, 0.5)):
        loss = RobustLoss(0.5, 0.2)
        mean = 0.8 * loss(pair_view(chosen, rejected)) + 0.2 * loss(pair_view(rejected, chosen))
        torch.testing.assert_close(mean, DPOLoss(0.5)(pair_view(chosen, rejected)))


def test_robust_loss_without_flips_and_f_dpo_under_reverse_kl_are_dpo():
    view = pair_view(1.5, 0.25, (3, 2))
    for loss in (RobustLoss(0.3, 0.0), CDPOLoss(0.3, 0.0), FDPOLoss(0.3, "reverse_kl"), DPOPositiveLoss(0.3, 0.0), RDPOLoss(0.3, 0.0)):
        assert loss(view).tolist() == DPOLoss(0.3)(view).tolist()


def test_alpha_divergence_lies_between_the_two_kls():
    """(1 - u^-alpha) / alpha is log u as alpha goes to 0, and 1 - 1 / u at 1."""
    view = pair_view(0.5, -0.25)
    for alpha, limit in ((1e-4, FDPOLoss(0.3, "reverse_kl")), (1 - 1e-6, FDPOLoss(0.3, "forward_kl"))):
        torch.testing.assert_close(FDPOLoss(0.3, "alpha", alpha)(view), limit(view), atol=1e-3, rtol=0)


def test_aot_sorts_policy_and_reference_apart():
    """Two pairs: policy margins 3 and 1, the reference's 0 and 2. Sorted, 1 - 0 and 3 - 2: both margins 1. By pair they are 3 and -1."""
    logps, reference = torch.tensor([[-1.0, -4.0], [-2.0, -3.0]]), torch.tensor([[-2.0, -2.0], [-1.0, -3.0]])
    lengths = torch.ones(2, 2, dtype=torch.long)
    view = even_view(logps, lengths, reference_logps=reference[..., None])
    assert AOTLoss(0.5)(view).tolist() == pytest.approx([math.log(1 + math.exp(-0.5))] * 2)
    assert DPOLoss(0.5)(view).tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(0.5))])


def test_wpo_weighs_a_term_without_gradient():
    """Means -0.5 over 2 tokens and -1 over 3: weight e^-1.5. A log-collision of -0.25 everywhere adds 0.25 to each mean: e^-1."""
    logps = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    view = even_view(logps, torch.tensor([[2, 3]]))
    view = View(view.logps, view.mask, {"log_collision": torch.full_like(view.logps, -0.25)})
    inner = SimPOLoss(2.0, 1.0)
    for loss, weight in ((WPOLoss(inner, "none"), math.exp(-1.5)), (WPOLoss(inner), math.exp(-1.0))):
        terms = loss(view)
        torch.testing.assert_close(terms, weight * inner(view))
        (gradient,) = torch.autograd.grad(terms.sum(), logps, retain_graph=True)
        torch.testing.assert_close(gradient, weight * torch.autograd.grad(inner(view).sum(), logps, retain_graph=True)[0])
    assert (WPOLoss(inner).needs_reference, WPOLoss().needs_reference) == (False, True)
    assert (also_reads(WPOLoss()), also_reads(WPOLoss(alignment="none")), also_reads(DPOLoss())) == (("log_collision",), (), ())


@pytest.mark.parametrize("loss", [AOTLoss(), KTOLoss()])
def test_wpo_refuses_a_loss_without_terms_of_pairs(loss: PolicyLoss):
    with pytest.raises(InputError, match=f"{type(loss).__name__} has no term for each pair"):
        WPOLoss(loss)


def test_orpo_and_cpo_by_hand():
    """p = log 1/2 and log 1/4: odds 1 and 1/3, log odds 0 and -log 3. ORPO: log 2 + 0.5 log(1 + 1/3). Over 1 and 2 tokens the sums are
    -log 2 and -4 log 2: CPO at beta 1 is log(1 + e^(-3 log 2)) = log(9/8), and 0.5 log 2 of likelihood."""
    view = even_view(torch.tensor([[-math.log(2), -4 * math.log(2)]]), torch.tensor([[1, 2]]))
    assert ORPOLoss(0.5)(view).tolist() == pytest.approx([math.log(2) + 0.5 * math.log(4 / 3)])
    assert CPOLoss(1.0, 0.5)(view).tolist() == pytest.approx([math.log(9 / 8) + 0.5 * math.log(2)])


def unpaired_view(log_ratios: list[list[float]], labels: list[bool]) -> View:
    logps = torch.tensor(log_ratios)[..., None]
    return View(logps, torch.ones(logps.shape), {"reference_logps": torch.zeros(logps.shape), "labels": torch.tensor(labels)})


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize(("mismatched", "kl"), [((1.0, 2.0, 0.0), 1.0), ((-5.0, 1.0, 1.0), 0.0)], ids=["above 0", "clamped"])
def test_kto_by_hand(mismatched: tuple[float, float, float], kl: float):
    """Log-ratios 2, 3 (desirable) and -1 (not), beta 0.5; the mean of the mismatched ones is the KL where it is positive."""
    view = unpaired_view([[2.0, mismatched[0]], [3.0, mismatched[1]], [-1.0, mismatched[2]]], [True, True, False])
    expected = [2 * (1 - sigmoid(0.5 * (2 - kl))), 2 * (1 - sigmoid(0.5 * (3 - kl))), 3 * (1 - sigmoid(0.5 * (kl + 1)))]
    assert KTOLoss(0.5, 2.0, 3.0)(view).tolist() == pytest.approx(expected)


def test_kto_needs_mismatched_responses():
    with pytest.raises(InputError, match="no mismatched responses"):
        KTOLoss()(unpaired_view([[2.0], [1.0]], [True, False]))


@pytest.mark.parametrize("sides", [1, 2])
def test_bco_and_anchored_zero_by_hand(sides: int):
    """Rewards 1 and -2 at beta 0.5; their mean -0.5 is the shift: 1.5 and -1.5. Only a response's own side counts."""
    view = unpaired_view([[2.0, 9.0][:sides], [-4.0, 7.0][:sides]], [True, False])
    assert BCOLoss(0.5)(view).tolist() == pytest.approx([math.log(1 + math.exp(-1.5))] * 2)
    assert AnchoredZeroUnpairedLoss(0.5, 1.0, 3.0)(view).tolist() == pytest.approx([sigmoid(-1), 3 * sigmoid(-2)])


def test_rrhf_may_imitate_as_the_authors_code_does():
    """Sums -2, -6, -3 over 2, 3, 1 tokens behind two of a prompt, padded by one: ranking 3, the best's 6 nats. L is 2 + 3: 3 + 6 / 5.

    Their weight w is w L with plain sums, where the loss is L times theirs.
    """
    view = even_view(torch.tensor([[-2.0, -6.0, -3.0]]), torch.tensor([[2, 3, 1]]), scores=torch.tensor([[0.0, 1.0, 1.0]]))
    logps, mask = (torch.nn.functional.pad(part, (2, 1)) for part in (view.logps, view.mask))
    view = View(logps, mask, view.optional)
    assert RRHFLoss(1.0, "padded_mean")(view).tolist() == pytest.approx([3 + 6 / 5])
    torch.testing.assert_close(5 * RRHFLoss(0.7, "padded_mean")(view), RRHFLoss(5 * 0.7)(view))


def new_view(loss: PolicyLoss, items: int) -> View:
    """Random log-probabilities of the sides that the loss reads, with all that a view may have."""
    sides = {"demonstrations": 1, "pairs": 2, "unpaired": 2, "groups": 3}[loss.reads]
    generator = torch.Generator().manual_seed(1)
    logps, reference, collision = (-torch.rand(items, sides, 5, generator=generator) for _ in range(3))
    mask = torch.arange(5) < torch.randint(1, 6, (items, sides, 1), generator=generator)
    scores, labels = torch.randn(items, sides, generator=generator), torch.arange(items) % 2 == 0
    optional = {"reference_logps": reference, "scores": scores, "labels": labels, "log_collision": collision}
    return View((logps * mask).requires_grad_(), mask.long(), optional)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_loss_is_a_frozen_dataclass_with_a_term_an_item(name: str):
    """A loss that does not couple items gives each item the term it has alone; one that does says so."""
    loss = shipped_loss(name)
    assert isinstance(loss, PolicyLoss)
    assert hash(loss) == hash(shipped_loss({"name": name}))
    view = new_view(loss, 6)
    terms = loss(view)
    assert terms.shape == (6,)
    assert torch.isfinite(terms).all()
    terms.sum().backward()
    assert view.logps.grad is not None
    assert view.logps.grad.abs().max() > 0
    assert (view.logps.grad * (1 - view.mask)).abs().max() == 0
    alone = [loss(View(view.logps[[n]], view.mask[[n]], {k: v[[n]] for k, v in view.optional.items()})) for n in range(6)]
    assert torch.allclose(terms, torch.cat(alone), atol=1e-6) != couples_items(loss)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_loss_reads_only_what_it_says(name: str):
    loss = shipped_loss(name)
    view = new_view(loss, 2)
    reads = {"reference_logps"} if loss.needs_reference else set[str]()
    reads |= {*also_reads(loss), *{"groups": ("scores",), "unpaired": ("labels",)}.get(loss.reads, ())}
    terms = loss(View(view.logps, view.mask, {name: view.optional[name] for name in reads}))
    assert terms.tolist() == loss(view).tolist()
    for field in reads:
        with pytest.raises(InputError, match=field):
            loss(View(view.logps, view.mask, {name: view.optional[name] for name in reads - {field}}))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("dpo", "no shipped loss is called 'dpo'; there are: sigmoid, hinge, "),
        ({"beta": 1.0}, "no shipped loss is called None"),
        ({"name": ["ipo"]}, "no shipped loss is called"),
        ({"name": "simpo", "margin": 1.0}, "unknown parameter 'margin' of simpo; it has: beta, gamma"),
        ({"name": "simpo", "beta": "2"}, "simpo.beta: a number is needed"),
        ({"name": "simpo", "beta": 0}, "simpo.beta: more than 0 is needed"),
        ({"name": "robust", "label_smoothing": 0.5}, "robust.label_smoothing: less than 0.5 is needed"),
        ({"name": "wpo", "loss": "aot"}, "WPOLoss.loss: AOTLoss has no term"),
        ({"name": "wpo", "loss": {"name": "ipo", "beta": -1}}, "ipo.beta: more than 0 is needed"),
        ({"name": "wpo", "loss": 3}, "wpo.loss: "),
    ],
)
def test_a_wrong_choice_of_loss_is_one_line(choice: Any, message: str):
    with pytest.raises(InputError, match=message) as refused:
        shipped_loss(choice)
    assert "\n" not in str(refused.value)


def test_a_choice_of_loss_may_hold_another():
    assert shipped_loss({"name": "wpo", "loss": {"name": "hinge", "beta": 0.5}, "alignment": "none"}) == WPOLoss(HingeLoss(0.5), "none")
    assert shipped_loss("sigmoid") == DPOLoss()
