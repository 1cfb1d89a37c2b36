"""One optimisation loop, on transformers.Trainer; what is trained and its loss are passed in.

Every update has one denominator, the sum of its items' sizes (1 an item, or its response tokens), shared by all its
micro-batches: 1 x 16 and 4 x 4 are the same update.
"""

import copy
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from apo_bench.config.schema import Recipe
from apo_bench.errors import InputError
from apo_bench.hashing import digest
from apo_bench.models import precision
from apo_bench.models.device import own_device
from apo_bench.training.batches import UpdateBatchSampler
from apo_bench.training.checkpoints import Checkpoints, checkpoint_after, latest_checkpoint, mark_complete, updates_at

Terms = Callable[[Any, Mapping[str, Tensor]], Tensor]
DIVERGED = "the fit has diverged: lower the learning rate"
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]


@dataclass(frozen=True)
class TrainResult:
    """Optimizer updates, tokens read (padding apart), and the mean loss of each logged update."""

    updates: int
    tokens: int
    losses: tuple[float, ...]


class _Items(Dataset[dict[str, Any]]):
    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: tuple[int, float]) -> dict[str, Any]:
        item, loss_weight = place
        return {**self.items[item], "loss_weight": loss_weight}


class _Loop(Trainer):
    """Trainer with our batches, our loss and our checkpoints; a batch carries no `labels`, which would bring in Trainer's own scaling.

    `identity` names the fit in its checkpoints. Tokens are counted in the trainer's state, which a checkpoint keeps.
    """

    def __init__(self, *, terms: Terms, batches: UpdateBatchSampler, identity: str, **fields: Any) -> None:
        super().__init__(**fields)
        self.terms, self.batches, self.identity = terms, batches, identity
        self.model_accepts_loss_kwargs = False
        self.sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)  # pyright: ignore
        # the batches are this process's own already
        return prepare_data_loader(loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16)):  # also of modules called by themselves
            return self._loss(model, inputs)

    def _loss(self, model: Any, inputs: Any) -> Tensor:
        loss_weights = inputs.pop("loss_weight")
        read = inputs["attention_mask"].sum() * loss_weights.any()  # an item that only fills up is not counted
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(read, "sum"))  # pyright: ignore
        # The weights hold the update's whole denominator: undo Trainer's division by micro-batches and accelerate's mean over processes.
        return (self.terms(model, inputs) * loss_weights).sum() * self.current_gradient_accumulation_steps * self.args.world_size

    def resume(self, checkpoints: Checkpoints) -> Path | None:
        """The checkpoint to resume from, with the order of items advanced to where it was; the same on every process."""
        with self.accelerator.main_process_first():  # which removes what does not count
            checkpoint = latest_checkpoint(checkpoints.folder, self.identity)
        if checkpoint:
            if self.is_world_process_zero():
                print(f"{checkpoint}: resuming from this checkpoint")
            self.batches.skip(updates_at(checkpoint) // -(-len(self.batches) // self.args.gradient_accumulation_steps))
        return checkpoint

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            mark_complete(checkpoint_after(Path(str(self.args.output_dir)), self.state.global_step), self.identity)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Only what a fit changes, by its name in memory; where weights are sharded, what the trainer gathers."""
        if state_dict is not None or self.sharded:
            return super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(str(output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: value.clone() for name, value in changing(self.model).items()}, folder / "model.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.sharded:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        for name, value in changing(self.model).items():
            value.copy_(saved[name])


def check_finite(model: Any, when: str) -> None:
    """Raise InputError, which begins with `when`, for a trained weight that is not finite."""
    for part, weight in model.named_parameters():
        if weight.requires_grad and not weight.isfinite().all():
            raise InputError(f"{when}, {part} is not finite; {DIVERGED}")


def changing(model: Any) -> dict[str, Tensor]:
    """What a fit may change, in place: weights that get gradients, and buffers."""
    weights = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    return weights | dict(model.named_buffers())


class _EverySoOften(TrainerCallback):
    """Has a checkpoint saved whenever so many seconds have passed, by the main process's clock; none after the last update."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self.last = every_s, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = broadcast(torch.tensor(time.monotonic() - self.last >= self.every_s, dtype=torch.float32, device=args.device))
        control.should_save = bool(due) and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


class _Finite(TrainerCallback):
    """Ends a fit at the first update whose loss is not finite: nothing after it could be."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if not math.isfinite(loss := float((logs or {}).get("loss", 0.0))):
            raise InputError(f"{self.name}: the loss of update {state.global_step} of {state.max_steps} is {loss}; {DIVERGED}")


def fit(
    model: Any, items: Sequence[Mapping[str, Any]], collate: Collate, terms: Terms, recipe: Recipe, seed: int,
    checkpoints: Checkpoints | None = None, name: str = "model",
) -> tuple[Any, TrainResult]:  # fmt: skip
    """Fit `model` to `items`; return the trained model and a TrainResult. Adapters that are to be trained are on the model already.

    items: mappings with `size` and `length` beside what `collate` reads. `terms(model, batch)` gives one loss term per item. With
    `checkpoints` a fit resumes from the last complete one and ends with the same bits as a fit that was never stopped. Where several
    processes take part, the main one's model is the trained one.

    Raises InputError where an update cannot be split into whole micro-batches, for an optimizer that is not there, and where a loss or a
    weight is not finite any more, with the model's `name` and the update.
    """
    recipe = precision.resolved(recipe, own_device().type)
    with tempfile.TemporaryDirectory() as nowhere:
        return _fit(model, items, collate, terms, recipe, seed, checkpoints or Checkpoints(Path(nowhere)), name)


def _fit(
    model: Any, items: Sequence[Mapping[str, Any]], collate: Collate, terms: Terms, recipe: Recipe, seed: int, checkpoints: Checkpoints,
    name: str,
) -> tuple[Any, TrainResult]:  # fmt: skip
    prepare(model, recipe)
    arguments = training_arguments(recipe, recipe.updates(len(items)), seed, checkpoints.folder)
    processes = arguments.world_size
    micro = recipe.micro_batch_size or max(1, recipe.batch_size // processes)
    if recipe.batch_size % (micro * processes):
        raise InputError(f"batch_size {recipe.batch_size} is not a multiple of micro_batch_size {micro} x {processes} processes")
    arguments.per_device_train_batch_size = micro
    arguments.gradient_accumulation_steps = recipe.batch_size // (micro * processes)
    sizes, lengths = [item["size"] for item in items], [item["length"] for item in items]
    batches = UpdateBatchSampler(sizes, lengths, recipe.batch_size, micro, seed, arguments.process_index, processes)

    def with_loss_weights(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return {**collate(batch), "loss_weight": torch.tensor([item["loss_weight"] for item in batch], dtype=torch.float32)}

    loop = _Loop(
        model=model,
        args=arguments,
        train_dataset=_Items(items),
        data_collator=with_loss_weights,
        terms=terms,
        batches=batches,
        identity=digest([recipe.model_dump(), seed, sizes, lengths, processes]),
        callbacks=[_EverySoOften(checkpoints.every_s), _Finite(name)],
    )
    loop.remove_callback(PrinterCallback)
    main = loop.is_world_process_zero()
    whole = _without_weights(model) if loop.sharded and main else model
    checkpoint = loop.resume(checkpoints)
    with recomputed(model) if recipe.gradient_checkpointing else nullcontext():
        loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if loop.sharded:
        gathered = loop.accelerator.get_state_dict(loop.model_wrapped)
        if main:
            whole.load_state_dict(gathered, assign=True)
            whole.tie_weights()
    check_finite(whole, f"{name}: after update {loop.state.global_step}, the last")
    losses = tuple(float(row["loss"]) for row in loop.state.log_history if "loss" in row)
    return whole, TrainResult(loop.state.global_step, loop.state.num_input_tokens_seen, losses)


def prepare(model: Any, recipe: Recipe) -> None:
    """Freeze what the recipe freezes, and have the rest in fp32. Raises InputError for an optimizer that is not there."""
    for part, weight in model.named_parameters():
        if recipe.freeze and re.search(recipe.freeze, part):
            weight.requires_grad_(False)
        if weight.requires_grad:
            weight.data = weight.data.float()  # whatever the frozen ones have
    precision.check_optimizer(recipe.optimizer)
    if missing := precision.lacking(optimizer=recipe.optimizer):
        raise InputError(missing)


def training_arguments(recipe: Recipe, updates: int, seed: int, folder: Path) -> TrainingArguments:
    """What a resolved recipe is to transformers.Trainer, for so many updates."""
    return in_one_process(TrainingArguments(**argument_values(recipe, updates, seed, folder), remove_unused_columns=False))


def argument_values(recipe: Recipe, updates: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fields of TrainingArguments by name, also of those that trainers from elsewhere derive from it."""
    return {
        "output_dir": str(folder),
        "max_steps": updates,
        "learning_rate": recipe.learning_rate,
        # plain constant has no warmup
        "lr_scheduler_type": "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": recipe.optimizer,
        "bf16": recipe.precision == "bf16",
        "seed": seed % 2**32,
        "data_seed": seed % 2**32,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def in_one_process(arguments: TrainingArguments) -> TrainingArguments:
    """The arguments, without a launch configuration's precision, and without other GPUs, which are other workers'."""
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"
    arguments._n_gpu = min(1, arguments.n_gpu)  # never DataParallel
    return arguments


def _without_weights(model: Any) -> Any:
    """A copy whose weights take no memory, to be assigned what is gathered from all processes: none holds the whole model twice."""
    empty = {id(weight): torch.nn.Parameter(weight.to("meta"), weight.requires_grad) for weight in model.parameters()}
    return copy.deepcopy(model, empty)


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Activations are recomputed in the backward pass, within, where the architecture can."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # transformers' later name, or the first
    able = model.supports_gradient_checkpointing
    if able:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    yield
    if able:
        getattr(model, f"{name}_checkpointing_disable")()
