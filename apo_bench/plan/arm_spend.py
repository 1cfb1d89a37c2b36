"""An experiment's arms played by the counting engine: what their rounds and their evaluation would spend."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from apo_bench.config.controls import ORACLE, chooser
from apo_bench.config.prompt_sets import rounds_of
from apo_bench.config.schema import Experiment, Gold, PolicyModel
from apo_bench.data.task import Task
from apo_bench.engines.counting import BLOCK, MANIFEST, CountingEngine, CountingStore, Expected, PlannedArtifact, disk_bytes
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.evaluation.context import FLOOR, EvaluationContext
from apo_bench.evaluation.evaluate import RoundEvaluation
from apo_bench.evaluation.oracle import BestAndFirst
from apo_bench.evaluation.prompt_sets import SetEvaluation
from apo_bench.hashing import digest
from apo_bench.lab import Lab
from apo_bench.losses import RankingLoss
from apo_bench.models.device import own_device
from apo_bench.models.precision import resolved
from apo_bench.types import Policy, RewardModel, Round

ROW = 10  # bytes of a row of scores on disk


@dataclass(frozen=True)
class CountingContext(EvaluationContext):
    """The evaluation context of an experiment whose engine only counts."""

    store: CountingStore  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    engine: CountingEngine  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    _policies: dict[str, Policy] = field(default_factory=dict, kw_only=True)  # by settings: every lab asks for its reward model's body
    _golds: dict[tuple[str, int], RewardModel] = field(default_factory=dict, kw_only=True)
    _scored_sides: dict[str, np.ndarray] = field(default_factory=dict, kw_only=True)  # by key of a reward model

    @property
    def planned(self) -> dict[str, PlannedArtifact]:
        """Each artifact once, in the order of a run."""
        return self.store.planned

    @cached_property
    def costs_only(self) -> "CountingContext":
        """Without what a task makes of texts: nobody reads the values, and it costs nothing that is counted."""
        truth, refusal = self.task.ground_truth, self.task.is_refusal
        task = replace(self.task, ground_truth=truth and (lambda *_: 0.0), is_refusal=refusal and (lambda _: False))
        return replace(self, task=task)

    def gold(self, gold: Gold, seed: int) -> RewardModel:
        """Counted once, however often it is asked for."""
        if (gold.name, seed) not in self._golds:
            self._golds[gold.name, seed] = super().gold(gold, seed)
        return self._golds[gold.name, seed]

    def sides(self, lab: Lab, reward_model: RewardModel) -> np.ndarray:
        """Counted once for each reward model: every round of an arm asks for its first one's."""
        if reward_model.key not in self._scored_sides:
            self._scored_sides[reward_model.key] = super().sides(lab, reward_model)
        return self._scored_sides[reward_model.key]

    def _language_model(self, model: PolicyModel) -> Policy:
        settings = digest(model.model_dump(mode="json"))
        if settings not in self._policies:
            self._policies[settings] = super()._language_model(model)
        return self._policies[settings]

    def evaluate(self, round_: Round, seed: int, first: RewardModel | None) -> None:
        """Charge what evaluating a round takes."""
        models = (round_.reward_model, first)
        key = digest(["evaluated", round_.policy.key, *(model.key if model else None for model in models), seed])
        if key not in self.planned:
            rows, text = _spent(RoundEvaluation(self.costs_only, round_, seed, first))
            size = disk_bytes(ROW * rows, BLOCK + 0.6 * text, 5000, 5000, 5000, MANIFEST, 1.3 * MANIFEST)
            self.planned[key] = PlannedArtifact("evaluations", 0.0, size)

    def evaluate_sets(self, round_: Round, seed: int, number: int, last: int) -> None:
        """Charge the answers to the prompt sets that are asked in this round, and their scores."""
        for part in self.experiment.evaluation.prompt_sets:
            key = digest(["set", part.name, round_.policy.key, seed])
            if number in rounds_of(part, last) and key not in self.planned:
                evaluation = SetEvaluation(self, part, round_, seed)
                rows = sum(len(values) for values in evaluation.scores().values())
                text = sum(len(answer.response.text) for answer in evaluation.answers)
                self.planned[key] = PlannedArtifact(
                    "evaluations", 0.0, disk_bytes(ROW * rows, BLOCK + 0.6 * text, MANIFEST, 1.3 * MANIFEST)
                )

    def evaluate_oracle(self, final: Round, seed: int) -> None:
        """Charge what the best of several answers of an arm's final policy takes, and their scores."""
        chooser(self.experiment, self.task.ground_truth is not None)  # refuses as a run would
        rows = sum(len(values) for values in BestAndFirst(self, final, seed).scores().values())
        size = disk_bytes(ROW * rows, MANIFEST, 1.3 * MANIFEST)
        self.planned[digest([ORACLE, final.policy.key, seed])] = PlannedArtifact("evaluations", 0.0, size)

    def evaluate_golds(self) -> None:
        """Charge the gold models and their accuracy on held-out pairs."""
        for gold in self.experiment.models.gold:
            for seed in gold.seeds:
                self.sides(self.lab(seed, gold.model), self.gold(gold, seed))
        lab = self.lab(0, FLOOR)
        self.sides(lab, lab.train_reward_model(self.task.pairs["gold"], loss=RankingLoss()))


def _spent(evaluation: RoundEvaluation) -> tuple[int, int]:
    """Everything of a round's tables that is sampled, scored or compared; how many scores, and characters of the responses."""
    responses, scores = evaluation.responses, evaluation.scores()
    evaluation.divergence()
    evaluation.dev_score()
    if evaluation.round.reward_model is not None:
        evaluation.reward_model_rows(evaluation.round.reward_model, scores)
    return len(scores) * len(responses), sum(len(response.text) for response in responses)


def play(context: CountingContext, arm: str, method: object, seed: int) -> tuple[Lab, str]:
    """One arm-seed's Lab after the method has run, and why it would fail; "" if it would not."""
    lab = context.lab(seed, arm=arm)
    try:
        method.run(lab)  # pyright: ignore[reportAttributeAccessIssue]
    except (BudgetExceeded, InputError) as error:
        return lab, str(error)
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's method may raise anything
        return lab, f"{type(error).__name__}: {error}"
    return lab, "" if lab.rounds else "it finished no round (lab.finish_round was not called)"


def counting_context(
    experiment: Experiment, task: Task, response_tokens: float | None = None, initial_tokens: float | None = None, device: str | None = None
) -> CountingContext:
    """A context that counts; for the lengths see `Expected`. `device`: what each `auto` is about; None: this machine's."""
    device = device or own_device().type
    models = experiment.models
    gold = [each.model_copy(update={"model": resolved(each.model, device)}) for each in models.gold]
    settings = {"policy": resolved(models.policy, device), "reward": resolved(models.reward, device), "gold": tuple(gold)}
    experiment = experiment.model_copy(update={"models": models.model_copy(update=settings)})
    expected = Expected(experiment, task, response_tokens, initial_tokens)
    context = CountingContext(experiment, task, CountingStore(), CountingEngine(expected, task, device))
    context.engine.initial_key = context.initial_policy.key
    return context
