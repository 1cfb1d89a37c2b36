"""A judge behind the OpenAI chat-completions protocol: a model of OpenAI, or of a local server."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from apo_bench.clients.chat import ChatClient
from apo_bench.clients.endpoint import ChatSettings
from apo_bench.clients.replies import Reply
from apo_bench.judging.answer_parsing import parse_answer
from apo_bench.judging.judge_protocol import UNPARSABLE, Judge, JudgeContext, Question, Verdict
from apo_bench.judging.prompt_templates import Template, template_for, templates_of


@dataclass(frozen=True)
class ChatJudge(ChatSettings):
    """`{use: apo_bench.judging.chat_judge@ChatJudge, model: ..., base_url: ..., api_key_env: ...}`

    The other fields are those of ChatSettings. Raises InputError that names the field.
    """

    template: str = "by_axis"

    def check(self) -> None:
        super().check()
        templates_of(self.template)

    def open(self, context: JudgeContext) -> "OpenChatJudge":
        """Raises NotHere where the key's variable is not set, or the `judge` extra not installed."""
        return OpenChatJudge(self, ChatClient(self.endpoint))


@dataclass(frozen=True)
class OpenChatJudge(Judge):
    """A judge with its client."""

    spec: ChatJudge
    client: ChatClient

    @property
    def identity(self) -> Mapping[str, Any]:
        templates = {template.name: template.digest for template in templates_of(self.spec.template)}
        return {"kind": "chat", **self.spec.identity, "templates": templates}

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        """Verdicts as answers arrive. A second attempt uses another seed and bypasses caches, which might return the same answer."""
        sampling = self.spec.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + attempt)
        # In the order of hashes: the first few, by which a set-up that does not work is known, are not all about one prompt.
        in_order = sorted(questions, key=lambda question: question.id)
        calls = ((question, self._template(question).messages(question)) for question in in_order)
        with closing(self.client.replies(calls, sampling, spent_usd, fresh=attempt > 0)) as replies:
            for question, reply in replies:
                yield question, self._verdict(question, reply)

    def _template(self, question: Question) -> Template:
        return template_for(self.spec.template, question.prompt.axis)

    def _verdict(self, question: Question, reply: Reply) -> Verdict:
        choice = None if reply.failure else parse_answer(reply.text, self._template(question).reasoned)
        return Verdict(
            choice,
            failure="" if choice else reply.failure or UNPARSABLE,
            answered=reply.answered,
            rejected=reply.rejected,
            text=reply.text,
            calls=int(reply.answered),
            prompt_tokens=reply.prompt_tokens or 0,
            completion_tokens=reply.completion_tokens or 0,
            cost_usd=reply.cost_usd,
            lost_usd=reply.lost_usd,
            latency_s=reply.latency_s,
        )
