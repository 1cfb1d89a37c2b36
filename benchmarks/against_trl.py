"""A round of rejection sampling and one of DPO against TRL, stage by stage, in turns within one process.

    OMP_NUM_THREADS=1 python benchmarks/against_trl.py POLICY REWARD_BODY HH.jsonl [HH.jsonl ...] [--repeats 3]

POLICY is the folder of a causal model, REWARD_BODY that of an encoder, the files are as the task hh reads them. A round without evaluation:
train a reward model on pairs, sample prompts, score the samples, train the policy on the best one of each prompt (SFT) or on best against
worst (DPO). TRL's side is RewardTrainer, `generate(num_return_sequences=n)` in one batch, one pass of the classifier over all samples as
GRPOTrainer makes, SFTTrainer and DPOTrainer.

The same on both sides: weights, texts, batch size, updates, learning rate and schedule, fp32, no dropout, no gradient checkpointing, one
torch thread. Otherwise both are as they come: TRL shuffles, here items of like length share a batch. Models lie in memory when a stage
begins; tokenising, trainers' set-up and the reference's pass are in its time. --trl-checkpointing leaves TRL its default.

First, both sides make two updates on one small batch, and the losses are compared. CPU seconds are those of the process, medians over the
repeats; ratios are medians of the ratios of each repeat. Target: at most half of TRL's CPU seconds a round.
"""

import argparse
import copy
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from sampling_speed import plain
from transformers.trainer_callback import PrinterCallback

from apo_bench.config.schema import NeuralReward, PolicyModel, Recipe, Sampling
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.losses import DPOLoss, RankingLoss, SFTLoss
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.generate import generate
from apo_bench.models.output_layer import is_recognised
from apo_bench.models.tokenize import ChatFormat
from apo_bench.training import encoding
from apo_bench.training.trainer import fit
from apo_bench.types import Demonstration, Pair, Prompt

T = TypeVar("T")
Losses = tuple[float, ...]
CHECKED = 2  # items of the batch whose losses are compared
STAGES = ("reward model", "sampling", "scoring", "RJS training", "DPO training")


@dataclass(frozen=True)
class Models:
    """Untrained models and how they are used. `folder` is TRL's to write into."""

    policy: Any
    tokenizer: Any
    spec: PolicyModel
    reward_model: Any
    reward_tokenizer: Any
    reward_spec: NeuralReward
    folder: Path
    checkpointing: bool


# --- ours ---------------------------------------------------------------------------------------------------------------------------


def own_reward_model(models: Models, model: Any, pairs: Sequence[Pair], recipe: Recipe) -> Losses:
    tokenizer = models.reward_tokenizer
    items = rewards.pair_items(model, tokenizer, pairs, models.reward_spec)
    collate = partial(rewards.collate, pad_id=tokenizer.pad_token_id)
    return fit(model, items, collate, partial(rewards.loss_terms, loss=RankingLoss()), recipe, 0)[1].losses


def own_policy(models: Models, model: Any, pairs: Sequence[Pair], recipe: Recipe, loss: SFTLoss | DPOLoss) -> Losses:
    pad_id = models.tokenizer.pad_token_id
    data = [Demonstration(pair.prompt, pair.chosen) for pair in pairs] if isinstance(loss, SFTLoss) else pairs
    items = encoding.encode_items(models.tokenizer, data, loss, models.spec)
    if loss.needs_reference:
        logps = encoding.response_logps(model, items, pad_id, recipe.items_per_pass)
        items = [{**item, "reference_logps": rows} for item, rows in zip(items, logps, strict=True)]
    terms = partial(encoding.loss_terms, loss=loss, recognised=is_recognised(model))
    return fit(model, items, partial(encoding.collate, pad_id=pad_id), terms, recipe, 0)[1].losses


def own_scores(models: Models, model: Any, items: Sequence[tuple[Prompt, str]]) -> list[float]:
    return rewards.score(model, models.reward_tokenizer, items, models.reward_spec)[0]


# --- TRL's --------------------------------------------------------------------------------------------------------------------------


def trl_fit(models: Models, kind: str, model: Any, rows: list[dict[str, Any]], recipe: Recipe, tokenizer: Any, **more: Any) -> Losses:
    """Train with the trainer of a kind: Reward, SFT or DPO. Everything that is not named here is as TRL has it."""
    import datasets
    import trl

    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(models.folder), per_device_train_batch_size=recipe.batch_size, num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate, lr_scheduler_type=recipe.schedule, gradient_checkpointing=models.checkpointing,
        bf16=False, use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, **more
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return tuple(row["loss"] for row in trainer.state.log_history if "loss" in row)


