"""The loop of online training: sample from the current weights, score, form advantages, update, step after step.

An update is as `trainer.fit` makes it: one denominator, whatever its micro-batches, and the recipe's optimizer, schedule and clipping. A
step draws by seeds of its own, so that a checkpoint after a step holds no generator's state.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer

from apo_bench.errors import InputError
from apo_bench.hashing import digest
from apo_bench.losses import View, also_reads, denominator_of
from apo_bench.losses.online_algorithm import Rollouts
from apo_bench.models import flops
from apo_bench.models.device import seeded
from apo_bench.models.generate import Generation
from apo_bench.models.output_layer import is_recognised
from apo_bench.training.batches import UpdateBatchSampler
from apo_bench.training.checkpoints import Checkpoints, checkpoint_after, latest_checkpoint, mark_complete, updates_at
from apo_bench.training.data import best_and_worst
from apo_bench.training.encoding import collate, response_logps, view_of
from apo_bench.training.trainer import DIVERGED, changing, check_finite, prepare, recomputed, training_arguments
from apo_bench.training.training_spec import OnlineTraining
from apo_bench.types import Response, identity

Scores = tuple[Sequence[float], Mapping[str, float]]  # and the counts spent
Score = Callable[[Sequence[Response]], Scores]
Items = list[dict[str, Any]]
STEPS = "steps.jsonl"  # beside the model: a StepRow a step


@dataclass(frozen=True)
class StepRow:
    """What a step did; None: it has no such thing.

    reward and its sd: of all samples. kl: nats a response, to the reference. entropy: nats a token of the sampling policy, as minus the
    mean log-probability of sampled tokens. Where nothing is read before the first update (`OnlineTraining.reads_samples_first`) both are
    of those samples that are trained on, as the first pass over them finds them. clip_share: of the tokens that were trained on.
    gradient_norm: before clipping; it and loss are means over updates.
    """

    step: int
    updates: int
    prompts: int
    samples: int
    trained_samples: int
    reward: float
    reward_sd: float
    kl: float | None
    entropy: float | None
    length: float
    cut_share: float
    clip_share: float | None
    gradient_norm: float | None
    loss: float | None
    learning_rate: float | None
    sampled_tokens: int
    train_tokens: int

    def stage(self, steps: int) -> str:
        """A line for whoever waits."""
        return f"online step {self.step} of {steps}: reward {self.reward:.2f}" + ("" if self.kl is None else f", KL {self.kl:.2f}")


@dataclass
class _Sums:
    """Sums over passes of an update's items."""

    tokens: float = 0.0
    logps: float = 0.0
    responses: int = 0
    log_ratios: float = 0.0
    clipped: float = 0.0
    clipped_of: float = 0.0


