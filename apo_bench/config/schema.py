"""What an experiment file may say. Unknown keys are refused, and nothing is converted."""

import json
import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Unit = Literal[
    "human_pairs", "golden_responses", "sampled_responses", "sampled_tokens", "scored_responses", "scored_tokens",
    "rm_updates", "rm_train_tokens", "policy_updates", "policy_train_tokens", "flops",
]  # fmt: skip
Match = Literal["annotation", "samples", "updates", "flops"]


def _distinct(values: Any) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} occurs twice")
        seen.add(value)
    return values


def _not_negative(budget: dict[str, float]) -> dict[str, float]:
    for unit, value in budget.items():
        if not value >= 0:
            raise ValueError(f"{unit}: a budget is 0 or more, got {value}")
    return budget


Budget = Annotated[dict[Unit, float], AfterValidator(_not_negative)]


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both accept
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # also a file's or folder's name
JUDGE = "judge/"  # before a judge's name, where it is the scorer
_CLASS = r"^[^@]+@[A-Za-z_]\w*$"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskChoice(Strict):
    """Which task, and its options (data files, sizes, world knobs); the task refuses options it does not know."""

    use: str
    options: dict[str, Any] = {}


class Lora(Strict):
    """Low-rank adapters, merged into the weights after training."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Recipe(Strict):
    """How weights are fitted. `batch_size` counts items per update; `micro_batch_size` items per forward pass."""

    learning_rate: float = Field(gt=0)
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    lora: Lora | None = None
    freeze: str | None = None  # regular expression of parameter names that stay as they are

    @field_validator("freeze")
    @classmethod
    def _is_a_pattern(cls, freeze: str | None) -> str | None:
        try:
            re.compile(freeze or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return freeze

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}")
        return self

    def updates(self, items: int) -> int:
        """Optimizer updates a fit of so many items takes; known before it starts."""
        return max(1, math.ceil(self.epochs * math.ceil(items / self.batch_size)))


class Sampling(Strict):
    """How a policy answers. top_k 0 and top_p 1 leave the distribution untruncated."""

    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=64, ge=1)


class PolicyModel(Strict):
    """The initial policy: a model folder or hub id (`path`), or an `architecture` warmed up on the task's demonstrations."""

    path: str | None = None
    architecture: dict[str, Any] | None = None
    seed: Seed = 0  # of an architecture's first weights and its warm-up; one policy for the whole experiment
    system_prompt: str | None = ""
    max_prompt_tokens: int = Field(default=256, ge=1)
    max_response_tokens: int = Field(default=256, ge=1)
    warmup: Recipe | None = None
    training: Recipe
    sampling: Sampling
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of path and architecture")
        if (self.architecture is None) != (self.warmup is None):
            raise ValueError("warmup goes with architecture, and only with it")
        return self


class NeuralReward(Strict):
    """Sequence classification with one label on any backbone: `path`, `architecture`, or `initial: policy`."""

    kind: Literal["neural"] = "neural"
    path: str | None = None
    architecture: dict[str, Any] | None = None
    initial: Literal["policy"] | None = None
    warmup: Recipe | None = None  # with an architecture: first learn the task's demonstrations as a language model
    axis_input: bool = False  # put the axis's name before the text, where the axes pull against each other
    axis_heads: bool = False  # or give each axis an output of its own on a shared body
    max_tokens: int = Field(default=256, ge=2)
    score_batch_size: int = Field(default=64, ge=1)
    training: Recipe
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.path, self.architecture, self.initial)) != 1:
            raise ValueError("give exactly one of path, architecture and initial")
        if self.warmup is not None and self.architecture is None:
            raise ValueError("warmup goes with architecture, and only with it")
        return self


class NgramReward(Strict):
    """Linear Bradley-Terry model on tf-idf n-gram differences, one weight vector per axis."""

    kind: Literal["ngram"] = "ngram"
    max_features: int = Field(default=20_000, ge=1)
    ngrams: tuple[int, int] = (1, 2)
    strength: float = Field(default=1.0, gt=0)  # inverse L2 penalty, scikit-learn's C
    per_axis: bool = True
    bootstrap: bool = True  # a seed resamples clusters of pairs; without, every seed gives the same model


