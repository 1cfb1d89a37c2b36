"""A judge behind the OpenAI chat-completions protocol: OpenAI's own models, or a local server's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from apo_bench.errors import InputError
from apo_bench.judging.chat import ChatClient, Reply
from apo_bench.judging.endpoint import Endpoint, Sampling
from apo_bench.judging.templates import Template, template_for, templates_of
from apo_bench.judging.verdicts import UNPARSABLE, Judge, Question, Surroundings, Verdict


@dataclass(frozen=True)
class ChatJudge:
    """`{use: apo_bench.judging.chat_judge@ChatJudge, model: ..., base_url: ..., api_key_env: ...}`

    `api_key_env` names the environment variable with the API key, null where none is needed. `served_as` is a name for a server that
    moves: verdicts are kept under it instead of under `base_url`. Settings that a server refuses are null. The rest is as in
    chat.Endpoint and chat.Sampling. Raises InputError that names the field.
    """

    model: str
    base_url: str
    api_key_env: str | None
    served_as: str | None = None
    template: str = "by_axis"
    temperature: float | None = 0.0
    max_tokens: int = 512
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: int | None = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    timeout_s: float = 60.0
    max_attempts: int = 6
    max_wait_s: float = 60.0
    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_completion_tokens: float = 0.0
    max_usd: float | None = None

    def __post_init__(self) -> None:
        try:
            _ = self.endpoint, self.sampling, templates_of(self.template)  # each checks itself
        except InputError as error:
            raise InputError(f"ChatJudge: {error}") from None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(**{part.name: getattr(self, part.name) for part in fields(Endpoint)})

    @property
    def sampling(self) -> Sampling:
        return Sampling(**{part.name: getattr(self, part.name) for part in fields(Sampling)})

    def open(self, at: Surroundings) -> "OpenChatJudge":
        """Raises NotHere where the key's variable is not set, or the `judge` extra not installed."""
        return OpenChatJudge(self, ChatClient(self.endpoint))


@dataclass(frozen=True)
class OpenChatJudge(Judge):
    """A judge with its client."""

    spec: ChatJudge
    client: ChatClient

    @property
    def identity(self) -> Mapping[str, Any]:
        """What can change a verdict. The server is part of it: many local ones answer to any model's name. Prices and pace are not."""
        return {
            "kind": "chat",
            "model": self.spec.model,
            "server": self.spec.served_as or self.spec.base_url.rstrip("/"),
            "templates": {template.name: template.digest for template in templates_of(self.spec.template)},
            "sampling": self.spec.sampling.body(),
        }

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        """Verdicts as they come in. A second attempt has another seed and passes caches by: the same request might get the same answer."""
        sampling = self.spec.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + attempt)
        calls = ((question, self._template(question).messages(question)) for question in questions)
        with closing(self.client.replies(calls, sampling, spent_usd, fresh=attempt > 0)) as replies:
            for question, reply in replies:
                yield question, self._verdict(question, reply)

    def _template(self, question: Question) -> Template:
        return template_for(self.spec.template, question.prompt.axis)

    def _verdict(self, question: Question, reply: Reply) -> Verdict:
        choice = None if reply.failure else self._template(question).read(reply.text)
        return Verdict(
            choice,
            failure="" if choice else reply.failure or UNPARSABLE,
            answered=reply.answered,
            text=reply.text,
            calls=int(reply.answered),
            prompt_tokens=reply.prompt_tokens or 0,
            completion_tokens=reply.completion_tokens or 0,
            cost_usd=reply.cost_usd,
            latency_s=reply.latency_s,
        )