def trl_reward_model(models: Models, model: Any, pairs: Sequence[Pair], recipe: Recipe) -> Losses:
    """From token ids: RewardTrainer ends texts with an end-of-sequence token, which encoders do not have."""
    names = ("chosen_ids", "rejected_ids")
    sides = [item["sides"] for item in rewards.pair_items(model, models.reward_tokenizer, pairs, models.reward_spec)]
    rows: list[dict[str, Any]] = [dict(zip(names, pair, strict=True)) for pair in sides]
    return trl_fit(models, "Reward", model, rows, recipe, models.reward_tokenizer)


def trl_policy(models: Models, model: Any, pairs: Sequence[Pair], recipe: Recipe, kind: str, **more: Any) -> Losses:
    prompts = [models.tokenizer.decode(ChatFormat(models.tokenizer).encode_prompt(pair.prompt, sys.maxsize).ids) for pair in pairs]
    space = "" if models.tokenizer.chat_template else " "
    names = {"completion": "chosen"} if kind == "SFT" else {"chosen": "chosen", "rejected": "rejected"}
    rows = [
        {"prompt": prompt, **{name: space + getattr(pair, side) for name, side in names.items()}}
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]
    return trl_fit(models, kind, model, rows, recipe, models.tokenizer, **more)


def trl_scores(models: Models, model: Any, items: Sequence[tuple[Prompt, str]]) -> list[float]:
    tokenizer, spec = models.reward_tokenizer, models.reward_spec
    ids = [encoded.ids for encoded in rewards.encode_texts(tokenizer, items, spec, {})]
    batch = tokenizer.pad({"input_ids": ids}, padding=True, padding_side="right", return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**batch).logits[:, 0].tolist()


# --- in turns -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seconds:
    """CPU and wall seconds of one stage."""

    cpu: float
    wall: float


def timed(work: Callable[[], T]) -> tuple[T, Seconds]:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int) -> tuple[tuple[Any, Any], tuple[Seconds, Seconds]]:
    """Results and seconds, ours first; who begins changes from one repeat to the next."""
    if repeat % 2:
        (second, its_seconds), (first, seconds) = timed(theirs), timed(ours)
    else:
        (first, seconds), (second, its_seconds) = timed(ours), timed(theirs)
    return (first, second), (seconds, its_seconds)


def differences(models: Models, pairs: Sequence[Pair]) -> dict[str, float]:
    """The largest difference of a loss, over two updates on a batch of pairs."""
    recipe = models.spec.training.model_copy(update={"batch_size": len(pairs), "epochs": 2})
    runs: dict[str, tuple[Losses, Losses]] = {
        "reward model": (
            own_reward_model(models, copy.deepcopy(models.reward_model), pairs, recipe),
            trl_reward_model(models, copy.deepcopy(models.reward_model), pairs, recipe),
        ),
        "SFT": (
            own_policy(models, copy.deepcopy(models.policy), pairs, recipe, SFTLoss()),
            trl_policy(models, copy.deepcopy(models.policy), pairs, recipe, "SFT"),
        ),
        "DPO": (
            own_policy(models, copy.deepcopy(models.policy), pairs, recipe, DPOLoss()),
            trl_policy(models, copy.deepcopy(models.policy), pairs, recipe, "DPO", ref_model=copy.deepcopy(models.policy)),
        ),
    }
    return {name: max(abs(a - b) for a, b in zip(*losses, strict=True)) for name, losses in runs.items()}


def rounds(models: Models, pairs: Sequence[Pair], prompts: Sequence[Prompt], n: int, repeat: int) -> dict[str, tuple[Seconds, Seconds]]:
    """Seconds of each stage, ours and TRL's. Both sides go on with the samples and scores that are ours."""
    seconds: dict[str, tuple[Seconds, Seconds]] = {}
    recipe, sampling = models.spec.training, models.spec.sampling
    model, other = copy.deepcopy(models.reward_model), copy.deepcopy(models.reward_model)
    _, seconds["reward model"] = in_turns(
        lambda: own_reward_model(models, model, pairs, models.reward_spec.training),
        lambda: trl_reward_model(models, other, pairs, models.reward_spec.training),
        repeat,
    )
    (sampled, tokens), seconds["sampling"] = in_turns(
        lambda: generate(models.policy, models.tokenizer, prompts, n, sampling, models.spec, repeat),
        lambda: plain(models.policy, models.tokenizer, list(prompts), n, models.spec, repeat),
        repeat,
    )
    items = [(response.prompt, response.text) for response in sampled[0]]
    (scores, other_scores), seconds["scoring"] = in_turns(
        lambda: own_scores(models, model, items), lambda: trl_scores(models, model, items), repeat
    )
    ranked = [sorted(range(start, start + n), key=lambda place: scores[place]) for start in range(0, len(items), n)]
    chosen = [Pair(items[places[0]][0], items[places[-1]][1], items[places[0]][1], "best_over_worst") for places in ranked]
    for stage, loss, kind in (("RJS training", SFTLoss(), "SFT"), ("DPO training", DPOLoss(), "DPO")):
        model, other = copy.deepcopy(models.policy), copy.deepcopy(models.policy)
        reference = {"ref_model": copy.deepcopy(models.policy)} if loss.needs_reference else {}
        _, seconds[stage] = in_turns(
            lambda: own_policy(models, model, chosen, recipe, loss),  # noqa: B023 (called before the next turn)
            lambda: trl_policy(models, other, chosen, recipe, kind, **reference),  # noqa: B023
            repeat,
        )
    apart = max(abs(a - b) for a, b in zip(scores, other_scores, strict=True))
    parts = [f"{stage} {ours.cpu:.1f}/{theirs.cpu:.1f}" for stage, (ours, theirs) in seconds.items()]
    print(f"repeat {repeat}: {sampled[1]['sampled_tokens']:.0f} / {tokens} tokens, scores at most {apart:.1g} apart; " + ", ".join(parts))
    return seconds


