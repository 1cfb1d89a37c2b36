"""The whole file: one question, and checks that its sections agree."""

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)  # fmt: skip

from apo_bench.config.schema.arms import Arm, Controls, Tune
from apo_bench.config.schema.capabilities import Capabilities
from apo_bench.config.schema.comparisons import Compare
from apo_bench.config.schema.execution import EngineChoice, Executor, StoreSettings
from apo_bench.config.schema.judges import JudgeChoice, Judging
from apo_bench.config.schema.models import Models
from apo_bench.config.schema.policies import Sampling
from apo_bench.config.schema.prompt_sets import RULE, PromptSet
from apo_bench.config.schema.values import JUDGE, NAME, Budget, Section, Seeds, Unit, distinct
from apo_bench.errors import did_you_mean

Tracker = Literal["tensorboard", "wandb", "trackio"]
Factor = str  # one of DRAWN, whose levels stand for others like them, or a dotted key of the experiment, whose levels are chosen
DRAWN = ("world", "initial_policy", "gold")
Level = int | float | bool | str | dict[str, Any]  # a seed, or fields that replace those of the section; of a dotted key, a value


class TaskChoice(Section):
    """Which task, and its options (data files, sizes, world knobs); the task refuses options it does not know."""

    use: str
    """name of a folder under `tasks/`, or its path; `task: NAME` alone is short for this"""

    options: dict[str, Any] = Field(default={})
    """options that the task's YAML lists under `metadata.apo_bench.options`"""


