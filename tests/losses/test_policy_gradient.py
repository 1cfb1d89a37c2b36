"""Online algorithms by hand: advantages of a few scores, losses of a few tokens; and their names."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apo_bench.config.plugins import resolve
from apo_bench.errors import InputError
from apo_bench.losses import (
    ALGORITHMS,
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    REINFORCE,
    RLOO,
    ClippedPolicyGradient,
    DPOLoss,
    DrGRPO,
    OnlineAlgorithm,
    PolicyGradient,
    PPOClip,
    REINFORCEPlusPlus,
    Rollouts,
    SimPOLoss,
    View,
    shipped_algorithm,
)

NAN = math.nan


def rollouts(scores: list[list[float]], lengths: list[list[int]] | None = None, log_ratio: float | None = None, cut: int = 0) -> Rollouts:
    """Samples of these lengths (default: 2 tokens), whose tokens all have this log-ratio; the last `cut` of each prompt were cut."""
    values = torch.tensor(scores)
    sizes = torch.full(values.shape, 2) if lengths is None else torch.tensor(lengths)
    mask = (torch.arange(int(sizes.max())) < sizes[..., None]).long()
    finished = torch.ones(values.shape, dtype=torch.bool)
    finished[:, values.shape[1] - cut :] = False
    return Rollouts(values, mask, finished, None if log_ratio is None else mask * log_ratio)


def assert_advantages(algorithm: OnlineAlgorithm, samples: Rollouts, expected: Any) -> None:
    torch.testing.assert_close(algorithm.advantages(samples), torch.tensor(expected), atol=2e-4, rtol=0, equal_nan=True)


def test_advantages_by_hand() -> None:
    """Two prompts, scores 1, 3 and 0, 4: means 2, 2 and in all 2; sds sqrt 2, sqrt 8; of all, sqrt(10 / 3). Leaving one out: 1 - 3."""
    samples, root = rollouts([[1.0, 3.0], [0.0, 4.0]]), math.sqrt(2)
    assert_advantages(REINFORCE(baseline="none"), samples, [[1.0, 3.0], [0.0, 4.0]])
    assert_advantages(REINFORCE(), samples, [[-1.0, 1.0], [-2.0, 2.0]])
    assert_advantages(RLOO(kl_coeff=0.0), samples, [[-2.0, 2.0], [-4.0, 4.0]])
    for name in ("grpo", "gspo", "cispo", "dapo"):
        assert_advantages(shipped_algorithm(name), samples, [[-1 / root, 1 / root]] * 2)
    assert_advantages(DrGRPO(), samples, [[-1.0, 1.0], [-2.0, 2.0]])
    sd = math.sqrt(10 / 3)
    assert_advantages(GRPO(scale="batch"), samples, [[-1 / sd, 1 / sd], [-2 / sd, 2 / sd]])


def test_the_batch_baseline_is_of_all_prompts_and_the_groups_of_one() -> None:
    """Scores 1, 3 and 5, 7: in all 4; by group 2 and 6."""
    samples = rollouts([[1.0, 3.0], [5.0, 7.0]])
    assert_advantages(REINFORCE(), samples, [[-3.0, -1.0], [1.0, 3.0]])
    assert_advantages(REINFORCE(baseline="group"), samples, [[-1.0, 1.0], [-1.0, 1.0]])


def test_kl_in_the_reward_is_of_whole_responses() -> None:
    """Log-ratios 0.5 a token over 1 and 3 tokens, at kl_coeff 2: scores 1 - 1 and 3 - 3, so nothing is left to tell them apart."""
    assert_advantages(RLOO(kl_coeff=2.0), rollouts([[1.0, 3.0]], [[1, 3]], 0.5), [[0.0, 0.0]])
    assert_advantages(RLOO(kl_coeff=2.0, baseline="none"), rollouts([[1.0, 4.0]], [[1, 3]], 0.5), [[0.0, 1.0]])


def test_reinforce_plus_plus_by_hand() -> None:
    """Log-ratio 1 a token, kl_coeff 0.5. Score 2 over 2 tokens: returns 1, 1.5. Score 0 over one: -0.5. Mean 2/3, sd sqrt(13 / 12).

    Squares of 1/3, 5/6, -7/6 are 4/36, 25/36, 49/36: 78/36 over 2. The padded place is the score's return, and counts for nothing.
    """
    samples, sd = rollouts([[2.0, 0.0]], [[2, 1]], 1.0), math.sqrt(13 / 12)
    advantages = REINFORCEPlusPlus(kl_coeff=0.5).advantages(samples)
    assert advantages.shape == (1, 2, 2)
    expected = torch.tensor([1 / 3, 5 / 6, -7 / 6]) / sd
    torch.testing.assert_close(advantages[samples.mask > 0], expected, atol=2e-4, rtol=0)
    assert_advantages(PPOClip(kl_coeff=0.5), samples, [[[1 / 3, 5 / 6], [-7 / 6, -2 / 3]]])


def test_what_is_not_trained_on_has_no_advantage() -> None:
    """DAPO leaves out the tied group and the cut samples, which count in the others' mean: 1, 3, 5 have mean 3 and sd 2."""
    samples = rollouts([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]], cut=1)
    assert_advantages(DAPO(), samples, [[-1.0, 0.0, NAN], [NAN, NAN, NAN]])
    assert_advantages(DAPO(mask_cut=False), samples, [[-1.0, 0.0, 1.0], [NAN, NAN, NAN]])
    assert_advantages(GRPO(), samples, [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    by_token = REINFORCEPlusPlus(kl_coeff=0.0, mask_cut=True).advantages(samples)
    assert by_token.isnan().all(dim=-1).tolist() == [[False, False, True]] * 2


def view(logps: list[list[float]], old: list[list[float]], advantages: list[float], **optional: Tensor) -> View:
    """Responses with these log-probabilities; shorter ones are padded with a number that counts for nothing."""
    width = max(map(len, logps))

    def padded(rows: list[list[float]]) -> Tensor:
        return torch.tensor([[row + [99.0] * (width - len(row))] for row in rows])

    mask = torch.tensor([[[1] * len(row) + [0] * (width - len(row))] for row in logps])
    fields = {"old_logps": padded(old), "advantages": torch.tensor(advantages), **optional}
    return View(padded(logps).requires_grad_(), mask, fields)


TWO, HALF = math.log(2), -math.log(2)  # as log-ratios


def test_reinforce_is_minus_the_advantage_times_the_log_probability() -> None:
    """Log-probabilities -1 - 2 and -0.5, advantages 2 and -4: 6 and -2. Each token's gradient is minus its response's advantage."""
    for algorithm in (REINFORCE(), RLOO(kl_coeff=0.0)):
        given = view([[-1.0, -2.0], [-0.5]], [[0.0, 0.0], [0.0]], [2.0, -4.0])
        terms = algorithm(given)
        assert terms.tolist() == pytest.approx([6.0, -2.0])
        assert not hasattr(algorithm, "clipped")
        (gradient,) = torch.autograd.grad(terms.sum(), given.logps)
        assert gradient.tolist() == [[[-2.0, -2.0]], [[4.0, 0.0]]]
        assert algorithm.denominator == "items"


@pytest.mark.parametrize(
    ("algorithm", "expected", "shares", "denominator"),
    [
        (PPOClip(), [-1.2 - 0.5, 2.0], [0.5, 0.0], "tokens"),
        (PPOClip(clip_low=0.6, clip_high=1.5), [-2.0 - 0.5, 2.0], [0.0, 0.0], "tokens"),
        (PPOClip(clip_low=None, clip_high=None), [-2.0 - 0.5, 2.0], [0.0, 0.0], "tokens"),
        (GRPO(kl_coeff=0.0), [-0.85, 2.0], [0.5, 0.0], "items"),
        (DAPO(), [-1.28 - 0.5, 2.0], [0.5, 0.0], "tokens"),
        (DrGRPO(constant_length=4.0), [-1.7 / 4, 0.5], [0.5, 0.0], "items"),
        (GSPO(), [-1.0, 2.0], [0.0, 0.0], "items"),
    ],
    ids=lambda value: repr(value) if isinstance(value, PolicyGradient) else "",
)
def test_clipped_objectives_by_hand(algorithm: ClippedPolicyGradient, expected: list[float], shares: list[float], denominator: str) -> None:
    """Advantage 1 with ratios 2 and 1/2: min(2, 1.2) + min(1/2, 0.8). Advantage -1 with ratio 2: min(-2, -1.2), which clips nothing.

    DAPO's upper bound is 1.28. Whole responses: the geometric mean of 2 and 1/2 is 1, and of 2 is 2.
    """
    given = view([[-1.0 + TWO, -1.0 + HALF], [-1.0 + TWO]], [[-1.0, -1.0], [-1.0]], [1.0, -1.0])
    assert algorithm(given).tolist() == pytest.approx(expected, abs=1e-6)
    assert (algorithm.clipped(given).sum(dim=(1, 2)) / given.lengths.squeeze(1)).tolist() == pytest.approx(shares)
    assert algorithm.denominator == denominator


def test_a_clipped_token_has_no_gradient_but_for_cispos() -> None:
    """Advantage 1, ratios 2 and 1/2, log-probabilities -1 + log 2 and -1 - log 2.

    PPO: the first is clipped, the second's gradient is its ratio. CISPO clips the weight at 1.5: -1.5 and -0.5 are gradients of log pi.
    """
    cases: list[tuple[ClippedPolicyGradient, list[float], list[int]]] = [
        (PPOClip(), [0.0, -0.5], [1, 0]),
        (CISPO(clip_high=0.5), [-1.5, -0.5], [1, 0]),
        (CISPO(), [-2.0, -0.5], [0, 0]),
    ]
    for algorithm, wanted, clipped in cases:
        given = view([[-1.0 + TWO, -1.0 + HALF]], [[-1.0, -1.0]], [1.0])
        (gradient,) = torch.autograd.grad(algorithm(given).sum(), given.logps)
        assert gradient.flatten().tolist() == pytest.approx(wanted)
        assert algorithm.clipped(given).tolist() == [[clipped]]
    value = CISPO(clip_high=0.5)(view([[-1.0 + TWO, -1.0 + HALF]], [[-1.0, -1.0]], [1.0]))
    assert value.item() == pytest.approx(1.5 * (1 - TWO) + 0.5 * (1 + TWO))


def test_a_product_of_ratios_is_of_the_whole_response() -> None:
    """Ratios 2 and 2: 4, clipped at 1.5. It is the same at each token, of which a response is the mean."""
    algorithm = ClippedPolicyGradient(ratio="product", normalise="response", clip_high=0.5)
    given = view([[-1.0 + TWO, -1.0 + TWO], [-1.0 + HALF]], [[-1.0, -1.0], [-1.0]], [1.0, 1.0])
    assert algorithm(given).tolist() == pytest.approx([-1.5, -0.5])


def test_kl_in_the_loss_and_entropy_are_of_tokens() -> None:
    """Where the reference is twice as likely, k3 = 2 - log 2 - 1; where it is as likely, 0. Entropies 0.5 and 1.5. No advantage."""
    fields = {"reference_logps": torch.tensor([[[-1.0 + TWO, -1.0]]]), "entropy": torch.tensor([[[0.5, 1.5]]])}
    given = view([[-1.0, -1.0]], [[-1.0, -1.0]], [0.0], **fields)
    k3 = 1 - TWO
    assert GRPO(kl_coeff=0.1)(given).tolist() == pytest.approx([0.1 * k3 / 2])
    assert GRPO(kl_coeff=0.1, normalise="tokens")(given).tolist() == pytest.approx([0.1 * k3])
    bonus, plain = PPOClip(entropy_bonus=0.1), PPOClip()
    assert bonus(given).tolist() == pytest.approx([-0.2])
    assert (bonus.also_reads, plain.also_reads) == (("entropy",), ())
    assert RLOO(kl_coeff=0.1)(given).tolist() == [0.0]  # its KL is in the reward


def test_advantages_of_tokens_weigh_tokens() -> None:
    """Log-probabilities -1 and -2, advantages 3 and 0.5: 3 + 1. As the engine gives them, (B, 1, T)."""
    given = view([[-1.0, -2.0]], [[-1.0, -2.0]], [0.0])
    given = View(given.logps, given.mask, {**given.optional, "advantages": torch.tensor([[[3.0, 0.5]]])})
    assert PolicyGradient()(given).tolist() == pytest.approx([4.0])
    assert PPOClip()(given).tolist() == pytest.approx([-3.5])


def test_a_reference_is_needed_where_a_kl_is_weighed() -> None:
    with_kl = {name for name, cls in ALGORITHMS.items() if cls().needs_reference}
    assert with_kl == {"rloo", "reinforce_plus_plus", "grpo"}
    assert [GRPO(kl_coeff=kl).needs_reference for kl in (0.0, 0.1)] == [False, True]
    with pytest.raises(InputError, match="RLOO: kl_in: reward needs log-ratios to a reference"):
        RLOO().advantages(rollouts([[1.0, 2.0]]))


def test_algorithms_are_what_their_class_and_fields_say() -> None:
    for name, cls in ALGORITHMS.items():
        algorithm = shipped_algorithm(name)
        assert isinstance(algorithm, OnlineAlgorithm)
        assert (algorithm, algorithm.reads, hash(algorithm)) == (cls(), "rollouts", hash(cls()))
    assert shipped_algorithm({"name": "grpo", "clip_high": 0.28, "clip_low": None}) == GRPO(clip_high=0.28, clip_low=None) != GRPO()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("ppo", r"no shipped online algorithm or loss of pairs is called 'ppo'; there are: reinforce, rloo, .*, sigmoid, "),
        ("kto", r"no shipped online algorithm or loss of pairs is called 'kto'"),
        ({"name": "grpo", "clip_high": -0.1}, r"grpo\.clip_high: 0 or more is needed"),
        ({"name": "grpo", "kl_in": "advantage"}, r"grpo\.kl_in: 'loss', 'reward' or 'return' is needed"),
        ({"name": "grpo", "beta": 0.1}, r"unknown parameter 'beta' of grpo; it has: kl_coeff, "),
        ({"name": "dr_grpo", "constant_length": 0}, r"dr_grpo\.constant_length: more than 0 is needed"),
        ({"name": "grpo", "kl_in": "return"}, r"GRPO: kl_in: return gives each token a return, which has no group"),
        ({"name": "dapo", "ratio": "product"}, r"DAPO: ratio: product is of a whole response: normalise: response, not tokens"),
        ({"name": "rloo", "clip_low": 0.2}, r"unknown parameter 'clip_low' of rloo"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(choice: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^{message}[^\n]*$"):
        shipped_algorithm(choice)


@pytest.mark.parametrize("algorithm", [GRPO(kl_coeff=0.0), RLOO(kl_coeff=0.0), DrGRPO()])
def test_a_group_is_of_two_samples_or_more(algorithm: OnlineAlgorithm) -> None:
    with pytest.raises(InputError, match="one sample to a prompt is no group: n is 2 or more"):
        algorithm.advantages(rollouts([[1.0], [2.0]]))
    assert_advantages(REINFORCE(), rollouts([[1.0], [2.0]]), [[-0.5], [0.5]])


METHOD = """
from dataclasses import dataclass
from apo_bench.losses import OnlineLoss
from typing import ClassVar

@dataclass(frozen=True)
class Online:
    algorithm: OnlineLoss
    def run(self, lab): ...

@dataclass(frozen=True)
class Mine:
    reads: ClassVar = "rollouts"
    needs_reference: ClassVar = False
    scale: float = 1.0
    def advantages(self, rollouts): return self.scale * rollouts.scores
    def __call__(self, view): return -view.advantages * view.response_logps.squeeze(1)
"""


def test_a_method_takes_an_algorithm_by_name_by_mapping_or_of_ones_own(tmp_path: Path) -> None:
    """And losses of pairs, which stay what they are."""
    (tmp_path / "online.py").write_text(METHOD)

    def algorithm(choice: Any) -> Any:
        return resolve("online.py@Online", {"algorithm": choice}, base=tmp_path).algorithm

    assert algorithm("grpo") == GRPO()
    assert algorithm({"name": "grpo", "clip_high": 0.28}) == GRPO(clip_high=0.28)
    assert (algorithm("sigmoid"), algorithm({"name": "simpo", "gamma": 0.5})) == (DPOLoss(), SimPOLoss(gamma=0.5))
    mine = algorithm({"use": "online.py@Mine", "scale": 2.0})
    assert (type(mine).__name__, mine.scale) == ("Mine", 2.0)
    with pytest.raises(InputError, match=r"^online.py@Online\.algorithm: no shipped online algorithm or loss of pairs is called 'kto'"):
        algorithm("kto")
    with pytest.raises(InputError, match=r"online.py@Online\.algorithm: "):
        algorithm(3)
