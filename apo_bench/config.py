"""Experiment YAML -> Experiment. Unknown keys are refused; every error names file and key in one line."""

import json
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from apo_bench.errors import InputError

Unit = Literal[
    "human_pairs", "golden_responses", "sampled_responses", "sampled_tokens", "scored_responses", "scored_tokens",
    "rm_updates", "rm_train_tokens", "policy_updates", "policy_train_tokens", "flops",
]  # fmt: skip
Match = Literal["annotation", "samples", "updates", "flops"]


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both accept
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # also a file's or folder's name


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
    ece_bins: int = Field(default=10, ge=2)
    diagnostic_pairs: int | None = Field(default=None, ge=2)  # held-out human pairs a reward model is examined on


class Arm(BaseModel):
    """A method and its parameters; `use` is module@Class or file.py@Class, the other keys are the method's fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str = Field(pattern=r"^[^@]+@[A-Za-z_]\w*$")

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Comparison(Strict):
    a: str
    b: str
    matched: tuple[Match, ...] = ()


class Compare(Strict):
    primary: tuple[Comparison, ...] = Field(min_length=1)
    secondary: tuple[Comparison, ...] = ()
    scorer: str = "gold"  # "gold" is the first gold model's mean over its seeds; or a gold's name, or ground_truth
    axes: tuple[str, ...] = Field(("all",), min_length=1)  # axes of the primary family; "all" pools them
    round: Literal["final"] = "final"
    correction: Literal["holm"] = "holm"

    @field_validator("axes")
    @classmethod
    def _distinct_axes(cls, axes: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(axes)

    @model_validator(mode="after")
    def _distinct_pairs(self) -> Self:
        _distinct([f"{pair.a} against {pair.b}" for pair in self.primary + self.secondary])
        return self


class Experiment(Strict):
    """One question: arms x seeds on one task under one budget, and the contrasts that answer it."""

    name: str = Field(pattern=_NAME)
    task: TaskChoice
    seeds: tuple[Seed, ...] = Field(min_length=1)
    models: Models
    evaluation: Evaluation
    budget: dict[Unit, float] = {}
    arms: dict[str, Arm] = Field(min_length=1)
    compare: Compare

    @field_validator("task", mode="before")
    @classmethod
    def _bare_task(cls, value: object) -> object:
        return {"use": value} if isinstance(value, str) else value

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(seeds)

    @field_validator("budget")
    @classmethod
    def _not_negative(cls, budget: dict[str, float]) -> dict[str, float]:
        for unit, value in budget.items():
            if not value >= 0:
                raise ValueError(f"{unit}: a budget is 0 or more, got {value}")
        return budget

    @field_validator("arms")
    @classmethod
    def _arm_names(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        for name in arms:
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"arm name {name!r}: letters, digits, '_', '-', '.', starting with a letter or digit")
        return arms

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for kind in ("primary", "secondary"):
            for place, pair in enumerate(getattr(self.compare, kind)):
                for side in ("a", "b"):
                    if getattr(pair, side) not in self.arms:
                        raise ValueError(
                            f"compare.{kind}.{place}.{side}: no arm named {getattr(pair, side)!r}; arms: {', '.join(self.arms)}"
                        )
        known = {"gold", "proxy", "ground_truth", *(gold.name for gold in self.models.gold)}
        if self.compare.scorer not in known:
            raise ValueError(f"compare.scorer: no scorer named {self.compare.scorer!r}; scorers: {', '.join(sorted(known))}")
        return self


def _distinct(values: Any) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} occurs twice")
        seen.add(value)
    return values


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (PyYAML keeps the last, silently) and reads 1e-3 as a number, a date as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise InputError(f"key {key!r} is not text (line {line}); put it in quotes")
            if key in keys:
                raise InputError(f"key {key!r} occurs twice (line {line})")
            keys.add(key)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# PyYAML follows YAML 1.1, where 1e-3 is text; experiment files write learning rates that way.
_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))
_PlainLoader.add_implicit_resolver(*_EXPONENT)


class _PlainDumper(yaml.SafeDumper):
    """Quotes the text that _PlainLoader would read as a number."""


_PlainDumper.add_implicit_resolver(*_EXPONENT)


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as YAML that `load_experiment` reads back as it is, every default written out."""
    return yaml.dump(experiment.model_dump(mode="json"), Dumper=_PlainDumper, sort_keys=False)


def load_experiment(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read and validate an experiment file. Nothing is guessed: the text "3" is no number, true is not 1.

    `overrides` maps dotted keys ("models.policy.path") to values and is applied before validation.
    Raises InputError, one line naming file and key.
    """
    tree = _read(path)
    for key, value in (overrides or {}).items():
        _assign(tree, key, value)
    try:  # as JSON, where strictness takes a list for a tuple
        return Experiment.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = _key(first, tree)
        message = first["msg"].removeprefix("Value error, ")
        shown = (
            "" if isinstance(first["input"], dict | list) or first["type"] == "json_invalid" else f" (got {reprlib.repr(first['input'])})"
        )
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise InputError(_one_line(f"{path}: {key + ': ' if key else ''}{message}{shown}{more}")) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(_one_line(f"{path}: not plain data: {error}")) from None


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text, by the rules of experiment files. Raises InputError, one line that starts with `source`."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except InputError as error:
        raise InputError(_one_line(f"{source}: {error}")) from None
    except (yaml.YAMLError, TypeError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise InputError(_one_line(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}")) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise InputError(f"{path}: an experiment is a mapping of keys, got {type(tree).__name__}")
    return tree


def _key(error: ErrorDetails, tree: Any) -> str:
    """The dotted key an error is about, as the file spells it: pydantic's own marks, such as a union's member, are left out."""
    parts: list[str] = []
    for part in error["loc"]:
        try:
            tree = tree[part]
        except (TypeError, KeyError, IndexError):
            if error["type"] != "missing" or part != error["loc"][-1]:
                continue
        parts.append(str(part))
    return ".".join(parts)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if isinstance(child, str) and parent == "task":
            child = tree[parent] = {"use": child}
        if not isinstance(child, dict):
            raise InputError(f"--set {dotted}: {parent!r} is not a mapping")
        tree = child
    tree[last] = value
