"""Shipped online algorithms against TRL's GRPOTrainer and RLOOTrainer, from scores to value and gradient, on one recorded batch.

TRL's methods run as they are: what makes advantages of samples, and what makes a loss of them. Its samples, scores and models are given.
"""

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl_doubles import model_of, trainer_of

from apo_bench.losses import ALGORITHMS, Rollouts, View, shipped_algorithm, token_logps

pytestmark = pytest.mark.slow  # TRL takes seconds to import

P, N, PROMPT, T, V, END, PAD = 3, 4, 2, 7, 11, 1, 0
GENERATOR = torch.Generator().manual_seed(5)
LENGTHS = torch.tensor([3, 7, 5, 1, 6, 2, 7, 4, 7, 3, 2, 5])
FINISHED = torch.tensor([True] * 6 + [False] + [True] * 2 + [False] + [True] * 2)  # samples 6 and 9 were cut
IDS = torch.randint(2, V, (P * N, PROMPT + T), generator=GENERATOR)
PLACES = torch.arange(PROMPT + T)
MASK = (PLACES >= PROMPT) & (PROMPT + LENGTHS[:, None] > PLACES)  # (P * N, PROMPT + T)
IDS[FINISHED, PROMPT + LENGTHS[FINISHED] - 1] = END
IDS[~MASK & (PLACES >= PROMPT)] = PAD
OLD, REFERENCE = (torch.randn(P * N, PROMPT + T, V, generator=GENERATOR) for _ in range(2))
LOGITS = OLD + 0.25 * torch.randn(OLD.shape, generator=GENERATOR)
SCORES = torch.randn(P * N, generator=GENERATOR)


def logps_of(logits: Tensor) -> Tensor:
    return token_logps(logits, IDS) * MASK


def entropy_of(logits: Tensor) -> Tensor:
    """Of the next token where each token stands, (P * N, PROMPT + T)."""
    entropy = torch.distributions.Categorical(logits=logits[:, :-1]).entropy()
    return torch.nn.functional.pad(entropy, (1, 0))


def ours(logits: Tensor, choice: Any, scores: Tensor) -> Tensor:
    """An update on the whole step: what is not trained on leaves it, and its sum is divided by its responses or tokens."""
    algorithm = shipped_algorithm(choice)
    assert algorithm.needs_reference == (algorithm.kl_coeff > 0)
    log_ratios = (logps_of(OLD) - logps_of(REFERENCE)).view(P, N, -1) if algorithm.needs_reference else None
    advantages = algorithm.advantages(Rollouts(scores.view(P, N), MASK.view(P, N, -1).long(), FINISHED.view(P, N), log_ratios)).flatten()
    trained = ~advantages.isnan()
    fields = {"old_logps": logps_of(OLD), "reference_logps": logps_of(REFERENCE), "entropy": entropy_of(logits)}
    optional = {"advantages": advantages[trained], **{name: value[trained, None] for name, value in fields.items()}}
    view = View(logps_of(logits)[trained, None], MASK[trained, None].long(), optional)
    return algorithm(view).sum() / (view.mask.sum() if algorithm.denominator == "tokens" else trained.sum())


