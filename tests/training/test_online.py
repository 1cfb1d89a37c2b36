"""The online loop against plain torch: what a step samples, trains on and writes down, and that a killed one ends with the same bytes."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from online_algorithms import Reinforce, ReinforceToReference
from tiny_tokenizers import WORDS, prompt
from torch import Tensor
from training_items import LLAMA, SPEC, Weights, apart, sentences

from apo_bench.config.schema import Lora, NgramReward, Recipe, Sampling
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.errors import InputError
from apo_bench.losses import DPOLoss, View
from apo_bench.losses.online_algorithm import OnlineAlgorithm, Rollouts
from apo_bench.models import policy as policies
from apo_bench.models.ngram import NgramRewardModel
from apo_bench.store import Artifact, RunStore, scratch_of
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.training.online import Online
from apo_bench.training.training_spec import Counts, OnlineTraining
from apo_bench.types import Pair, Policy, Response, RewardModel

pytestmark = pytest.mark.slow

PLAIN = Recipe(learning_rate=0.1, batch_size=16, max_grad_norm=1e9, optimizer="sgd")
PROMPTS = tuple(prompt(text) for text in sentences(12, 7))


@dataclass(frozen=True)
class Step:
    """What an online training left: the model's weights, what was sampled, rows of steps.jsonl, counts."""

    weights: Weights
    samples: list[Response]
    rows: list[dict[str, Any]]
    counts: Counts


def word_count(responses: Sequence[Response]) -> list[float]:
    return [float(len(response.text.split())) for response in responses]


def train(
    algorithm: Any, folder: Path, *, recipe: Recipe = PLAIN, steps: int = 1, prompts: int = 4, n: int = 2,
    score: Callable[[Sequence[Response]], list[float]] = word_count, seed: int = 0, **changes: Any,
) -> Step:  # fmt: skip
    model, tokenizer = policies.new_policy({**LLAMA, "initializer_range": 0.3}, WORDS, seed=0)
    reference, _ = policies.new_policy({**LLAMA, "initializer_range": 0.3}, WORDS, seed=1)
    job = OnlineTraining(
        Policy("start"), RewardModel("words"), algorithm, Policy("reference") if algorithm.needs_reference else None,
        PROMPTS[: steps * prompts], steps, n, SPEC, NgramReward(), recipe, Sampling(max_new_tokens=5), seed,
    )  # fmt: skip
    sampled: list[Response] = []

    def scored(responses: Sequence[Response]) -> tuple[list[float], Counts]:
        sampled.extend(responses)
        return score(responses), {"scored_responses": len(responses)}

    online = Online(
        replace(job, **changes), model, tokenizer, reference.eval() if algorithm.needs_reference else None, scored, Checkpoints(folder)
    )
    counts, text = online.train()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Step(weights, sampled, [json.loads(line) for line in text.splitlines()], counts)


def start() -> Any:
    return policies.new_policy({**LLAMA, "initializer_range": 0.3}, WORDS, seed=0)


def logps(model: Any, tokenizer: Any, response: Response) -> Tensor:
    """Log-probability of each sampled token, by a plain forward pass."""
    from apo_bench.models.tokenize import ChatFormat

    ids = ChatFormat.of(tokenizer, SPEC).encode_prompt(response.prompt, SPEC.max_prompt_tokens).ids
    end = list(response.token_ids or ())
    rows = model(torch.tensor([ids + end])).logits[0].log_softmax(dim=-1)
    return torch.stack([rows[len(ids) + place - 1, token] for place, token in enumerate(end)])


def after(loss_of: Callable[[Any, Any], Tensor], rate: float = 0.1) -> Weights:
    """The start's weights after a step of plain gradient descent."""
    model, tokenizer = start()
    loss_of(model.eval(), tokenizer).backward()
    return {
        name: value.detach() - (0 if value.grad is None else rate * value.grad)
        for name, value in model.state_dict(keep_vars=True).items()
    }  # fmt: skip


# --- an update ----------------------------------------------------------------------------------------------------------------


