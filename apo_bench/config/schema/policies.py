"""The policy, how it is trained and how it is sampled."""

import math
import re
from datetime import date
from typing import Any, Literal, Self

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from apo_bench.config.schema.values import WHOLE, Section, Seed

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
