"""Trainers of TRL as arms: each that can be one runs, alone or as a player, and the page says which."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import DOCS, blocks
from safetensors.torch import load_file
from tiny_world import tiny_bench, tiny_lab, tiny_tree

from apo_bench.config.load import load_experiment
from apo_bench.config.plugins import resolve
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.losses import RankingLoss, shipped_algorithm
from apo_bench.models.generate import Generation
from apo_bench.models.tokenize import ChatFormat
from apo_bench.training.trl_trainers import REFUSED, TRAINERS
from apo_bench.types import Prompt

TRL = "baselines/trl_trainer.py@TRLTrainer"
READS = {
    "demonstrations": "demonstrations: chosen sides of human pairs",
    "pairs": "human pairs",
    "unpaired": "sides of human pairs, desirable or not",
    "prompts": "prompts, the arm's reward model",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("trl_arms"))


def arm(trainer: str, **parameters: Any) -> Any:
    args = {"num_generations": 4} if TRAINERS[trainer].group else {}
    return resolve(TRL, {"trainer": trainer, "args": args, **parameters}, base=None)


def weights(bench: EvaluationContext, key: str) -> dict[str, torch.Tensor]:
    return load_file(bench.store.root / "policies" / key / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_that_can_be_an_arm_is_one(bench: EvaluationContext, trainer: str) -> None:
    """32 pairs, or 8 prompts; 16 items an update, of which unpaired ones are two a pair and GRPO's are 4 a prompt."""
    lab = tiny_lab(bench, {"human_pairs": 32})
    arm(trainer, prompts_per_round=8, rounds=2).run(lab)
    form = TRAINERS[trainer]
    updates = {"unpaired": 4, "prompts": 2 if form.group else 1}.get(form.reads, 2)
    assert len(lab.rounds) == 2
    assert lab.used["human_pairs"] == 32
    assert lab.used["policy_updates"] == 2 * updates
    assert lab.used["sampled_responses"] == lab.used["scored_responses"] == 2 * {"prompts": 32 if form.group else 16}.get(form.reads, 0)
    assert (lab.used["rm_updates"] > 0) == (form.reads == "prompts")
    assert lab.used["policy_train_tokens"] > 0
    first, second = (weights(bench, round_.policy.key) for round_ in lab.rounds)
    assert max((first[name] - second[name]).abs().max().item() for name in first) > 1e-4


@pytest.mark.slow
def test_the_dpo_arms_of_trl_and_ours_are_one_arm(bench: EvaluationContext) -> None:
    """16 pairs, so that each of 2 rounds is one update, and no order of batches can differ. A second round of TRL's compares with the
    first's policy, of ours with the initial one, so the first rounds are equal and the second are not."""
    ours, theirs = (tiny_lab(bench, {"human_pairs": 16}) for _ in range(2))
    resolve("baselines/preference.py@Preference", {"rounds": 2}, base=None).run(ours)
    arm("trl.DPOTrainer", rounds=2).run(theirs)
    own, other = ([weights(bench, round_.policy.key) for round_ in lab.rounds] for lab in (ours, theirs))
    for name in own[0]:
        torch.testing.assert_close(own[0][name], other[0][name], atol=1e-5, rtol=1e-4)
    assert max((own[1][name] - other[1][name]).abs().max().item() for name in own[1]) > 1e-4
    for unit in ("human_pairs", "policy_updates", "policy_train_tokens"):
        assert ours.used[unit] == theirs.used[unit]


# --- GRPO of TRL and ours -----------------------------------------------------------------------------------------------------

OURS, N = "baselines/online.py@Online", 4
GRPO = {"loss_type": "grpo", "num_generations": N, "beta": 0.04, "epsilon": 0.2, "scale_rewards": "group", "use_bias_correction_kl": False}


@pytest.mark.slow
def test_the_grpo_arms_of_trl_and_ours_agree_within_sampling_noise(bench: EvaluationContext) -> None:
    """The same split once, 4 prompts x 4 an update. Over seeds, the difference of the rewards of fresh samples is within 3 standard errors
    of 0, and both arms raise the reward by more. Each seed has one reward model, which both arms fit."""
    steps, seeds = len(bench.training_data.prompts["policy"]) // 4, range(6)
    rewards = []
    for seed in seeds:
        arms = [tiny_lab(bench, {"human_pairs": 32}, seed) for _ in range(2)]
        ours = {"algorithm": "grpo", "rounds": 1, "steps_per_round": steps, "prompts_per_step": 4, "samples_per_prompt": N}
        resolve(OURS, ours, base=None).run(arms[0])
        resolve(TRL, {"trainer": "trl.GRPOTrainer", "args": GRPO, "prompts_per_round": 4 * steps}, base=None).run(arms[1])
        for unit in ("human_pairs", "rm_updates", "sampled_responses", "scored_responses", "policy_updates"):
            assert arms[0].used[unit] == arms[1].used[unit] > 0
        judge = tiny_lab(bench, {}, seed)
        (own,), (other,) = (lab.rounds for lab in arms)
        assert own.reward_model == other.reward_model is not None
        groups = [judge.score(own.reward_model, judge.sample(policy, judge.prompts(), n=2, draw=9)) for policy in (
            judge.initial_policy, own.policy, other.policy)]  # fmt: skip
        rewards.append([np.mean([group.scores for group in each]) for each in groups])
    before, own, other = np.array(rewards).T

    def z(difference: Any) -> float:
        return float(difference.mean() / (difference.std(ddof=1) / np.sqrt(len(seeds))))

    assert abs(z(own - other)) < 3 < min(z(own - before), z(other - before))


