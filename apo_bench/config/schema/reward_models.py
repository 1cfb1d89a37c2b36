"""Reward models, by kind."""

from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from apo_bench.config.schema.chat_servers import ChatServer
from apo_bench.config.schema.policies import Attention, Dtype, Recipe
from apo_bench.config.schema.values import Section


class NeuralReward(Section):
    """Sequence classification with one label on any backbone: `path`, `architecture`, or `initial: policy`."""

    kind: Literal["neural"] = "neural"
    """a neural network"""

    path: str | None = None
    """model folder or hub id, as for the policy"""

    architecture: dict[str, Any] | None = None
    """fields of a transformers configuration, as for the policy"""

    initial: Literal["policy"] | None = None
    """start from the experiment's initial policy, with a new head"""

    warmup: Recipe | None = None
    """with an architecture: first learn the task's demonstrations as a language model"""

    axis_input: bool = False
    """put the axis's name before the text, where the axes pull against each other"""

    axis_heads: bool = False
    """give each axis an output of its own on a shared body"""

    system_prompt: str | None = ""
    """system turn before every conversation, as for the policy; the axis comes before it"""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """as for the policy"""

    template_date: date | None = None
    """as for the policy"""

    max_tokens: int = Field(default=256, ge=2)
    """longest conversation with its response; longer ones are cut as prompts are"""

    score_batch_size: int = Field(default=64, ge=1)
    """texts scored at a time"""

    training: Recipe
    """how the reward model is trained, each time"""

    dtype: Dtype = "auto"
    """as for the policy; the head that gives the score stays in float32"""

    stored_dtype: Dtype = "auto"
    """as for the policy"""

    attention: Attention = "auto"
    """as for the policy"""

    trust_remote_code: bool = False
    """as for the policy"""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.path, self.architecture, self.initial)) != 1:
            raise ValueError("give exactly one of path, architecture and initial")
        if self.warmup is not None and self.architecture is None:
            raise ValueError("warmup goes with architecture, and only with it")
        return self


class NgramReward(Section):
    """Linear Bradley-Terry model on tf-idf n-gram differences."""

    kind: Literal["ngram"] = "ngram"
    """no neural network: a convex problem, solved in seconds"""

    max_features: int = Field(default=20_000, ge=1)
    """how many of the most frequent n-grams are kept"""

    ngrams: tuple[int, int] = (1, 2)
    """shortest and longest n-gram, in words"""

    strength: float = Field(default=1.0, gt=0)
    """inverse L2 penalty, scikit-learn's C"""

    per_axis: bool = True
    """a weight vector for each axis; `false`: one for all"""

    bootstrap: bool = True
    """a seed resamples clusters of pairs; `false`: every seed gives the same model"""


class PretrainedReward(Section):
    """A finished reward model, used as it is: sequence classification out of a folder or from the hub, read as its makers read it."""

    kind: Literal["pretrained"]
    """trained elsewhere; nothing here trains it, unless it has `training` and a method goes on from it"""

    path: str
    """model folder or hub id, as for the policy"""

    output: int = Field(default=0, ge=0)
    """which of its outputs is the score"""

    axis_input: bool = False
    """put the axis's name before the text, for a model that was trained here with `axis_input`"""

    template: Literal["chat", "transcript"] = "chat"
    """`chat`: its tokenizer's chat template, all that it writes; `transcript`: `\\n\\nHuman: ... \\n\\nAssistant: ...`"""

    system_prompt: str | None = None
    """system turn before every conversation; `null`: what the chat template does by itself"""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """as for the policy"""

    template_date: date | None = None
    """as for the policy"""

    max_tokens: int = Field(default=512, ge=2)
    """longest conversation with its response; longer ones are cut as prompts are"""

    score_batch_size: int = Field(default=64, ge=1)
    """texts scored at a time"""

    training: Recipe | None = None
    """how a method goes on training it, as APO does; `null`: methods that would are refused"""

    dtype: Dtype = "auto"
    """as for the policy; the head that gives the score stays in float32"""

    stored_dtype: Dtype = "auto"
    """as for the policy, of what `training` makes of it"""

    attention: Attention = "auto"
    """as for the policy; some models need `eager`"""

    trust_remote_code: bool = False
    """as for the policy"""

    architecture: ClassVar[None] = None
    initial: ClassVar[None] = None
    warmup: ClassVar[None] = None
    axis_heads: ClassVar[bool] = False

    @model_validator(mode="after")
    def _system_turns_need_a_template(self) -> Self:
        if self.template == "transcript" and (self.system_prompt or self.chat_template_kwargs):
            raise ValueError("system_prompt and chat_template_kwargs go with template: chat")
        return self


class JudgeReward(ChatServer):
    """A chat model that scores one response: a generative reward model. Its score is a scale's mean under its answer's probabilities."""

    kind: Literal["judge"]
    """a model behind the OpenAI chat-completions protocol; nothing here trains it"""

    template: str = "by_axis"
    """how it is asked: `helpfulness.v1`, `harmlessness.v1`, `overall.v1`, or `by_axis`: whichever goes with the prompt's axis"""

    scale: tuple[int, int] = (1, 9)
    """lowest and highest score; above 9 a number may be several tokens, and `probabilities` has to be `false`"""

    probabilities: bool = True
    """average the scale under the probabilities of its answer's tokens; `false`, or a server that gives none: the number that it writes"""

    unscored: float | None = None
    """the score of a response that it refuses to score, or answers with no number of the scale; `null`: that ends the run"""

    training: ClassVar[None] = None


SingleReward = NeuralReward | NgramReward | PretrainedReward | JudgeReward
FinishedReward = PretrainedReward | JudgeReward
NetworkReward = NeuralReward | PretrainedReward


class EnsembleReward(Section):
    """Several reward models as one. Each one's scores are standardised by their mean and sd on the dev split's human pairs."""

    kind: Literal["ensemble"]
    """reward models of any other kind, trained and scored one by one"""

    of: tuple[Annotated[SingleReward, Field(discriminator="kind")], ...] = Field(min_length=2)
    """the models, each as `models.reward`"""

    combine: Literal["mean", "worst"] = "mean"
    """of the standardised scores; `worst`: the lowest, which an error of one model cannot raise"""


RewardSpec = SingleReward | EnsembleReward


def members(spec: RewardSpec) -> tuple[SingleReward, ...]:
    """The models of an ensemble; any other model alone."""
    return spec.of if isinstance(spec, EnsembleReward) else (spec,)


def is_frozen(spec: RewardSpec) -> bool:
    """Whether human pairs train nothing of a reward model."""
    return all(isinstance(member, FinishedReward) for member in members(spec))
