"""Steps of online training in the simulated world: through the Lab, by a plain loop, and by TRL's GRPOTrainer, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/online_step.py [--steps 20] [--prompts 16] [--responses 4] [--repeats 3]

The policy and the reward model are those of experiments/sim_rjs.yaml: the policy warmed up, the reward model fitted to 500 pairs. A step
samples, scores by the reward model, and makes one AdamW update on all samples, with scores standardised within each prompt as advantages
(GRPO without a reference, on-policy). The Lab's side is `lab.train_online` into an empty store: loading, metering, FLOPs, steps.jsonl and
the saved model are in its time. The plain loop uses the same sampler and scorer and nothing else of ours: logits of all positions, a mask,
AdamW. TRL samples with `generate`, from prompts of the same tokens, and its reward function is the same scorer.

CPU seconds are those of the process; ratios are medians over the repeats. Goal: the Lab's at most 1.3 times the plain loop's.
"""

import argparse
import copy
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers.trainer_callback import PrinterCallback

from apo_bench.config.load import load_experiment
from apo_bench.config.schema import EngineChoice, Executor, NeuralReward, PolicyModel
from apo_bench.data.task import load_task
from apo_bench.engines import open_engine
from apo_bench.engines.protocol import Items
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.losses import RankingLoss, View
from apo_bench.losses.online_algorithm import Rollouts
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.generate import generate
from apo_bench.models.padding import pad
from apo_bench.models.tokenize import ChatFormat
from apo_bench.package_data import shipped_root
from apo_bench.store import RunStore
from apo_bench.types import Prompt, Response, RewardModel, cut_texts

PAIRS, EPSILON, RATE = 500, 1e-4, 3e-4


@dataclass(frozen=True)
class GroupNormalised:
    """A response's mean log-probability, times its score standardised within its prompt's."""

    reads: ClassVar[Literal["rollouts"]] = "rollouts"
    needs_reference: ClassVar[bool] = False

    def advantages(self, rollouts: Rollouts) -> Tensor:
        return standardised(rollouts.scores)

    def __call__(self, view: View) -> Tensor:
        ratio = (view.logps - view.old_logps).exp()
        return -(view.advantages[:, None, None] * ratio * view.mask).sum(dim=-1).squeeze(1) / view.lengths.squeeze(1)


def standardised(scores: Tensor) -> Tensor:
    """(P, n), by row."""
    return (scores - scores.mean(dim=1, keepdim=True)) / (scores.std(dim=1, keepdim=True) + EPSILON)


@dataclass(frozen=True)
class World:
    """The models in memory, and what a side's turn is given."""

    context: EvaluationContext
    reward_model: RewardModel
    spec: PolicyModel
    reward_spec: NeuralReward
    policy: tuple[Any, Any]
    scorer: tuple[Any, Any]
    prompts: tuple[Prompt, ...]
    steps: int
    n: int
    sampled: dict[str, int] = field(default_factory=dict)  # tokens, by side

    @property
    def prompts_per_step(self) -> int:
        return len(self.prompts) // self.steps

    def scores(self, responses: Sequence[Response]) -> list[float]:
        items = Items.of(responses)
        return rewards.score(*self.scorer, items, self.reward_spec, cut_texts(responses))[0]


def by_lab(world: World, repeat: int) -> None:
    lab = world.context.lab(0)
    size = world.prompts_per_step * world.n
    lab.train_online(
        lab.initial_policy, world.reward_model, GroupNormalised(), steps=world.steps, prompts_per_step=world.prompts_per_step, n=world.n,
        draw=repeat, recipe=world.spec.training.model_copy(update={"batch_size": size, "epochs": 1.0, "learning_rate": RATE}),
    )  # fmt: skip
    world.sampled["Lab"] = int(lab.used["sampled_tokens"])