def test_a_step_of_reinforce_is_a_step_of_plain_torch(tmp_path: Path) -> None:
    """The mean over 8 samples of -(score - mean of its two) x log-probability, of the ids that were sampled."""
    step = train(Reinforce(), tmp_path)
    scores = torch.tensor(word_count(step.samples)).view(4, 2)
    advantages = (scores - scores.mean(dim=1, keepdim=True)).flatten()
    assert advantages.abs().max() > 0

    def loss_of(model: Any, tokenizer: Any) -> Tensor:
        terms = [-advantage * logps(model, tokenizer, response).sum() for advantage, response in zip(advantages, step.samples, strict=True)]
        return torch.stack(terms).mean()

    expected = after(loss_of)
    assert apart(step.weights, expected) < 1e-6
    assert apart(step.weights, start()[0].state_dict()) > 1e-3
    [row] = step.rows
    model, tokenizer = start()
    with torch.no_grad():
        each = [logps(model.eval(), tokenizer, response) for response in step.samples]
    tokens = sum(len(values) for values in each)
    assert row["loss"] == pytest.approx(loss_of(model, tokenizer).item(), abs=1e-5)
    assert row["entropy"] == pytest.approx(-sum(values.sum().item() for values in each) / tokens, rel=1e-5)
    assert (row["reward"], row["reward_sd"]) == (pytest.approx(scores.mean().item()), pytest.approx(scores.std(unbiased=False).item()))
    assert (row["sampled_tokens"], row["length"]) == (tokens, tokens / 8)
    assert row["cut_share"] == sum(response.finish == "length" for response in step.samples) / 8
    assert (row["kl"], row["clip_share"], row["learning_rate"]) == (None, None, 0.1)
    gradient = torch.cat([(before - expected[name]).flatten() / 0.1 for name, before in start()[0].state_dict().items()])
    assert row["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-3)


@dataclass(frozen=True)
class ByTokens(ReinforceToReference):
    """Divided by the update's response tokens; samples that did not end are left out."""

    denominator: ClassVar[str] = "tokens"

    def advantages(self, rollouts: Rollouts) -> Tensor:
        return torch.where(rollouts.finished, super().advantages(rollouts), math.nan)


@pytest.mark.parametrize("algorithm", [Reinforce(), ReinforceToReference(), ByTokens(), DPOLoss()], ids=lambda each: type(each).__name__)
def test_micro_batches_change_nothing(algorithm: Any, tmp_path: Path) -> None:
    """24 samples (or 8 pairs at most), updates of 8, two passes: once whole, once in micro-batches of 2."""
    recipe = PLAIN.model_copy(update={"batch_size": 8, "epochs": 2.0, "optimizer": "adamw_torch", "learning_rate": 1e-3})
    whole, parts = (
        train(algorithm, tmp_path / str(micro), prompts=8, n=3, recipe=recipe.model_copy(update={"micro_batch_size": micro}))
        for micro in (None, 2)
    )
    assert apart(whole.weights, parts.weights) < 2e-5
    assert apart(whole.weights, start()[0].state_dict()) > 1e-3
    items = whole.rows[0]["trained_samples"] // (2 if algorithm.reads == "pairs" else 1)
    assert whole.rows[0]["updates"] == parts.rows[0]["updates"] == 2 * math.ceil(items / 8)
    assert whole.counts == {**parts.counts, "flops": pytest.approx(parts.counts["flops"])}


def test_samples_without_an_advantage_leave_the_update(tmp_path: Path) -> None:
    """The denominator is the response tokens of those that ended; of the others nothing is read."""
    step = train(ByTokens(), tmp_path)
    kept = [response for response in step.samples if response.finish != "length"]
    assert 0 < len(kept) < 8
    reference, tokenizer = policies.new_policy({**LLAMA, "initializer_range": 0.3}, WORDS, seed=1)
    model, _ = start()
    with torch.no_grad():
        ratios = [(logps(model, tokenizer, each) - logps(reference, tokenizer, each)).sum().item() for each in step.samples]
    advantages = [score - 0.1 * ratio for score, ratio in zip(word_count(step.samples), ratios, strict=True)]

    def loss_of(model: Any, tokenizer: Any) -> Tensor:
        terms = [
            -advantage * logps(model, tokenizer, response).sum()
            for advantage, response in zip(advantages, step.samples, strict=True)
            if response in kept
        ]
        return torch.stack(terms).sum() / sum(response.tokens for response in kept)

    assert apart(step.weights, after(loss_of)) < 1e-6
    [row] = step.rows
    assert row["trained_samples"] == len(kept)
    assert row["kl"] == pytest.approx(sum(ratios) / 8, rel=1e-4)


@dataclass(frozen=True)
class Nothing(Reinforce):
    """Leaves every sample out whose score is below `least`."""

    least: float = math.inf

    def advantages(self, rollouts: Rollouts) -> Tensor:
        return torch.where(rollouts.scores < self.least, math.nan, 1.0)


def test_a_step_that_trains_on_nothing_leaves_the_weights_and_the_schedule_goes_on(tmp_path: Path) -> None:
    """A linear schedule over 3 updates: 0.1, 0.0667, 0.0333, whether or not a step before had one."""
    recipe = PLAIN.model_copy(update={"schedule": "linear"})
    scores = iter([[0.0] * 8, [1.0] * 8, [0.0] * 8])
    some = train(Nothing(least=0.5), tmp_path, steps=3, recipe=recipe, score=lambda _: next(scores))
    assert [row["updates"] for row in some.rows] == [0, 1, 0]
    assert [row["learning_rate"] for row in some.rows] == [None, pytest.approx(0.2 / 3), None]
    assert [row["loss"] is None for row in some.rows] == [True, False, True]
    none = train(Nothing(), tmp_path, steps=2)
    assert apart(none.weights, start()[0].state_dict()) == 0
    assert none.counts["policy_updates"] == none.counts["policy_train_tokens"] == 0


@dataclass(frozen=True)
class Watched(Reinforce):
    """Keeps what its updates saw in `seen`, which is no part of what it is."""

    seen: ClassVar[list[View]] = []

    def advantages(self, rollouts: Rollouts) -> Tensor:
        return torch.arange(rollouts.mask.numel(), dtype=torch.float32).view(rollouts.mask.shape) * rollouts.mask

    def __call__(self, view: View) -> Tensor:
        self.seen.append(view)
        return -(view.advantages * (view.logps - view.old_logps).exp() * view.mask).sum(dim=-1).squeeze(1) / 100

    def clipped(self, view: View) -> Tensor:
        return ((view.logps - view.old_logps).abs() > 1e-6).float()


def test_updates_after_a_steps_first_move_away_from_the_policy_that_sampled(tmp_path: Path) -> None:
    """Two passes in whole batches: the ratio is 1 in the first, and not in the second; all its tokens count as clipped, half of all."""
    Watched.seen.clear()
    step = train(Watched(), tmp_path, recipe=PLAIN.model_copy(update={"epochs": 2.0}))
    first, second = Watched.seen
    assert (first.logps - first.old_logps).abs().max() < 1e-5
    assert (second.logps - second.old_logps).abs().max() > 1e-3
    tokens = sum(response.tokens for response in step.samples)
    assert step.rows[0]["clip_share"] == pytest.approx(0.5, abs=1 / tokens)


def test_advantages_of_tokens_stand_where_the_tokens_do(tmp_path: Path) -> None:
    """Token t of response i of a step has advantage i x T + t, T being the longest response's tokens."""
    Watched.seen.clear()
    step = train(Watched(), tmp_path)
    [view] = Watched.seen
    longest = max(response.tokens for response in step.samples)
    rows = sorted(row[mask.bool()].tolist() for row, mask in zip(view.advantages[:, 0], view.mask[:, 0], strict=True))
    assert rows == [[float(place * longest + t) for t in range(response.tokens)] for place, response in enumerate(step.samples)]
    assert (view.advantages * (1 - view.mask)).abs().max() == 0


# --- pairs --------------------------------------------------------------------------------------------------------------------


def test_a_loss_of_pairs_reads_the_best_sample_over_the_worst(tmp_path: Path) -> None:
    """By hand from the samples' scores; a prompt whose samples tie gives no pair. DPO's update of the rest, in plain torch."""

    def score(responses: Sequence[Response]) -> list[float]:
        return [0.0, 0.0, 0.0, *(float(place) for place in range(9))][: len(responses)]

    step = train(DPOLoss(0.5), tmp_path, n=3, score=score)
    groups = [step.samples[start : start + 3] for start in (3, 6, 9)]
    pairs = [(group[2], group[0]) for group in groups if group[2].text != group[0].text]
    assert len(pairs) == 3
    reference, _ = policies.new_policy({**LLAMA, "initializer_range": 0.3}, WORDS, seed=1)

    def loss_of(model: Any, tokenizer: Any) -> Tensor:
        def ratio(response: Response) -> Tensor:
            with torch.no_grad():
                base = logps(reference, tokenizer, response).sum()
            return logps(model, tokenizer, response).sum() - base

        terms = [-torch.nn.functional.logsigmoid(0.5 * (ratio(best) - ratio(worst))) for best, worst in pairs]
        return torch.stack(terms).mean()

    assert apart(step.weights, after(loss_of)) < 1e-6
    [row] = step.rows
    assert (row["samples"], row["trained_samples"], row["updates"]) == (12, 6, 1)
    model, tokenizer = start()
    with torch.no_grad():
        ratios = [(logps(model, tokenizer, side) - logps(reference, tokenizer, side)).sum().item() for pair in pairs for side in pair]
    assert row["kl"] == pytest.approx(sum(ratios) / 6, rel=1e-4)


# --- what ends it -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steep(Reinforce):
    def __call__(self, view: View) -> Tensor:
        return super().__call__(view) * 1e6


def test_weights_that_are_not_finite_end_it_with_step_and_update(tmp_path: Path) -> None:
    recipe = PLAIN.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(InputError, match=r"^policy: after update 1 of step 1 of 3, \S+ is not finite; the fit has diverged[^\n]*$"):
        train(Steep(), tmp_path, steps=3, recipe=recipe)


@dataclass(frozen=True)
class Undefined(Reinforce):
    def __call__(self, view: View) -> Tensor:
        return super().__call__(view) * math.inf


def test_a_loss_that_is_not_finite_ends_it_with_step_and_update(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^policy: the loss of update 1 of step 1 of 1 is (nan|-?inf); the fit has diverged[^\n]*$"):
        train(Undefined(), tmp_path)


@dataclass(frozen=True)
class Misshapen(Reinforce):
    def advantages(self, rollouts: Rollouts) -> Tensor:
        return rollouts.scores.flatten()


def test_advantages_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^Misshapen: advantages of shape \(8,\); they are \(4, 2\), or of tokens \(4, 2, \d\)$"):
        train(Misshapen(), tmp_path)


def test_algorithms_are_what_the_protocol_says() -> None:
    assert isinstance(Reinforce(), OnlineAlgorithm)
    assert not isinstance(DPOLoss(), OnlineAlgorithm)


# --- precision ----------------------------------------------------------------------------------------------------------------


def test_bf16_and_recomputed_activations_train(tmp_path: Path) -> None:
    changes = {"precision": "bf16", "gradient_checkpointing": True, "learning_rate": 0.01}
    plain = train(ReinforceToReference(), tmp_path / "plain", recipe=PLAIN.model_copy(update={"learning_rate": 0.01}))
    step = train(ReinforceToReference(), tmp_path / "bf16", recipe=PLAIN.model_copy(update=changes))
    assert all(weight.dtype == torch.float32 for weight in step.weights.values())
    assert 0 < apart(plain.weights, step.weights) < 0.3
    recomputed = train(
        ReinforceToReference(), tmp_path / "again", recipe=PLAIN.model_copy(update={**changes, "precision": "fp32"})
    )  # fmt: skip
    assert apart(plain.weights, recomputed.weights) < 1e-6


# --- checkpoints --------------------------------------------------------------------------------------------------------------

DROPOUT = {**LLAMA, "attention_dropout": 0.2}
ADAMW = {"optimizer": "adamw_torch_fused"}
KILLED: dict[str, tuple[Any, dict[str, Any], int, int]] = {  # algorithm, changes of the recipe, the pass it dies in, the steps done then
    "all weights": (ReinforceToReference(), {**ADAMW, "epochs": 2.0, "schedule": "cosine", "warmup_steps": 2}, 14, 3),
    "adapters": (Reinforce(), {**ADAMW, "lora": Lora(rank=2)}, 14, 3),
    "before a checkpoint": (Reinforce(), {}, 1, 0),
}  # fmt: skip


def dying(algorithm: Any, passes: int) -> Any:
    """The same algorithm; its process is killed in one of its passes."""
    left = iter(range(passes - 1, -1, -1))

    def call(self: Any, view: View) -> Tensor:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return type(algorithm).__call__(self, view)

    return type(type(algorithm).__name__, (type(algorithm),), {"__call__": call})()


def artifact(folder: Path, name: str, algorithm: Any) -> Artifact:
    """Six steps of 4 x 2 samples in batches of 4, two updates a pass, as an artifact of a store with a checkpoint after every step."""
    _, changes, _, _ = KILLED[name]
    start, engine = Policy(str(folder / "start")), TransformersEngine(folder, checkpoint_s=0)
    recipe = PLAIN.model_copy(
        update={"learning_rate": 1e-2, "batch_size": 4, "micro_batch_size": 2 if "adapters" in name else None, **changes}
    )
    job = OnlineTraining(
        start, RewardModel(str(folder / "words")), algorithm, start if algorithm.needs_reference else None,
        PROMPTS + PROMPTS, 6, 2, SPEC, NgramReward(per_axis=False), recipe, Sampling(max_new_tokens=5), 3,
    )  # fmt: skip

    def build(into: Path) -> Counts:
        return engine.train_online(job, into, lambda stage: None).counts

    return RunStore(folder).artifact("policies", {"name": name}, build)


def prepared(folder: Path) -> Path:
    policies.save_model(*policies.new_policy(DROPOUT, WORDS, seed=0), folder / "start")
    sides = zip(sentences(30, 1), sentences(30, 2), strict=True)
    pairs = [Pair(prompt("how"), chosen, rejected) for chosen, rejected in sides]
    NgramRewardModel.fit(pairs, None, NgramReward(per_axis=False), None).save(folder / "words")
    return folder


def die_in_all(folder: Path) -> None:
    """Train each in a process of its own, which is killed."""
    torch.set_num_threads(1)
    for name, (algorithm, _, passes, _) in KILLED.items():
        if (child := os.fork()) == 0:
            artifact(folder, name, dying(algorithm, passes))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which every online training was killed."""
    folder = prepared(tmp_path_factory.mktemp("killed"))
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        sys.path[:0] = sys.argv[1].split(":")
        from test_online import die_in_all
        die_in_all(Path(sys.argv[2]))
    """)
    subprocess.run([sys.executable, "-c", script, ":".join(sys.path), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_training_goes_on_to_the_same_bytes(killed: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    algorithm, _, _, done = KILLED[name]
    resumed = artifact(killed, name, algorithm)
    text = capsys.readouterr().out
    assert (f"checkpoint-{done}: resuming from this checkpoint" in text) if done else ("resuming" not in text)
    os.symlink(killed / "start", tmp_path / "start")
    os.symlink(killed / "words", tmp_path / "words")
    undisturbed = artifact(tmp_path, name, algorithm)
    assert resumed.counts == undisturbed.counts
    weights = "adapter_model.safetensors" if name == "adapters" else "model.safetensors"
    for file in (weights, "steps.jsonl"):
        assert (resumed.folder / file).read_bytes() == (undisturbed.folder / file).read_bytes()
    assert len((resumed.folder / "steps.jsonl").read_text().splitlines()) == 6
    assert not scratch_of(resumed.folder).exists()