@dataclass(frozen=True)
class Online:
    """An online training with its models: `score` is the reward model's, `report` gets a line for every step.

    The job's settings are resolved. Raises InputError for a loss or a weight that is not finite any more, with the step and the update.
    """

    job: OnlineTraining
    model: Any
    tokenizer: Any
    reference: Any | None
    score: Score
    checkpoints: Checkpoints
    report: Callable[[str], None] = lambda stage: None
    rows: list[str] = field(default_factory=list)  # of the steps so far, as STEPS has them
    counts: Counter[str] = field(default_factory=Counter)

    def train(self) -> tuple[Mapping[str, float], str]:
        """Train the model in place; the counts spent, and the text of STEPS. Resumes from the last complete checkpoint."""
        job = self.job
        prepare(self.model, job.recipe)
        _ = self._optimizer  # whose Trainer sets every seed
        first, saved = self._resume(), monotonic()
        with recomputed(self.model) if job.recipe.gradient_checkpointing else nullcontext():
            for step in range(first, job.steps):
                with seeded(_seed(job, step, "updates")):
                    row = self._step(step)
                self.rows.append(json.dumps(asdict(row)) + "\n")
                self.report(row.stage(job.steps))
                if step + 1 < job.steps and monotonic() - saved >= self.checkpoints.every_s:
                    self._save(step + 1)
                    saved = monotonic()
        return self.counts, "".join(self.rows)

    # --- a step ----------------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> StepRow:
        job = self.job
        generation = Generation.of(
            self.model, self.tokenizer, job.prompts_of(step), job.n, job.sampling, job.model, _seed(job, step, "samples")
        )
        with self._autocast():
            responses, spent = generation.joined([generation.sample(number) for number in range(len(generation.batches))])
        self.counts.update(spent)
        scores, spent = self.score(responses)
        self.counts.update(spent)
        items = self._items(generation, responses)
        sums = _Sums()
        data = self._pairs(items, responses, scores) if job.is_paired else self._rollouts(items, responses, scores, sums)
        losses, norms, rate, tokens = self._updates(step, data, sums)
        sampled = sum(response.tokens for response in responses)
        return StepRow(
            step=step + 1,
            updates=len(losses),
            prompts=job.prompts_per_step,
            samples=len(responses),
            trained_samples=len(data) * (2 if job.is_paired else 1),
            reward=statistics.fmean(scores),
            reward_sd=statistics.pstdev(scores),
            kl=sums.log_ratios / sums.responses if self.reference is not None and sums.responses else None,
            entropy=-sums.logps / sums.tokens if sums.tokens else None,
            length=sampled / len(responses),
            cut_share=sum(response.finish == "length" for response in responses) / len(responses),
            clip_share=sums.clipped / sums.clipped_of if sums.clipped_of else None,
            gradient_norm=statistics.fmean(norms) if norms else None,
            loss=statistics.fmean(losses) if losses else None,
            learning_rate=rate,
            sampled_tokens=sampled,
            train_tokens=tokens,
        )

    def _items(self, generation: Generation, responses: Sequence[Response]) -> Items:
        """A side each: its prompt's ids, then those that were sampled."""
        items = []
        for place, response in enumerate(responses):
            assert response.token_ids is not None
            start, end = generation.encoded[place // self.job.n].ids, response.token_ids[: self.job.model.max_response_tokens]
            items.append({"sides": [([*start, *end], [0] * len(start) + [1] * len(end))], "length": len(start) + len(end)})
        return items

    def _pairs(self, items: Items, responses: Sequence[Response], scores: Sequence[float]) -> Items:
        """The best sample of each prompt against its worst."""
        n, pairs = self.job.n, []
        for start in range(0, len(items), n):
            texts = [response.text for response in responses[start : start + n]]
            if places := best_and_worst(texts, [*scores[start : start + n]]):
                chosen = [items[start + place] for place in places]
                sides = [side for item in chosen for side in item["sides"]]
                pairs.append({"sides": sides, "length": sum(item["length"] for item in chosen)})
        if self.reference is not None and pairs:
            self._add_logps("reference_logps", self.reference, pairs)
        return pairs

    def _rollouts(self, items: Items, responses: Sequence[Response], scores: Sequence[float], sums: _Sums) -> Items:
        """Those samples that are trained on, with their advantages."""
        job, ratios = self.job, None
        shape = (job.prompts_per_step, job.n)
        masks = [torch.tensor(mask, dtype=torch.bool) for item in items for _, mask in item["sides"]]
        if job.reads_samples_first:
            self._add_logps("old_logps", self.model, items)
            sums.logps, sums.tokens = _total(items, "old_logps"), float(sum(map(int, map(torch.sum, masks))))
        if self.reference is not None:
            self._add_logps("reference_logps", self.reference, items)
            sums.log_ratios, sums.responses = sums.logps - _total(items, "reference_logps"), len(items)
            each = [(item["old_logps"][0] - item["reference_logps"][0])[mask] for item, mask in zip(items, masks, strict=True)]
            ratios = pad_sequence(each, batch_first=True).unflatten(0, shape)
        mask = pad_sequence([torch.ones(int(own.sum())) for own in masks], batch_first=True).unflatten(0, shape)
        finished = torch.tensor([response.finish != "length" for response in responses]).view(shape)
        advantages = job.algorithm.advantages(Rollouts(torch.tensor(scores).view(shape), mask, finished, ratios)).detach().float()
        if advantages.shape not in (shape, mask.shape):
            name, given = type(job.algorithm).__name__, tuple(advantages.shape)
            raise InputError(f"{name}: advantages of shape {given}; they are {shape}, or of tokens {tuple(mask.shape)}")
        for item, own, values in zip(items, masks, advantages.flatten(0, 1), strict=True):
            if values.ndim:
                spread = torch.zeros(len(own))
                spread[own] = values[: int(own.sum())]
                item["advantages"] = [spread]
            else:
                item["advantages"] = float(values)
        return [item for item in items if not _is_masked(item["advantages"])]

    def _add_logps(self, name: str, model: Any, items: Items) -> None:
        """Log-probabilities of the items' responses under a model, beside each item."""
        size, recognised = self._reading[model is self.model]
        with self._autocast():
            logps = response_logps(model, items, self.tokenizer.pad_token_id, self.job.recipe.items_per_pass, recognised)
        for item, sides in zip(items, logps, strict=True):
            item[name] = sides
        self.counts["flops"] += size.forward(*_lengths(items))  # pyright: ignore[reportArgumentType]

    # --- updates ---------------------------------------------------------------------------------------------------------

    def _updates(self, step: int, items: Items, sums: _Sums) -> tuple[list[float], list[float], float | None, int]:
        """Losses and gradient norms of a step's updates, the last learning rate, and the tokens read."""
        recipe, (optimizer, schedule) = self.job.recipe, self._optimizer
        losses, norms, rate, tokens = list[float](), list[float](), None, 0
        planned, weights = self.job.updates_per_step, [weight for weight in self.model.parameters() if weight.requires_grad]
        for number, batches in enumerate(self._batches(step, items)):
            self.model.train()
            loss = 0.0
            for batch in batches:
                tokens += sum(len(ids) for place, _ in batch for ids, _ in items[place]["sides"])
                part = self._loss([items[place] for place, _ in batch], [weight for _, weight in batch], sums)
                part.backward()
                loss += part.item()
            where = f"update {number + 1} of step {step + 1} of {self.job.steps}"
            if not math.isfinite(loss):
                raise InputError(f"policy: the loss of {where} is {loss}; {DIVERGED}")
            norms.append(float(clip_grad_norm_(weights, recipe.max_grad_norm)))
            losses.append(loss)
            rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        for _ in range(planned - len(losses)):  # of samples that are left out: the rate of a step does not depend on those before it
            optimizer.step()  # without gradients it does nothing; a schedule that is ahead of it warns
            schedule.step()
        check_finite(self.model, f"policy: after update {len(losses)} of step {step + 1} of {self.job.steps}")
        spent = 0.0
        if items:
            sides, passes = len(items[0]["sides"]), min(len(items), recipe.items_per_pass)
            lengths, outputs = _lengths(items)
            spent = self._cost.flops(tokens, lengths, outputs if self._recognised else None, passes * sides)
        self.counts.update({"policy_updates": len(losses), "policy_train_tokens": tokens, "flops": spent})
        return losses, norms, rate, tokens

    def _batches(self, step: int, items: Items) -> Iterator[list[list[tuple[int, float]]]]:
        """Micro-batches of each update, as (item, loss weight)."""
        if not items:
            return
        recipe, by_tokens = self.job.recipe, denominator_of(self.job.algorithm) == "tokens"
        sizes = [sum(sum(mask) for _, mask in item["sides"]) if by_tokens else 1 for item in items]
        lengths = [item["length"] for item in items]
        sampler = UpdateBatchSampler(sizes, lengths, recipe.batch_size, recipe.items_per_pass, _seed(self.job, step, "batches"))
        left, several = recipe.updates(len(items)), recipe.batch_size // recipe.items_per_pass
        while left:
            epoch = iter(sampler)
            while left and (update := [*islice(epoch, several)]):
                yield update
                left -= 1

    def _loss(self, items: Items, loss_weights: Sequence[float], sums: _Sums) -> Tensor:
        """A micro-batch's part of its update's loss."""
        algorithm = self.job.algorithm
        batch = {name: value.to(self.model.device) for name, value in collate(items, self.tokenizer.pad_token_id).items()}
        with self._autocast():
            view = view_of(self.model, batch, self._recognised, also_reads(algorithm))
            if not self.job.is_paired and "old_logps" not in view.optional:  # a step of one update: the policy that sampled is this one
                view = replace(view, optional={**view.optional, "old_logps": view.logps.detach()})
            terms = algorithm(view)
        self._measure(items, view, sums)
        return (terms * torch.tensor(loss_weights, dtype=torch.float32, device=terms.device)).sum()

    @torch.no_grad()
    def _measure(self, items: Items, view: View, sums: _Sums) -> None:
        algorithm, new = self.job.algorithm, [place for place, item in enumerate(items) if not item.get("measured")]
        if hasattr(algorithm, "clipped"):
            sums.clipped += float((algorithm.clipped(view) * view.mask).sum())
            sums.clipped_of += float(view.mask.sum())
        if self.job.reads_samples_first or not new:
            return
        for place in new:
            items[place]["measured"] = True
        logps = view.response_logps[new]
        sums.logps, sums.tokens = sums.logps + float(logps.sum()), sums.tokens + float(view.mask[new].sum())
        if self.reference is not None:
            sums.log_ratios += float((logps - view.reference_response_logps[new]).sum())
            sums.responses += logps.numel()

    # --- what stays from step to step ------------------------------------------------------------------------------------

    @cached_property
    def _optimizer(self) -> tuple[Any, Any]:
        """Optimizer and learning rate schedule, as transformers.Trainer has them for the recipe."""
        updates = self.job.steps * self.job.updates_per_step
        trainer = Trainer(self.model, training_arguments(self.job.recipe, updates, self.job.seed, self.checkpoints.folder))
        trainer.create_optimizer_and_scheduler(updates)
        return trainer.optimizer, trainer.lr_scheduler

    @cached_property
    def _cost(self) -> flops.Training:
        return flops.training(self.model, self.job.recipe)

    @cached_property
    def _recognised(self) -> bool:
        return is_recognised(self.model)

    @cached_property
    def _reading(self) -> dict[bool, tuple[flops.Size, bool]]:
        """Of the policy (True) and of the reference: what a forward pass costs, and whether its output layer is recognised."""
        models = {True: self.model} | ({} if self.reference is None else {False: self.reference})
        return {own: (flops.size(model), is_recognised(model)) for own, model in models.items()}

    def _autocast(self) -> Any:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.job.recipe.precision == "bf16")

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    @cached_property
    def _identity(self) -> str:
        job = self.job
        return digest([job.recipe.model_dump(), job.seed, job.steps, job.n, [prompt.id for prompt in job.prompts], job.policy.key])

    def _save(self, steps: int) -> None:
        """A checkpoint after so many steps."""
        folder, (optimizer, schedule) = checkpoint_after(self.checkpoints.folder, steps), self._optimizer
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.clone() for name, value in changing(self.model).items()}, folder / "model.safetensors")
        torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, folder / "optimizer.pt")
        (folder / STEPS).write_text("".join(self.rows), encoding="utf-8")
        (folder / "counts.json").write_text(json.dumps(self.counts), encoding="utf-8")
        mark_complete(folder, self._identity)

    def _resume(self) -> int:
        """The steps that the last complete checkpoint has behind it, whose state is this one's then."""
        folder = latest_checkpoint(self.checkpoints.folder, self._identity)
        if folder is None:
            return 0
        print(f"{folder}: resuming from this checkpoint")
        saved, (optimizer, schedule) = load_file(folder / "model.safetensors"), self._optimizer
        for name, value in changing(self.model).items():
            value.copy_(saved[name])
        state = torch.load(folder / "optimizer.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        self.rows.extend((folder / STEPS).read_text(encoding="utf-8").splitlines(keepends=True))
        self.counts.update(json.loads((folder / "counts.json").read_text(encoding="utf-8")))
        return updates_at(folder)


def _seed(job: OnlineTraining, step: int, purpose: str) -> int:
    return int(identity(str(job.seed), purpose, str(step)), 16) % 2**63


def _lengths(items: Items) -> tuple[list[int], list[int]]:
    """Tokens of each side, and those of its response."""
    sides = [side for item in items for side in item["sides"]]
    return [len(ids) for ids, _ in sides], [sum(mask) for _, mask in sides]


def _total(items: Items, name: str) -> float:
    return math.fsum(float(values.sum()) for item in items for values in item[name])


def _is_masked(advantages: float | list[Tensor]) -> bool:
    return bool(torch.cat(advantages).isnan().any()) if isinstance(advantages, list) else math.isnan(advantages)
