"""One optimisation loop, on transformers.Trainer; what is trained and its loss are passed in.

Every update has one denominator, the sum of its items' sizes (1 an item, or its response tokens), shared by all its
micro-batches: 1 x 16 and 4 x 4 are the same update.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from apo_bench.config import NeuralReward, PolicyModel, Recipe
from apo_bench.errors import InputError
from apo_bench.losses import PolicyLoss, RewardLoss
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.types import Demonstration, Group, Pair

Terms = Callable[[Any, Mapping[str, Tensor]], Tensor]
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]


@dataclass(frozen=True)
class Fit:
    """What a fit took: optimizer updates, tokens read (padding apart), and the mean loss of each logged update."""

    updates: int
    tokens: int
    losses: tuple[float, ...]


class Updates(Sampler[list[tuple[int, float]]]):
    """Micro-batches of (item, share), freshly shuffled each epoch; shares are 1 / the update's denominator.

    Items are shuffled, sorted by length within stretches of 16 updates (so that like lengths share a batch), and the
    updates shuffled again. A short last update stays last, since accumulation counts micro-batches.
    """

    def __init__(self, sizes: Sequence[int], lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int) -> None:
        self.sizes, self.lengths = np.asarray(sizes), np.asarray(lengths)
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sizes), self.batch_size)
        return whole * (self.batch_size // self.micro_batch_size) + -(-rest // self.micro_batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        order = self.generator.permutation(len(self.sizes))
        rest = order[len(order) - len(order) % self.batch_size :]
        order = order[: len(order) - len(rest)]
        stretch = 16 * self.batch_size
        bucketed = [part[np.argsort(self.lengths[part], kind="stable")] for part in np.split(order, range(stretch, len(order), stretch))]
        updates = np.concatenate(bucketed).reshape(-1, self.batch_size) if len(order) else np.empty((0, self.batch_size), int)
        for update in [*updates[self.generator.permutation(len(updates))], *([rest] if len(rest) else [])]:
            share = 1.0 / self.sizes[update].sum()
            for start in range(0, len(update), self.micro_batch_size):
                yield [(int(item), share) for item in update[start : start + self.micro_batch_size]]


class _Items(Dataset[dict[str, Any]]):
    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: tuple[int, float]) -> dict[str, Any]:
        item, share = place
        return {**self.items[item], "share": share}


class _Loop(Trainer):
    """Trainer with our batches and our loss; a batch carries no `labels`, which would bring in Trainer's own scaling."""

    def __init__(self, *, terms: Terms, batches: Updates, **fields: Any) -> None:
        super().__init__(**fields)
        self.terms, self.batches = terms, batches
        self.model_accepts_loss_kwargs = False
        self.tokens = 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)  # pyright: ignore
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        shares = inputs.pop("share")
        self.tokens += int(inputs["attention_mask"].sum())
        # The shares are whole already, so undo what comes: Trainer divides by the micro-batches, accelerate averages over processes.
        return (self.terms(model, inputs) * shares).sum() * self.current_gradient_accumulation_steps * self.args.world_size