class Evaluation(Section):
    """How every round's policy is evaluated."""

    sampling: Sampling
    """how test prompts are answered"""

    prompts: int | None = Field(default=None, ge=2)
    """prompts of the test split, the same for all arms; `null`: all"""

    held_out_golden: int = Field(default=64, ge=4)
    """golden responses kept from every arm, to evaluate reward models on"""

    kl_prompts: int = Field(default=64, ge=2)
    """prompts on which the KL divergence from the initial policy is measured"""

    dev_prompts: int | None = Field(default=None, ge=2)
    """prompts answered after each round to choose rounds and settings; `null`: none"""

    ece_bins: int = Field(default=10, ge=2)
    """bins of the reward models' expected calibration error"""

    diagnostic_pairs: int | None = Field(default=None, ge=2)
    """held-out human pairs that reward models are evaluated on; `null`: all"""

    prompt_sets: tuple[PromptSet, ...] = ()
    """sets of prompts that are only asked, each an axis of its own"""

    capabilities: Capabilities | None = None
    """tasks of lm-eval on which final policies are compared with the initial one; `null`: none"""

    @field_validator("prompt_sets")
    @classmethod
    def _names_of_their_own(cls, sets: tuple[PromptSet, ...]) -> tuple[PromptSet, ...]:
        distinct(part.name for part in sets)
        return sets

    @model_serializer(mode="wrap")
    def _as_before(self, fields: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Without what is empty and younger than runs that have no such key: they keep their keys and bytes."""
        return {name: value for name, value in fields(self).items() if value or name not in ("prompt_sets", "capabilities")}


class Report(Section):
    """What the report shows beside the results, and what it leaves out."""

    beside: str | None = Field(default=None, pattern=NAME)
    """published numbers to show: a file of results/published without its ending, such as `apo_2024`"""

    arms: dict[str, str] = Field(default={})
    """published policy, such as `apo_rjs`: the arm shown beside it; a policy that is not named goes with the only arm of its method, if
    there is one"""

    names: dict[str, Annotated[str, Field(min_length=1)]] = Field(default={})
    """arm or scorer, such as `apo_rjs`: the name that tables, figures and sentences show for it; csv files keep the experiment's own"""

    aggregates_only: bool = False
    """the page shows no prompt, no response and no judge's words, for texts that may not be passed on"""

    @model_serializer(mode="wrap")
    def _as_before(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without display names where there are none: experiments that are older keep their bytes."""
        return {name: value for name, value in fields(self).items() if value or name != "names"}


class Experiment(Section):
    """One question: arms x seeds on one task under one budget, and the contrasts that answer it."""

    name: str = Field(pattern=NAME)
    """name of the run folder, `results/<name>`: letters, digits, `_`, `-`, `.`"""

    task: TaskChoice
    """the task; its name, or a section"""

    seeds: Seeds
    """seeds of the arms: data order, heads, sampling, training"""

    models: Models
    """the policy, the reward model that methods train, and those that evaluate"""

    evaluation: Evaluation
    """how every round's policy is evaluated"""

    budget: Budget = Field(default={})
    """what each arm may spend; a unit that is not named is measured, not limited"""

    arms: dict[str, Arm] = Field(min_length=1)
    """the methods compared, by name"""

    compare: Compare
    """the question"""

    judges: dict[str, JudgeChoice] = Field(default={})
    """judges, by name"""

    judging: Judging = Judging()
    """what judges compare"""

    tune: Tune | None = None
    """tune every arm; `null`: parameters are as they stand"""

    controls: Controls = Controls()
    """arms that show whether the run can tell arms apart, and invents nothing"""

    executor: Executor = Executor()
    """where it runs; a name, or a section"""

    engine: EngineChoice = EngineChoice()
    """what samples, scores and trains; a name, or a section"""

    store: StoreSettings = StoreSettings()
    """what the run folder keeps"""

    trackers: tuple[Tracker, ...] = ()
    """write the curves of every fit and online step for these trackers too, into `trackers/` of the run folder, without a network"""

    report: Report = Report()
    """what the report shows beside the results"""

    vary: dict[Factor, Annotated[tuple[Level, ...], Field(min_length=2)]] = Field(default={})
    """run the whole experiment at every level; a level of `world`, `initial_policy` or `gold` is a seed (of the world, of the policy's
    first weights, of every gold model), or fields that replace those of `task.options` or `models.policy`, or all gold models by one; a
    level of a dotted key, such as `task.options.label_noise`, is a value of that key"""

    def budget_of(self, arm: str) -> dict[Unit, float]:
        """What an arm may spend: the experiment's budget with the arm's own units in place of its."""
        own = self.arms[arm].budget if arm in self.arms else {}
        return {**self.budget, **own}

    @field_validator("task", "executor", "engine", mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"use": value} if isinstance(value, str) else value

    @property
    def reference(self) -> str:
        """The arm that the controls are made of."""
        return self.controls.reference or self.compare.primary[0].b

    @field_validator("arms", "judges")
    @classmethod
    def _file_names(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"name {name!r}: letters, digits, '_', '-', '.', starting with a letter or digit")
        return named

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        """All that is wrong, a line each."""
        if problems := [*self._factors(), *self._names(), *self._tuning(), *self._fits(), *self._scorer()]:
            raise ValueError("\n".join(problems))
        return self

    def _factors(self) -> Iterator[str]:
        names = [factor.rpartition(".")[2] for factor in self.vary]
        for factor, levels in self.vary.items():
            is_drawn, name = factor in DRAWN, factor.rpartition(".")[2]
            if not is_drawn and (not re.fullmatch(r"\w+(\.\w+)+", factor) or names.count(name) > 1 or name in DRAWN):
                known = did_you_mean(factor, DRAWN)
                yield f"vary.{factor}: {', '.join(DRAWN)}, or a dotted key whose last word no other one has, is needed{known}"
            for place, level in enumerate(levels):
                if isinstance(level, bool | float | str) if is_drawn else isinstance(level, dict):
                    kind = "a seed, or fields in a mapping, is" if is_drawn else "a plain value is"
                    yield f"vary.{factor}.{place}: {kind} needed, got {level!r}"

    def _names(self) -> Iterator[str]:
        def no_arm(name: str) -> str:
            return f"no arm named {name!r}; arms: {', '.join(self.arms)}{did_you_mean(name, self.arms)}"

        for kind in ("primary", "secondary"):
            for place, pair in enumerate(getattr(self.compare, kind)):
                for side in ("a", "b"):
                    if getattr(pair, side) not in self.arms:
                        yield f"compare.{kind}.{place}.{side}: {no_arm(getattr(pair, side))}"
        for name, arms in self.compare.curves.items():
            yield from (f"compare.curves.{name}: {no_arm(arm)}" for arm in arms if arm not in self.arms)
        for part in self.evaluation.prompt_sets:
            if part.refusal_by not in (RULE, *self.judges):
                yield f"evaluation.prompt_sets: {part.name}: refusal_by: no judge named {part.refusal_by!r}, nor {RULE}"
        if self.compare.round == "dev_best" and self.evaluation.dev_prompts is None:
            yield "compare.round: dev_best needs evaluation.dev_prompts"
        for key, name in (("judging.reference", self.judging.reference), ("controls.reference", self.controls.reference)):
            if name is not None and name not in self.arms:
                yield f"{key}: {no_arm(name)}"

    def _scorer(self) -> Iterator[str]:
        judges = (f"{JUDGE}{name}" for name in self.judges)
        known = {"gold", "proxy", "ground_truth", *(gold.name for gold in self.models.gold), *judges}
        scorer = self.compare.scorer
        if scorer not in known:
            yield f"compare.scorer: no scorer named {scorer!r}; scorers: {', '.join(sorted(known))}{did_you_mean(scorer, sorted(known))}"
        named = sorted({*self.arms, *known})
        for name in self.report.names:
            if name not in named:
                yield f"report.names: no arm or scorer named {name!r}; there are: {', '.join(named)}{did_you_mean(name, named)}"
        if len(set(self.report.names.values())) < len(self.report.names):
            yield "report.names: two arms or scorers have the same display name"
        if self.compare.stopping == "anytime" and scorer.startswith(JUDGE):
            yield "compare.stopping: anytime needs a model's scores, and compare.scorer is a judge"

    def _fits(self) -> Iterator[str]:
        """An arm is sized by one that is not itself sized, and only by what it does, not by what it is given."""
        for name, arm in self.arms.items():
            if arm.fit is None:
                continue
            if arm.fit.to not in self.arms or arm.fit.to == name:
                yield f"arms.{name}.fit.to: no other arm named {arm.fit.to!r}; arms: {', '.join(self.arms)}"
            elif self.arms[arm.fit.to].fit is not None:
                yield f"arms.{name}.fit.to: {arm.fit.to!r} is itself sized by another arm"
            if arm.fit.unit in ("human_pairs", "golden_responses"):
                yield f"arms.{name}.fit.unit: {arm.fit.unit} is annotation, which is the budget's to say"
            if self.tune is not None:
                yield f"arms.{name}.fit: not together with tune, whose trials would each be of another size"

    def _tuning(self) -> Iterator[str]:
        """Trials are equally many for every arm, and on seeds that no result is reported for."""
        if (tune := self.tune) is None:
            return
        if self.evaluation.dev_prompts is None:
            yield "tune: needs evaluation.dev_prompts"
        for seed in sorted(set(tune.seeds) & set(self.seeds)):
            yield f"tune.seeds: {seed} is a seed of the experiment; tuning needs seeds of its own"
        for odd in sorted(set(tune.grids) ^ set(self.arms)):
            wrong = f"no arm{did_you_mean(odd, self.arms)}" if odd in tune.grids else "missing; every arm is tuned alike"
            yield f"tune.grids: {odd!r} is {wrong}"
        for arm, grid in tune.grids.items():
            if "." in arm:  # its parameters are dotted keys
                yield f"tune.grids.{arm}: an arm with a dot in its name cannot be tuned"
            for parameter, values in grid.items():
                if parameter.partition(".")[0] in ("use", "budget"):
                    yield f"tune.grids.{arm}.{parameter}: no parameter of a method"
                if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                    yield f"tune.grids.{arm}.{parameter}: a value occurs twice"
            if (points := math.prod(map(len, grid.values()))) < tune.trials:
                yield f"tune.grids.{arm}: {points} settings for {tune.trials} trials; every arm gets equally many"