def trainer(cls: type, scores: Tensor, **settings: Any) -> Any:
    """A trainer whose samples and scores are the recorded ones, and whose policy is still the one that sampled."""
    rows = [IDS[row, PROMPT : PROMPT + length].tolist() for row, length in enumerate(LENGTHS.tolist())]
    prompts = IDS[:, :PROMPT].tolist()
    sampled = (prompts, rows, None, rows, None, {}, None, None) if cls.__name__ == "GRPOTrainer" else (prompts, rows, rows)
    args = {
        "steps_per_generation": 1, "num_iterations": 2, "gradient_accumulation_steps": 1, "gradient_checkpointing_kwargs": None,
        "per_device_train_batch_size": P * N, "delta": None, "use_bias_correction_kl": False, "report_to": [],
    }  # fmt: skip
    common = {
        "args": SimpleNamespace(**args), "num_iterations": 2, "num_generations": N, "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2,
        "_tokenizer": SimpleNamespace(pad_token_id=PAD), "eos_token_ids": [END], "pad_to_multiple_of": None,
        "mask_truncated_completions": False, "reward_weights": torch.ones(1), "reward_func_names": ["recorded"], "use_vllm": False,
        "environment_factories": None, "environments": None, "tools": None, "log_multimodal": False, "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_adaptive_entropy": False, "_entropy_bonus_enabled": False,
        "multi_objective_aggregation": "sum_then_normalize", "importance_sampling_level": "token", "loss_type": "grpo",
        "scale_rewards": "group", "max_completion_length": T, "current_gradient_accumulation_steps": 1, "reward_clip_range": None,
        "normalize_advantages": False, "_pending_extra_logs": {}, "_pending_metrics": {},
        "_logs": {"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [], "extra": defaultdict(list), "images": []},
        "_generate": lambda prompts: sampled, "_calculate_rewards": lambda *_: scores[:, None].clone(),
    }  # fmt: skip
    result = trainer_of(cls, **{**common, **settings})
    models = [model_of(logits, IDS) for logits in (OLD, REFERENCE)]
    for model in models:
        setattr(model, "training", True)  # noqa: B010 (a function, which pyright knows to have no such attribute)
        setattr(model, "is_gradient_checkpointing", False)  # noqa: B010
    result.model, result.ref_model = models
    return result


def theirs(logits: Tensor, name: str, scores: Tensor, settings: dict[str, Any]) -> Tensor:
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    trl = trainer({"grpo": GRPOTrainer, "rloo": RLOOTrainer}[name], scores, **settings)
    samples = trl._generate_and_score_completions([{"prompt": ids} for ids in IDS[:, :PROMPT].tolist()])
    return trl._compute_loss(model_of(logits, IDS), samples)


PRODUCT = {"name": "clipped_policy_gradient", "ratio": "product", "normalise": "response", "baseline": "leave_one_out"}
Case = tuple[dict[str, Any], str, dict[str, Any]]
CASES: list[Case] = [  # ours, TRL's trainer, and its settings
    ({"name": "grpo"}, "grpo", {"beta": 0.04}),
    ({"name": "grpo", "kl_coeff": 0.0, "clip_low": 0.1, "clip_high": 0.3}, "grpo", {"epsilon_low": 0.1, "epsilon_high": 0.3}),
    ({"name": "grpo", "kl_coeff": 0.0, "scale": "batch"}, "grpo", {"scale_rewards": "batch"}),
    ({"name": "grpo", "kl_coeff": 0.0, "scale": "none"}, "grpo", {"scale_rewards": "none"}),
    ({"name": "grpo", "kl_coeff": 0.5, "normalise": "tokens"}, "grpo", {"loss_type": "bnpo", "beta": 0.5}),
    ({"name": "dr_grpo", "constant_length": float(T)}, "grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    ({"name": "dr_grpo", "constant_length": float(T), "kl_coeff": 0.1}, "grpo",
     {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.1}),
    ({"name": "dapo"}, "grpo", {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True}),
    ({"name": "dapo", "mask_cut": False}, "grpo", {"loss_type": "dapo", "epsilon_high": 0.28}),
    ({"name": "dapo", "mask_cut": False, "entropy_bonus": 0.3}, "grpo",
     {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.3, "_entropy_bonus_enabled": True}),
    ({"name": "gspo"}, "grpo", {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
    ({"name": "gspo", "clip_low": 0.05, "clip_high": 0.05, "kl_coeff": 0.1}, "grpo",
     {"importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.05, "beta": 0.1}),
    ({"name": "cispo"}, "grpo", {"loss_type": "cispo", "epsilon_high": 5.0}),
    ({"name": "cispo", "clip_high": 0.1}, "grpo", {"loss_type": "cispo", "epsilon_high": 1.1}),
    ({**PRODUCT, "kl_coeff": 0.05, "kl_in": "reward"}, "rloo", {"beta": 0.05}),
    ({**PRODUCT, "clip_low": 0.4, "scale": "normalised"}, "rloo", {"epsilon_low": 0.4, "normalize_advantages": True}),
]  # fmt: skip


def assert_equal(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], at: Tensor = LOGITS) -> None:
    values, gradients = [], []
    for compute in (ours, theirs):
        logits = at.clone().requires_grad_()
        values.append(compute(logits))
        gradients.append(torch.autograd.grad(values[-1], logits)[0])
    torch.testing.assert_close(*values, atol=1e-5, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    assert gradients[1].abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case[0].values())))
def test_value_and_gradient_are_trls(case: Case) -> None:
    pytest.importorskip("trl")
    choice, name, settings = case
    assert_equal(lambda logits: ours(logits, choice, SCORES), lambda logits: theirs(logits, name, SCORES, settings))


def test_rloos_gradient_is_trls_at_the_first_update_of_a_step() -> None:
    """Its loss is -A log pi; TRL's -A times a ratio that is 1 there: another value, the same gradient."""
    pytest.importorskip("trl")
    gradients = []
    for compute in (lambda logits: ours(logits, "rloo", SCORES), lambda logits: theirs(logits, "rloo", SCORES, {"beta": 0.05})):
        logits = OLD.clone().requires_grad_()
        gradients.append(torch.autograd.grad(compute(logits), logits)[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


def test_a_tied_group_is_left_out_of_dapo_and_gives_trl_no_gradient() -> None:
    """The second prompt's samples have one score. TRL keeps its 19 tokens in the denominator of all 52: the loss is 33 / 52 of ours."""
    pytest.importorskip("trl")
    scores = SCORES.clone()
    scores[N : 2 * N] = 0.5
    tokens = LENGTHS.sum().item(), LENGTHS[N : 2 * N].sum().item()
    assert tokens == (52, 19)
    settings = {"loss_type": "dapo", "epsilon_high": 0.28}
    assert_equal(
        lambda logits: ours(logits, {"name": "dapo", "mask_cut": False}, scores) * 33 / 52,
        lambda logits: theirs(logits, "grpo", scores, settings),
    )


def test_the_recorded_batch_decides_between_algorithms() -> None:
    """Ratios leave the intervals on both sides, and each algorithm that TRL has is compared."""
    ratios = (logps_of(LOGITS) - logps_of(OLD)).exp()[MASK]
    assert ratios.min() < 0.7 < 0.8 < 1.28 < ratios.max()
    sequences = ((logps_of(LOGITS) - logps_of(OLD)).sum(dim=1) / LENGTHS).exp()
    assert sequences.min() < 0.95 < 1.05 < sequences.max()
    compared = {case[0]["name"] for case in CASES}
    assert set(ALGORITHMS) - compared == {
        "reinforce",
        "rloo",
        "reinforce_plus_plus",
        "ppo_clip",
        "policy_gradient",
    }  # of which TRL has none
