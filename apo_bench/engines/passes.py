"""What a run computes at a time, as far as device memory depends on it, collected from the jobs of a plan. No torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from apo_bench.config.schema import NetworkReward, PolicyModel, Recipe, Sampling, members
from apo_bench.engines.protocol import KLJob, SamplingJob, ScoringJob
from apo_bench.training.data import sides_of
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, RewardModelTraining

Verb = Literal["sample", "score", "KL", "reference", "train policy", "train online", "train reward model"]
NEUTRAL = {"learning_rate": 1.0, "epochs": 1.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0}


@dataclass(frozen=True)
class Pass:
    """One pass of a verb: `items` of so many `sides`, each a sequence: an item's responses, or those that are sampled to a prompt."""

    verb: Verb
    model: PolicyModel | NetworkReward
    items: int
    sides: int = 1
    recipe: Recipe | None = None
    sampling: Sampling | None = None
    samples: tuple[int, int] = (0, 0)  # of online training: prompts, and responses to each, that are sampled at a time
    beside: tuple["Pass", ...] = ()  # by models that stay loaded meanwhile

    @property
    def sequences(self) -> int:
        return self.items * self.sides


@dataclass
class Passes:
    """The largest pass of each verb, model and recipe; and keys of the models that a run loads, by the settings of their kind."""

    largest: dict[str, Pass] = field(default_factory=dict)
    loaded: dict[str, tuple[PolicyModel | NetworkReward, set[str]]] = field(default_factory=dict)
    trained: dict[str, tuple[PolicyModel | NetworkReward, set[str]]] = field(default_factory=dict)  # what fits start from, in fp32

    def sampled(self, job: SamplingJob) -> None:
        prompts = max(1, min(len(job.prompts), job.sampling.batch_size // job.n))
        self._add(Pass("sample", job.model, prompts, job.n, sampling=job.sampling))
        self._load(self.loaded, job.model, job.policy.key)

    def scored(self, job: ScoringJob) -> None:
        if isinstance(job.model, NetworkReward):
            self._add(Pass("score", job.model, min(len(job.items), job.model.score_batch_size)))
            self._load(self.loaded, job.model, job.reward_model.key)

    def compared(self, job: KLJob) -> None:
        self._add(Pass("KL", job.model, min(len(job.responses), job.batch_size)))
        self._load(self.loaded, job.model, job.reference.key)

    def trained_policy(self, job: PolicyTraining) -> None:
        items, sides = min(len(job.data), job.recipe.items_per_pass), len(sides_of(job.data[0]))
        self._add(Pass("train policy", job.model, items, sides, job.recipe))
        if job.reference is not None:
            self._add(Pass("reference", job.model, items, sides, job.recipe))
        if job.recipe.lora is None:
            self._load(self.trained, job.model, job.policy.key)

    def trained_online(self, job: OnlineTraining) -> None:
        """One pass, whose models are all loaded at once: the policy, its reference, and those that score."""
        sides, samples = 1 + job.is_paired, job.prompts_per_step * job.n
        items = min(job.prompts_per_step if job.is_paired else samples, job.recipe.items_per_pass)
        scoring = [model for model in members(job.reward) if isinstance(model, NetworkReward)]
        beside = [Pass("score", model, min(samples, model.score_batch_size)) for model in scoring]
        if job.reference is not None:
            beside.append(Pass("reference", job.model, items, sides, job.recipe))
        at_once = max(1, min(job.prompts_per_step, job.sampling.batch_size // job.n)), job.n
        self._add(Pass("train online", job.model, items, sides, job.recipe, job.sampling, at_once, tuple(beside)))
        if job.recipe.lora is None:
            self._load(self.trained, job.model, job.policy.key)

    def trained_reward_model(self, job: RewardModelTraining) -> None:
        assert isinstance(job.model, NetworkReward)
        recipe = job.model.training
        assert recipe is not None
        self._add(Pass("train reward model", job.model, min(len(job.pairs), recipe.items_per_pass), 2, recipe))
        self._load(self.trained, job.model, str(job.seed))  # which draws a new head

    def _add(self, new: Pass) -> None:
        """Keep the larger of this pass and the one so far."""
        recipe = new.recipe.model_copy(update=NEUTRAL).model_dump_json() if new.recipe else ""
        sampling = new.sampling.model_dump_json() if new.sampling else ""
        key = "\n".join((new.verb, new.model.model_dump_json(), recipe, sampling))
        if key not in self.largest or (new.sequences, new.samples) > (self.largest[key].sequences, self.largest[key].samples):
            self.largest[key] = new

    @staticmethod
    def _load(models: dict[str, tuple[Any, set[str]]], model: PolicyModel | NetworkReward, key: str) -> None:
        models.setdefault(model.model_dump_json(), (model, set()))[1].add(key)