def table(repeats: Sequence[dict[str, tuple[Seconds, Seconds]]]) -> str:
    """Medians by stage and for each round, which is the sum of its stages within a repeat."""
    rows = {stage: (stage,) for stage in STAGES} | {f"{name} round": (*STAGES[:3], f"{name} training") for name in ("RJS", "DPO")}
    lines = ["| | ours, CPU-s | TRL, CPU-s | ours / TRL, CPU | ours / TRL, wall |", "|---|---|---|---|---|"]
    for name, stages in rows.items():
        sums = [
            [[sum(getattr(seconds[stage][side], clock) for stage in stages) for side in (0, 1)] for seconds in repeats]
            for clock in ("cpu", "wall")
        ]
        cpu = [statistics.median(column) for column in zip(*sums[0], strict=True)]
        ratios = [statistics.median(ours / theirs for ours, theirs in clock) for clock in sums]
        lines.append(f"| {name} | {cpu[0]:.1f} | {cpu[1]:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return "\n".join(lines)


def model_folder(text: str) -> Path:
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text}: not a model folder, it has no config.json")
    return Path(text)


def read(given: argparse.Namespace, folder: Path) -> tuple[Models, list[Pair], list[Prompt]]:
    """Models, pairs of the split rm, and prompts of the split policy at equal distances; only what fits whole is taken."""
    recipe = Recipe(learning_rate=given.learning_rate, batch_size=given.batch_size)
    sampling = Sampling(max_new_tokens=given.tokens, batch_size=given.prompts * given.responses)
    spec = PolicyModel(path=str(given.policy), training=recipe, sampling=sampling)
    reward_spec = NeuralReward(path=str(given.reward_body), training=recipe)
    task = load_task("hh", {"data_files": [str(path.resolve()) for path in given.data]}, base=None)
    policy, tokenizer = policies.load_policy(given.policy)
    reward_model, reward_tokenizer = rewards.new_reward_model(reward_spec, given.reward_body, task.axes, None, 0)
    for module in (*policy.modules(), *reward_model.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def fits(prompt: Prompt, *texts: str) -> bool:
        chat = ChatFormat.of(tokenizer, spec)
        whole = len(chat.encode_response(prompt, max(texts, key=len, default=""), sys.maxsize)) <= spec.max_response_tokens
        return whole and not chat.encode_prompt(prompt, spec.max_prompt_tokens).truncated

    pairs = [pair for pair in task.pairs["rm"] if fits(pair.prompt, pair.chosen, pair.rejected)]
    prompts = [prompt for prompt in task.prompts["policy"] if fits(prompt)]
    for name, wanted, there in (("pairs", given.pairs, pairs), ("prompts", given.prompts, prompts)):
        if len(there) < wanted:
            raise InputError(f"--{name} {wanted}: the files have {len(there)} that fit")
    models = Models(policy, tokenizer, spec, reward_model, reward_tokenizer, reward_spec, folder, given.trl_checkpointing)
    return models, pairs[:: len(pairs) // given.pairs][: given.pairs], prompts[:: len(prompts) // given.prompts][: given.prompts]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=model_folder)
    parser.add_argument("reward_body", type=model_folder)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--responses", type=int, default=4, help="to each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="at most, of a response")
    parser.add_argument("--batch-size", type=int, default=8, help="items an update, all in one pass; TRL's default")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl-checkpointing", action="store_true", help="gradient checkpointing in TRL's trainers, as is their default")
    given = parser.parse_args(arguments)
    import datasets

    datasets.disable_progress_bars()
    policies.use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        models, pairs, prompts = read(given, Path(folder))
        for name, difference in differences(models, pairs[:CHECKED]).items():
            print(f"{name}: losses of two updates on a batch of {CHECKED} at most {difference:.1g} apart", flush=True)
        repeats = [rounds(models, pairs, prompts, given.responses, repeat) for repeat in range(given.repeats)]
    print(table(repeats))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