def fit(
    model: Any, items: Sequence[Mapping[str, Any]], collate: Collate, terms: Terms, recipe: Recipe, seed: int, scratch: Path
) -> tuple[Any, Fit]:
    """Fit `model` to `items` and return it (adapters merged) with what it took.

    items: mappings with `size` and `length` beside what `collate` reads. `terms(model, batch)` gives one loss term per item.
    `scratch` is a folder for the trainer's own use. Nothing is checkpointed yet: a fit starts again after a crash.
    """
    micro = recipe.micro_batch_size or recipe.batch_size
    model = _adapted(model, recipe, seed)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=recipe.updates(len(items)),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // micro,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,  # plain constant has no warmup
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=seed % 2**32,
        data_seed=seed % 2**32,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )
    batches = Updates([item["size"] for item in items], [item["length"] for item in items], recipe.batch_size, micro, seed)

    def with_shares(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return {**collate(batch), "share": torch.tensor([item["share"] for item in batch], dtype=torch.float32)}

    loop = _Loop(
        model=model, args=arguments, train_dataset=_Items(items), data_collator=with_shares, terms=terms, batches=batches
    )  # fmt: skip
    loop.remove_callback(PrinterCallback)
    loop.train()
    losses = tuple(float(row["loss"]) for row in loop.state.log_history if "loss" in row)
    trained = model.merge_and_unload() if recipe.lora else model
    return trained, Fit(loop.state.global_step, loop.tokens, losses)


def train_policy(
    folder: Path, data: Sequence[Demonstration] | Sequence[Pair] | Sequence[Group], loss: PolicyLoss, reference: Path | None,
    spec: PolicyModel, recipe: Recipe, seed: int, into: Path,
) -> dict[str, float]:  # fmt: skip
    """Train the policy in `folder` on demonstrations, pairs or groups, save it in `into`, and return the counts spent.

    Losses that compare with a reference policy read its log-probabilities once, before training.
    """
    model, tokenizer = policies.load_policy(folder, spec.trust_remote_code)
    items = policies.training_items(tokenizer, data, loss, spec)
    size = policies.parameters(model)
    flops = 0.0
    if loss.trains_on == "pairs":
        if reference is None:
            raise InputError(f"lab.train_policy: {type(loss).__name__} needs a reference policy")
        other, _ = policies.load_policy(reference, spec.trust_remote_code)
        policies.add_reference(other, tokenizer, items, recipe.micro_batch_size or recipe.batch_size)
        flops += 2 * size * sum(item["length"] for item in items)
    share = _trainable_share(model, recipe)
    with tempfile.TemporaryDirectory() as scratch:
        model, took = fit(
            model, items, partial(policies.collate, pad_id=tokenizer.pad_token_id), partial(policies.loss_terms, loss=loss),
            recipe, seed, Path(scratch),
        )  # fmt: skip
    policies.save_model(model, tokenizer, into)
    _write_losses(into, took)
    flops += train_flops(size, share, took.tokens)
    return {"policy_updates": took.updates, "policy_train_tokens": took.tokens, "flops": flops}


def train_reward_model(
    start: str | Path | None,
    pairs: Sequence[Pair],
    loss: RewardLoss,
    axes: Sequence[str],
    vocabulary: Sequence[str] | None,
    spec: NeuralReward,
    seed: int,
    into: Path,
) -> dict[str, float]:
    """Train a reward model from the folder `start` (None: the spec's architecture), save it in `into`, return the counts."""
    model, tokenizer = rewards.new_reward_model(spec, start, axes, vocabulary, seed)
    items = rewards.pair_items(model, tokenizer, pairs, spec)
    size, share = rewards.parameters(model), _trainable_share(model, spec.training)
    with tempfile.TemporaryDirectory() as scratch:
        model, took = fit(
            model, items, partial(rewards.collate, pad_id=tokenizer.pad_token_id), partial(rewards.loss_terms, loss=loss),
            spec.training, seed, Path(scratch),
        )  # fmt: skip
    policies.save_model(model, tokenizer, into)
    _write_losses(into, took)
    return {"rm_updates": took.updates, "rm_train_tokens": took.tokens, "flops": train_flops(size, share, took.tokens)}


def train_flops(parameters: int, trainable_share: float, tokens: int) -> float:
    """FLOPs of training on so many tokens: 2N forward, 2N for gradients of activations, 2N for those of trainable weights."""
    return (4 + 2 * trainable_share) * parameters * tokens


def _trainable_share(model: Any, recipe: Recipe) -> float:
    """The share of weights that get gradients (adapters counted as none: they are small)."""
    if recipe.lora:
        return 0.0
    frozen = sum(weight.numel() for name, weight in model.named_parameters() if recipe.freeze and re.search(recipe.freeze, name))
    return 1.0 - frozen / sum(weight.numel() for weight in model.parameters())


def _write_losses(folder: Path, took: Fit) -> None:
    (folder / "training_losses.json").write_text(json.dumps(took.losses))


def _adapted(model: Any, recipe: Recipe, seed: int) -> Any:
    """The model with what the recipe freezes frozen, or with adapters."""
    if recipe.freeze:
        for name, weight in model.named_parameters():
            weight.requires_grad_(not re.search(recipe.freeze, name))
    if recipe.lora:
        from peft import LoraConfig, get_peft_model

        lora = recipe.lora
        modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(
                model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=modules, modules_to_save=_heads(model))
            )
    return model


def _heads(model: Any) -> list[str] | None:
    """A classification head is new, so it is trained in full beside adapters."""
    names = [name for name in ("score", "classifier") if hasattr(model, name)]
    return names or None