RewardSpec = NeuralReward | NgramReward


class Gold(Strict):
    """A gold reward model: trained on the gold split once per seed in `seeds`, never used for selection."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    model: RewardSpec = Field(discriminator="kind")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(seeds)


class Models(Strict):
    policy: PolicyModel
    reward: RewardSpec = Field(discriminator="kind")
    gold: tuple[Gold, ...] = Field(min_length=1)

    @field_validator("gold")
    @classmethod
    def _distinct_names(cls, gold: tuple[Gold, ...]) -> tuple[Gold, ...]:
        _distinct([one.name for one in gold])
        if clash := {one.name for one in gold} & {"proxy", "ground_truth", "length", "refusal"}:
            raise ValueError(f"gold may not be called {sorted(clash)[0]}")
        return gold


class Evaluation(Strict):
    """How every round's policy is examined. None takes all test prompts."""

    sampling: Sampling
    prompts: int | None = Field(default=None, ge=2)
    held_out_golden: int = Field(default=64, ge=4)  # golden responses kept from every arm, to examine reward models on
    kl_prompts: int = Field(default=64, ge=2)
    dev_prompts: int | None = Field(default=None, ge=2)  # asked after each round to choose rounds and settings; None: none
    ece_bins: int = Field(default=10, ge=2)
    diagnostic_pairs: int | None = Field(default=None, ge=2)  # held-out human pairs a reward model is examined on


class Fit(Strict):
    """Sizes an arm to spend what another does: `by`, a dotted parameter of its method, is set so that `unit` comes out as in arm `to`."""

    unit: Unit = "flops"
    to: str
    by: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


class Arm(BaseModel):
    """A method and its parameters; `use` is module@Class or file.py@Class, the other keys are the method's fields.

    `budget` replaces units of the experiment's budget for this arm: what a control may spend more of, or a budget curve less.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    use: str = Field(pattern=_CLASS)
    budget: Budget = {}
    fit: Fit | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class JudgeChoice(BaseModel):
    """A judge and its parameters; `use` is module@Class or file.py@Class, the other keys are the judge's fields."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    use: str = Field(pattern=_CLASS)

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Judging(Strict):
    """Which responses the judges compare: the same for every judge, in both orders, at compare.round.

    `pairs`: the declared comparisons, every two arms, or all arms against `reference`. `seeds` "same" compares the arms' policies of one
    seed, "next" arm a's of one seed with arm b's of the following one (of the experiment's list).
    """

    pairs: Literal["declared", "round_robin", "reference"] = "declared"
    reference: str | None = None
    seeds: Literal["same", "next"] = "same"
    prompts: int | None = Field(default=None, ge=2)  # of the prompts that were answered, as evenly over the axes as they allow; None: all
    audit_pairs: int = Field(default=200, ge=0)  # held-out human pairs that each judge is examined on; 0: none
    attacks: bool = True  # and attacks planted in them

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if (self.pairs == "reference") != (self.reference is not None):
            raise ValueError("reference goes with pairs: reference, and only with it")
        return self


class Comparison(Strict):
    a: str
    b: str
    matched: tuple[Match, ...] = ()