@pytest.mark.slow
def test_on_the_same_samples_grpo_of_trl_and_ours_give_the_same_policy(bench: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 prompts x 4, two updates on all of them: at the second, ratios are clipped and the KL is not 0. TRL gets the samples that ours
    drew; a mean over 16 responses does not know their order."""
    ours, theirs = tiny_lab(bench), tiny_lab(bench)
    model = ours.train_reward_model(ours.pairs(32), loss=RankingLoss())
    sampled: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    joined = Generation.joined

    def recorded(self: Generation, batches: Any) -> Any:
        responses, counts = joined(self, batches)
        for place, response in enumerate(responses):
            sampled.setdefault(tuple(self.encoded[place // N].ids), []).append(response.token_ids or ())
        return responses, counts

    monkeypatch.setattr(Generation, "joined", recorded)
    own = ours.train_online(
        ours.initial_policy, model, shipped_algorithm("grpo"), steps=1, prompts_per_step=4, n=N, epochs=2.0, reference=ours.initial_policy
    )
    (row,) = (json.loads(line) for line in (bench.store.root / "policies" / own.key / "steps.jsonl").read_text().splitlines())
    assert row["updates"] == 2
    assert row["clip_share"] > 0
    prompts = [prompt for prompt in theirs.prompts() if tuple(encoded(bench, prompt)) in sampled]

    def replayed(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        left = {ids: iter(samples) for ids, samples in sampled.items()}
        ends = [torch.tensor(next(left[tuple(ids[mask > 0].tolist())])) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return torch.cat([input_ids, torch.nn.utils.rnn.pad_sequence(ends, batch_first=True)], dim=1)

    monkeypatch.setattr("transformers.generation.utils.GenerationMixin.generate", replayed)
    other = theirs.train_with_trl(theirs.initial_policy, prompts, "trl.GRPOTrainer", args={**GRPO, "num_iterations": 2}, reward_model=model)
    own_weights, other_weights, start = (weights(bench, policy.key) for policy in (own, other, bench.initial_policy))
    for name in own_weights:
        torch.testing.assert_close(own_weights[name], other_weights[name], atol=1e-5, rtol=1e-4)
    assert max((own_weights[name] - start[name]).abs().max().item() for name in start) > 1e-3
    for unit in ("sampled_responses", "sampled_tokens", "scored_responses", "policy_updates", "policy_train_tokens"):
        assert ours.used[unit] == theirs.used[unit] > 0


def encoded(bench: EvaluationContext, prompt: Prompt) -> list[int]:
    """A prompt's ids, as the policy reads them."""
    assert isinstance(bench.engine, TransformersEngine)
    settings = bench.experiment.models.policy
    _, tokenizer = bench.engine.models.policy(bench.initial_policy, settings)
    return ChatFormat.of(tokenizer, settings).encode_prompt(prompt, settings.max_prompt_tokens).ids


@pytest.mark.slow
def test_an_online_trainer_is_a_player(bench: EvaluationContext) -> None:
    """In APO: golden responses and the policy's samples train the reward model, which the trainer then pleases."""
    player = {"use": TRL, "trainer": "trl.GRPOTrainer", "args": {"num_generations": 4}, "prompts_per_round": 8}
    lab = tiny_lab(bench, {"human_pairs": 16, "golden_responses": 4})
    resolve("apo_bench.apo@APO", {"rounds": 1, "samples_per_prompt": 2, "player": player}, base=None).run(lab)
    assert len(lab.rounds) == 1
    assert lab.used["golden_responses"] == 4
    assert lab.used["sampled_responses"] == 4 * 2 + 8 * 4


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"trainer": "trl.GRPOTrainr"}, "no trainer 'trl.GRPOTrainr', did you mean trl.GRPOTrainer?"),
        ({"trainer": "trl.RewardTrainer"}, "trainer: trl.RewardTrainer: it trains a reward model"),
        ({"trainer": "trl.DPOTrainer", "args": {"max_steps": 5}}, "args.max_steps: not an arm's to decide: models.policy.training.epochs"),
    ],
)
def test_check_refuses_what_cannot_be(parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        resolve(TRL, parameters, base=None)
    assert line in str(error.value)


def test_the_arms_of_the_page_are_valid(tmp_path: Path) -> None:
    """In place of a small experiment's own."""
    import yaml

    (block,) = [block for block in blocks(DOCS / "trl.md") if block.language == "yaml"]
    tree = tiny_tree()
    tree["arms"] = yaml.safe_load(block.text)["arms"]
    tree["compare"] = {"primary": [{"a": "trl_grpo", "b": "trl_dpo"}]}
    (tmp_path / "page.yaml").write_text(json.dumps(tree))
    experiment = load_experiment(tmp_path / "page.yaml")
    methods = [resolve(each.use, each.parameters, base=tmp_path) for each in experiment.arms.values()]
    assert len(methods) == 3


def test_the_table_of_the_page_is_what_the_code_knows() -> None:
    rows = [f"| `{name}` | {READS[form.reads]} | yes |" for name, form in TRAINERS.items()]
    rows += [f"| `{name}` | | no: {why} |" for name, why in REFUSED.items()]
    assert "\n".join(rows) in (DOCS / "trl.md").read_text(encoding="utf-8")