def by_plain_loop(world: World, repeat: int) -> None:
    model, tokenizer = copy.deepcopy(world.policy[0]), world.policy[1]
    chat, optimizer = ChatFormat.of(tokenizer, world.spec), torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    world.sampled["plain"] = 0
    for step in range(world.steps):
        prompts = world.prompts[step * world.prompts_per_step : (step + 1) * world.prompts_per_step]
        responses, _ = generate(model, tokenizer, prompts, world.n, world.spec.sampling, world.spec, 1000 * repeat + step)
        advantages = standardised(torch.tensor(world.scores(responses)).view(-1, world.n)).flatten()
        starts = [chat.encode_prompt(response.prompt, world.spec.max_prompt_tokens).ids for response in responses]
        ends = [list(response.token_ids or ()) for response in responses]
        ids, attention = pad([start + end for start, end in zip(starts, ends, strict=True)], tokenizer.pad_token_id)
        mask = pad([[0] * len(start) + [1] * len(end) for start, end in zip(starts, ends, strict=True)], 0)[0][:, 1:]
        logits = model.train()(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        logps = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
        ratio = (logps - logps.detach()).exp()
        loss = -((advantages[:, None] * ratio * mask).sum(dim=1) / mask.sum(dim=1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        world.sampled["plain"] += int(mask.sum())


def by_trl(world: World, repeat: int) -> None:
    """All that is not named here is as TRL has it."""
    import datasets

    trl: Any = import_module("trl")
    model, tokenizer = copy.deepcopy(world.policy[0]), copy.deepcopy(world.policy[1])
    chat = ChatFormat.of(tokenizer, world.spec)
    texts = [tokenizer.decode(chat.encode_prompt(prompt, world.spec.max_prompt_tokens).ids) for prompt in world.prompts]
    known = dict(zip(texts, world.prompts, strict=True))
    world.sampled["TRL"] = 0

    def score(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        responses = []
        for text, ids in zip(prompts, completion_ids, strict=True):
            finish = "eos" if ids and ids[-1] == tokenizer.eos_token_id else "length"
            responses.append(Response(known[text], tokenizer.decode(ids, skip_special_tokens=True), len(ids), finish))
            world.sampled["TRL"] += len(ids)
        return world.scores(responses)

    size = world.prompts_per_step * world.n
    arguments = trl.GRPOConfig(
        output_dir=str(world.context.store.run_folder / "trl"), per_device_train_batch_size=size, num_generations=world.n,
        max_steps=world.steps, max_completion_length=world.spec.sampling.max_new_tokens, beta=0.0, loss_type="grpo", learning_rate=RATE,
        lr_scheduler_type="constant", seed=repeat, bf16=False, use_cpu=True, gradient_checkpointing=False, save_strategy="no",
        report_to="none", disable_tqdm=True, logging_steps=1000, temperature=1.0, top_k=0, top_p=1.0,
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"prompt": text} for text in texts])
    trainer = trl.GRPOTrainer(model=model, reward_funcs=score, args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


SIDES: dict[str, Callable[[World, int], None]] = {"Lab": by_lab, "plain": by_plain_loop, "TRL": by_trl}


def timed(side: str, world: World, repeat: int) -> float:
    """CPU seconds of the process."""
    gc.collect()
    started = time.process_time()
    SIDES[side](world, repeat)
    return time.process_time() - started


def opened(file: Path, folder: Path, steps: int, prompts_per_step: int, n: int) -> World:
    experiment = load_experiment(file)
    task = load_task(experiment.task.use, experiment.task.options, base=None)
    context = EvaluationContext(experiment, task, RunStore(folder), open_engine(EngineChoice(), Executor(), folder))
    lab, spec, reward_spec = context.lab(0), context.policy_model, experiment.models.reward
    assert isinstance(reward_spec, NeuralReward)
    reward_model = lab.train_reward_model(lab.pairs(min(PAIRS, len(context.training_data.pairs))), loss=RankingLoss())
    policy = policies.load_policy(folder / "store" / "policies" / context.initial_policy.key)
    scorer = rewards.load_reward_model(folder / "store" / "reward_models" / reward_model.key)
    split = lab.prompts("policy")
    prompts = tuple(split[place % len(split)] for place in range(steps * prompts_per_step))
    return World(context, reward_model, spec, reward_spec, policy, scorer, prompts, steps, n)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, what in (
        ("steps", 20, "of a side's turn"),
        ("prompts", 16, "a step"),
        ("responses", 4, "to each prompt"),
        ("repeats", 3, "turns of each side"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=what)
    parser.add_argument("--experiment", type=Path, default=shipped_root() / "experiments" / "sim_rjs.yaml", help="whose models they are")
    given = parser.parse_args(arguments)
    import datasets

    datasets.disable_progress_bars()
    policies.use_one_thread()
    ratios: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        world = opened(given.experiment, Path(folder), given.steps, given.prompts, given.responses)
        for side in SIDES:  # what the first turn of each imports and compiles is not counted
            timed(side, world, 10_000)
        for repeat in range(given.repeats):
            order = list(SIDES)[repeat % 3 :] + list(SIDES)[: repeat % 3]
            seconds = {side: timed(side, world, repeat) for side in order}
            parts = [f"{side} {seconds[side] / given.steps * 1e3:.0f} ms a step ({world.sampled[side]} tokens)" for side in SIDES]
            print(f"repeat {repeat}: {', '.join(parts)}", flush=True)
            for side in SIDES:
                ratios[side].append(seconds[side] / seconds["plain"])
    print("| | CPU seconds, plain loop = 1 |\n|---|---|")
    for side, values in ratios.items():
        print(f"| {side} | {statistics.median(values):.2f} |")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