class Compare(Strict):
    primary: tuple[Comparison, ...] = Field(min_length=1)
    secondary: tuple[Comparison, ...] = ()
    scorer: str = "gold"  # "gold" is the first gold model's mean over its seeds; or a gold's name, ground_truth, judge/NAME
    axes: tuple[str, ...] = Field(("all",), min_length=1)  # axes of the primary family; "all" pools them
    round: Literal["final", "dev_best"] = "final"  # dev_best: each arm-seed's round of the highest dev_score
    matched_kl: bool = False  # contrasts also where both arms are equally far from the initial policy
    curves: dict[str, Annotated[tuple[str, ...], AfterValidator(_distinct), Field(min_length=1)]] = {}  # arms by annotation bought
    correction: Literal["holm"] = "holm"

    @field_validator("axes")
    @classmethod
    def _distinct_axes(cls, axes: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(axes)

    @model_validator(mode="after")
    def _distinct_pairs(self) -> Self:
        _distinct([f"{pair.a} against {pair.b}" for pair in self.primary + self.secondary])
        return self


class Tune(Strict):
    """Equal tuning for all arms: so many trials each, drawn from the arm's own grid, judged by dev_score on seeds of their own.

    `grids` maps an arm to dotted parameters ("player.learning_rate") and the values to try. A trial that ends farther than `max_kl` nats
    from the initial policy, on dev prompts, is never taken: a referee can be fooled, and far away it is.
    """

    trials: int = Field(ge=2)
    max_kl: float | None = Field(default=None, gt=0)
    seeds: tuple[Seed, ...] = Field((1000,), min_length=1)
    grids: dict[str, dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(seeds)


class Controls(Strict):
    """Arms that show what this run can tell apart; no family of tests has them, and their scores choose nothing.

    `aa`: the reference again, under seeds of its own: the difference that nothing makes. `oracle`: the best of `oracle_n` answers of the
    reference's final policy, by the truth (or, where the task has none, by a gold model that does not score): no fair arm, but a
    difference that is there; and a diluted one, on so many prompts that the difference is about `effect` (None: the smallest that the run
    can detect). `reference`: an arm (None: b of the first primary pair).
    """

    aa: bool = False
    oracle: bool = False
    reference: str | None = None
    oracle_n: int = Field(default=8, ge=2)
    effect: float | None = Field(default=None, gt=0)


class Executor(Strict):
    """Where arm-seeds run; it changes no row. `use`: a module of apo_bench.run.executors.

    num_cpus and num_gpus are what ray reserves for an arm-seed, `address` its cluster (None: one of its own on this machine). A fit keeps a
    checkpoint every `checkpoint_s` seconds. `launch`: an accelerate configuration file, with which every fit of weights is launched.
    """

    use: str = Field(default="local", pattern=r"^[a-z][a-z0-9_]*$")
    address: str | None = None
    num_cpus: float = Field(default=1.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    checkpoint_s: float = Field(default=600.0, ge=0)
    launch: str | None = None


class EngineChoice(Strict):
    """What samples, scores and trains. `use`: a module of apo_bench.engines."""

    use: str = Field(default="transformers", pattern=r"^[a-z][a-z0-9_]*$")
    memory_gb: float | None = Field(default=None, gt=0)  # of models that stay loaded in a worker; None: half of its device's memory


class Report(Strict):
    """What a report shows beside the results, and what it leaves out.

    `beside`: published numbers by name; `arms`: which of our arms stands for which of theirs. `aggregates_only`: the page shows no prompt,
    no response and no judge's words, as where their text may not be passed on.
    """

    beside: str | None = Field(default=None, pattern=_NAME)
    arms: dict[str, str] = {}
    aggregates_only: bool = False  # a page without prompts, responses and judges' words


Factor = Literal["world", "initial_policy", "gold"]
Level = int | dict[str, Any]  # a seed, or fields that replace those of the section


class Experiment(Strict):
    """One question: arms x seeds on one task under one budget, and the contrasts that answer it."""

    name: str = Field(pattern=_NAME)
    task: TaskChoice
    seeds: tuple[Seed, ...] = Field(min_length=1)
    models: Models
    evaluation: Evaluation
    budget: Budget = {}
    arms: dict[str, Arm] = Field(min_length=1)
    compare: Compare
    judges: dict[str, JudgeChoice] = {}
    judging: Judging = Judging()
    tune: Tune | None = None
    controls: Controls = Controls()
    executor: Executor = Executor()
    engine: EngineChoice = EngineChoice()
    report: Report = Report()
    vary: dict[Factor, Annotated[tuple[Level, ...], Field(min_length=2)]] = {}  # the whole experiment again, at every level

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

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(seeds)

    @field_validator("arms", "judges")
    @classmethod
    def _file_names(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"name {name!r}: letters, digits, '_', '-', '.', starting with a letter or digit")
        return named

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for kind in ("primary", "secondary"):
            for place, pair in enumerate(getattr(self.compare, kind)):
                for side in ("a", "b"):
                    if getattr(pair, side) not in self.arms:
                        raise ValueError(
                            f"compare.{kind}.{place}.{side}: no arm named {getattr(pair, side)!r}; arms: {', '.join(self.arms)}"
                        )
        for name, arms in self.compare.curves.items():
            if unknown := [arm for arm in arms if arm not in self.arms]:
                raise ValueError(f"compare.curves.{name}: no arm named {unknown[0]!r}; arms: {', '.join(self.arms)}")
        if self.compare.round == "dev_best" and self.evaluation.dev_prompts is None:
            raise ValueError("compare.round: dev_best needs evaluation.dev_prompts")
        if self.tune is not None:
            self._check_tuning(self.tune)
        for key, name in (("judging.reference", self.judging.reference), ("controls.reference", self.controls.reference)):
            if name not in (None, *self.arms):
                raise ValueError(f"{key}: no arm named {name!r}; arms: {', '.join(self.arms)}")
        self._check_fits()
        judges = (f"{JUDGE}{name}" for name in self.judges)
        known = {"gold", "proxy", "ground_truth", *(gold.name for gold in self.models.gold), *judges}
        if self.compare.scorer not in known:
            raise ValueError(f"compare.scorer: no scorer named {self.compare.scorer!r}; scorers: {', '.join(sorted(known))}")
        return self

    def _check_fits(self) -> None:
        """An arm is sized by one that is not itself sized, and only by what it does, not by what it is given."""
        for name, arm in self.arms.items():
            if arm.fit is None:
                continue
            if arm.fit.to not in self.arms or arm.fit.to == name:
                raise ValueError(f"arms.{name}.fit.to: no other arm named {arm.fit.to!r}; arms: {', '.join(self.arms)}")
            if self.arms[arm.fit.to].fit is not None:
                raise ValueError(f"arms.{name}.fit.to: {arm.fit.to!r} is itself sized by another arm")
            if arm.fit.unit in ("human_pairs", "golden_responses"):
                raise ValueError(f"arms.{name}.fit.unit: {arm.fit.unit} is annotation, which is the budget's to say")
            if self.tune is not None:
                raise ValueError(f"arms.{name}.fit: not together with tune, whose trials would each be of another size")

    def _check_tuning(self, tune: Tune) -> None:
        """Trials are equally many for every arm, and on seeds that no result is reported for."""
        if self.evaluation.dev_prompts is None:
            raise ValueError("tune: needs evaluation.dev_prompts")
        if both := sorted(set(tune.seeds) & set(self.seeds)):
            raise ValueError(f"tune.seeds: {both[0]} is a seed of the experiment; tuning needs seeds of its own")
        if set(tune.grids) != set(self.arms):
            odd = sorted(set(tune.grids) ^ set(self.arms))[0]
            raise ValueError(f"tune.grids: {odd!r} is {'no arm' if odd in tune.grids else 'missing; every arm is tuned alike'}")
        for arm, grid in tune.grids.items():
            if "." in arm:  # its parameters are dotted keys
                raise ValueError(f"tune.grids.{arm}: an arm with a dot in its name cannot be tuned")
            for parameter, values in grid.items():
                if parameter.partition(".")[0] in ("use", "budget"):
                    raise ValueError(f"tune.grids.{arm}.{parameter}: no parameter of a method")
                if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                    raise ValueError(f"tune.grids.{arm}.{parameter}: a value occurs twice")
            if (points := math.prod(map(len, grid.values()))) < tune.trials:
                raise ValueError(f"tune.grids.{arm}: {points} settings for {tune.trials} trials; every arm gets equally many")
