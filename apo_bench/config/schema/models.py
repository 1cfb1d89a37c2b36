"""Models, and how they are trained and sampled: the policy, the trained reward model, the gold reward models."""

import math
import re
from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from apo_bench.config.schema.values import WHOLE, Section, Seed, Seeds, distinct

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]


class Lora(Section):
    """Low-rank adapters. They are stored apart from the weights that they belong on, and read beside them."""

    rank: int = Field(default=8, ge=1)
    """rank of the adapters"""

    alpha: int = Field(default=16, ge=1)
    """the adapters' output is scaled by alpha / rank"""

    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """names of the layers that get an adapter"""


class Recipe(Section):
    """How weights are trained."""

    learning_rate: float = Field(gt=0)
    """peak AdamW learning rate"""

    epochs: float = Field(default=1.0, gt=0)
    """passes over the data; may be a fraction"""

    batch_size: int = Field(default=32, ge=1)
    """items per update: demonstrations, pairs or groups"""

    micro_batch_size: int | None = Field(default=None, ge=1)
    """items per forward pass, a divisor of `batch_size`; `null`: all of them. Changes memory, not results"""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """learning rate schedule after the warm-up"""

    warmup_steps: int = Field(default=0, ge=0)
    """updates over which the learning rate rises from 0"""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay"""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """norm to which gradients are clipped"""

    lora: Lora | None = None
    """train low-rank adapters; `null`: train all weights"""

    freeze: str | None = None
    """regular expression: parameters whose names match are not trained"""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: products in bf16 by autocast, over trained weights in fp32; `auto`: `bf16` on a GPU, `fp32` on a CPU"""

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """recompute activations in the backward pass, for memory; `auto`: on a GPU"""

    optimizer: str = "adamw_torch_fused"
    """name of an optimizer of transformers' `TrainingArguments`, such as `adamw_torch`, `adafactor` or `adamw_bnb_8bit`"""

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

    @property
    def items_per_pass(self) -> int:
        """Items of a forward pass, in one process."""
        return self.micro_batch_size or self.batch_size

    def updates(self, items: int) -> int:
        """Optimizer updates that training on so many items takes; known before it starts."""
        return max(1, math.ceil(self.epochs * math.ceil(items / self.batch_size)))


class SamplingEngine(Section):
    """A vLLM server that samples in place of the engine, which goes on to score and train. It runs in an environment of its own."""

    use: Literal["vllm"] = "vllm"
    """the server; it needs `python` or `url`"""

    python: str | None = None
    """the python of an environment with vLLM, such as `.venv-vllm/bin/python`: each worker starts a server and ends it; relative to the
    file or the working directory"""

    url: str | None = Field(default=None, pattern=r"^https?://[^\s/]+(/\S*)?$")
    """a server that already runs, without `/v1`; it serves whole weights that it was started with, and adapters that it can read here"""

    attention_backend: str = Field(default="auto", pattern=r"^\w+$")
    """name of vLLM's attention backend; `auto`: what vLLM chooses for the device and the model"""

    kv_cache_gb: float = Field(default=4.0, gt=0)
    """GiB of the server's key-value cache"""

    arguments: tuple[str, ...] = ()
    """further arguments of vLLM's server, such as `--tensor-parallel-size=2`"""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.python is None) == (self.url is None):
            raise ValueError("give exactly one of python and url")
        if self.url and (self.arguments or self.attention_backend != "auto"):
            raise ValueError("arguments and attention_backend go with python: a server at a url has its own")
        return self


class Sampling(Section):
    """How responses are sampled. `top_k: 0` and `top_p: 1` leave the distribution untruncated."""

    max_new_tokens: int = Field(ge=1)
    """longest response; a response that reaches it is cut, and counted as cut"""

    temperature: float = Field(default=1.0, ge=0)
    """softmax temperature; 0: the most likely token at every step (greedy decoding)"""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """sample from the most likely tokens that together have this probability; 1: all"""

    top_k: int = Field(default=0, ge=0)
    """sample from this many of the most likely tokens; 0: all"""

    repetition_penalty: float = Field(default=1.0, gt=0)
    """penalty on tokens that occurred before; 1: none"""

    batch_size: int = Field(default=64, ge=1)
    """responses generated at a time"""

    data_parallel: int = Field(default=1, ge=1)
    """workers that may share a sampling job, where others are idle. Changes time, not results; with `executor: ray`, nothing"""

    engine: SamplingEngine | None = None
    """a server that samples; `null`: the engine that scores and trains"""

    max_mismatch: float | None = Field(default=None, gt=0)
    """mean |difference|, in nats a token, between the log-probabilities of the server and of the policy that is trained; samples beyond it
    fail their arm; `null`: no limit, the difference is only reported"""

    @model_validator(mode="after")
    def _limit_of_a_server(self) -> Self:
        if self.max_mismatch is not None and self.engine is None:
            raise ValueError("max_mismatch goes with engine")
        return self

    @model_serializer(mode="wrap")
    def _what_changes_results(self, fields: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Without `data_parallel`, which stands in no key; with it where `info.context` is WHOLE, as for a file."""
        return {name: value for name, value in fields(self).items() if name != "data_parallel" or info.context == WHOLE}


class PolicyModel(Section):
    """The initial policy: a model folder or hub id (`path`), or an `architecture` warmed up on the task's demonstrations."""

    path: str | None = None
    """a model folder beside the file or in the working directory, an imported model, or a hub id"""

    architecture: dict[str, Any] | None = None
    """fields of a transformers configuration, with `model_type`; for tasks that bring a vocabulary"""

    seed: Seed = 0
    """seed of an architecture's first weights and its warm-up; one policy for the whole experiment"""

    system_prompt: str | None = ""
    """system turn before every conversation; `null`: what the chat template does by itself"""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """given to the chat template, such as `enable_thinking: false`"""

    template_date: date | None = None
    """what a chat template that writes the date takes for today; `null`: the day of the folder's first run"""

    max_prompt_tokens: int = Field(default=256, ge=1)
    """longest prompt; longer ones lose their oldest turns, and then the left of the last one"""

    max_response_tokens: int = Field(default=256, ge=1)
    """longest response that is trained on; the rest is cut"""

    warmup: Recipe | None = None
    """how an architecture first learns the task's demonstrations"""

    training: Recipe
    """recipe of every `train_policy` that does not bring its own"""

    sampling: Sampling
    """how methods' samples are drawn; evaluation has its own settings"""

    dtype: Dtype = "auto"
    """of weights that are only read: in sampling, scoring and KL, as a reference, under adapters; `auto`: bfloat16 on a GPU, float32 on a
    CPU"""

    stored_dtype: Dtype = "auto"
    """of trained weights in the store; `auto`: `dtype` where that is given, else float32, in which they are trained"""

    attention: Attention = "auto"
    """attention kernel; `auto` is `sdpa`, which is eager for architectures that have no other; `flash_attention_2` needs flash-attn"""

    quantize: Literal["4bit", "8bit"] | None = None
    """read the weights under adapters in so many bits (bitsandbytes, on a GPU); needs `path` and `training.lora`"""

    trust_remote_code: bool = False
    """run python that the model's folder or hub repository brings"""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of path and architecture")
        if (self.architecture is None) != (self.warmup is None):
            raise ValueError("warmup goes with architecture, and only with it")
        if self.quantize and (self.path is None or self.training.lora is None):
            raise ValueError(f"quantize: {self.quantize} goes with path and training.lora: quantized weights are not trained")
        if self.quantize and self.sampling.engine:
            raise ValueError(f"quantize: {self.quantize} does not go with sampling.engine, which reads the weights as they are")
        return self


class FinishedModel(Section):
    """Settings of a policy that was trained elsewhere; where one is not given, that of `models.policy` applies."""

    system_prompt: str | None = None
    """as for the policy"""

    chat_template_kwargs: dict[str, Any] | None = None
    """as for the policy"""

    template_date: date | None = None
    """as for the policy"""

    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """as for the policy"""

    max_response_tokens: int | None = Field(default=None, ge=1)
    """longest response that is read again, as for KL"""

    dtype: Dtype | None = None
    """as for the policy"""

    attention: Attention | None = None
    """as for the policy"""

    trust_remote_code: bool | None = None
    """as for the policy"""

    def on(self, policy: PolicyModel, path: str) -> PolicyModel:
        """The policy's settings with these in place of its own, for a model at a path."""
        origin = {"path": path, "architecture": None, "warmup": None}
        own = {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None or name == "system_prompt"}
        return policy.model_copy(update=origin | own)


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


class JudgeReward(Section):
    """A chat model that scores one response: a generative reward model. Its score is a scale's mean under its answer's probabilities."""

    kind: Literal["judge"]
    """a model behind the OpenAI chat-completions protocol; nothing here trains it"""

    model: str
    """the model's name, as the server knows it"""

    base_url: str
    """the server, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`"""

    api_key_env: str | None
    """the environment variable that holds the API key; `null`: none is needed"""

    served_as: str | None = None
    """a name for a server that moves: keys hold it in place of `base_url`"""

    template: str = "by_axis"
    """how it is asked: `helpfulness.v1`, `harmlessness.v1`, `overall.v1`, or `by_axis`: whichever goes with the prompt's axis"""

    scale: tuple[int, int] = (1, 9)
    """lowest and highest score; above 9 a number may be several tokens, and `probabilities` has to be `false`"""

    probabilities: bool = True
    """average the scale under the probabilities of its answer's tokens; `false`, or a server that gives none: the number that it writes"""

    unscored: float | None = None
    """the score of a response that it refuses to score, or answers with no number of the scale; `null`: that ends the run"""

    temperature: float | None = 0.0
    """as for a chat judge, as are all that follow"""

    max_tokens: int = Field(default=512, ge=1)
    """longest answer, thoughts included; 1: the next token's probabilities are read, whatever it is, which suits small models"""

    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """what the server calls it"""

    seed: int | None = 0
    """`null`: not sent"""

    extra: dict[str, Any] = Field(default_factory=dict)
    """further fields of the request"""

    concurrency: int = Field(default=16, ge=1)
    """calls at a time"""

    timeout_s: float = Field(default=60.0, gt=0)
    """seconds for one attempt"""

    max_attempts: int = Field(default=6, ge=1)
    """attempts a call"""

    max_wait_s: float = Field(default=60.0, gt=0)
    """longest wait between two attempts, in seconds"""

    usd_per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    """price"""

    usd_per_million_completion_tokens: float = Field(default=0.0, ge=0)
    """price"""

    max_usd: float | None = Field(default=None, ge=0)
    """most that the run pays for this model's scores; each worker stops there by what it knows when it begins to score"""

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


class Gold(Section):
    """A gold reward model, never used for selection: trained on the gold split once per seed in `seeds`, or finished before."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """its name in reports and in `compare.scorer`"""

    model: RewardSpec = Field(discriminator="kind")
    """the model, by `kind`; another architecture than `models.reward`, so that both do not err alike"""

    seeds: Seeds = (0, 1, 2)
    """training seeds; scores are means over them. A finished model (`kind: pretrained`, `judge`) has one: `[0]`"""

    @model_validator(mode="after")
    def _one_seed_of_a_finished_model(self) -> Self:
        if is_frozen(self.model) and len(self.seeds) > 1:
            if "seeds" in self.model_fields_set:
                raise ValueError("seeds: a finished reward model has one score, whatever the seed; give [0] or leave it out")
            object.__setattr__(self, "seeds", (0,))  # the default of such a model; the section is frozen
        return self


class Models(Section):
    """The models of an experiment."""

    policy: PolicyModel
    """where every arm starts"""

    reward: RewardSpec = Field(discriminator="kind")
    """the reward model that methods train, or use as it is: `kind: neural`, `ngram`, `pretrained`, `judge` or `ensemble`"""

    gold: tuple[Gold, ...] = Field(min_length=1)
    """the reward models that evaluate; the first is the default scorer"""

    @field_validator("gold")
    @classmethod
    def _distinct_names(cls, golds: tuple[Gold, ...]) -> tuple[Gold, ...]:
        distinct([gold.name for gold in golds])
        if clash := {gold.name for gold in golds} & {"proxy", "ground_truth", "length", "refusal"}:
            raise ValueError(f"gold may not be called {sorted(clash)[0]}")
        return golds
