"""A language model on this machine as a judge: its verdict is the likelier of the two labels as the next token. Nothing is sampled."""

import datetime
import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, digest_folder
from apo_bench.judging.answer_parsing import LABELS
from apo_bench.judging.judge_protocol import Judge, JudgeContext, Question, Verdict
from apo_bench.judging.prompt_templates import template_for, templates_of
from apo_bench.models.model_folder import check_model, config_fields, fit_embedding
from apo_bench.models.pretrained_weights import resolve_model
from apo_bench.provenance import versions

if TYPE_CHECKING:  # it brings torch
    from apo_bench.models.tokenize import ChatFormat

TOO_LONG = "too long"
NO_PROBABILITY = "no probability"


@dataclass(frozen=True)
class LocalJudge:
    """Judges by log P(A) - log P(B) of the next token; a tie where that is at most `tie_margin` either way.

    `path` is a folder, the name of an imported model or a hub id, `template` one without reasons: there is no room for them. Nothing
    is ever cut: a question of more tokens than `max_tokens`, or than the model has positions for, fails as too long.
    """

    path: str
    template: str = "by_axis"
    tie_margin: Annotated[float, Ge(0)] = 0.0  # log-odds
    batch_size: Annotated[int, Ge(1)] = 8
    max_tokens: Annotated[int, Ge(1)] = 2048
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # given to the chat template beside enable_thinking: false
    template_date: str = "2025-01-01"  # what a template that writes the date takes for today

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.template_date)
        except ValueError:
            raise InputError(f"LocalJudge: template_date: {self.template_date!r} is no date such as 2025-01-01") from None
        if any(template.reasoned for template in templates_of(self.template)):
            raise InputError(f"LocalJudge: template: {self.template!r} asks for reasons, and a next token has no room for them")

    def open(self, context: JudgeContext) -> Judge:
        """Raises InputError for a path that does not exist, and for a folder whose model cannot judge; of that no weight is read before
        the first question."""
        model = resolve_model(self.path, Path(context.base) if context.base else None)
        if Path(model).is_dir():
            self._check(Path(model))
        return OpenLocalJudge(self, model)

    def _check(self, folder: Path) -> None:
        if self.trust_remote_code and "auto_map" in config_fields(folder):
            return
        from transformers import AutoModelForCausalLM

        from apo_bench.models.tokenize import load_tokenizer

        network = check_model(AutoModelForCausalLM, folder, self.trust_remote_code)
        tokenizer = load_tokenizer(folder, self.trust_remote_code)
        fit_embedding(network, tokenizer)
        label_tokens(self.chat(tokenizer), LABELS)

    def chat(self, tokenizer: Any) -> "ChatFormat":
        """How the model reads questions; it does not think before it answers."""
        from apo_bench.models.tokenize import ChatFormat

        kwargs = {"enable_thinking": False, **self.chat_template_kwargs}
        return ChatFormat(tokenizer, template_kwargs=kwargs, date=datetime.date.fromisoformat(self.template_date))

    def encode(self, chat: "ChatFormat", question: Question) -> list[int]:
        """The token ids of a question up to the answer."""
        system, user = template_for(self.template, question.prompt.axis).messages(question)
        return chat.encode_question(system["content"], user["content"])


@dataclass(frozen=True)
class OpenLocalJudge(Judge):
    spec: LocalJudge
    model: str

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "kind": "local",
            **asdict(self.spec),
            "path": self._content,
            "templates": {template.name: template.digest for template in templates_of(self.spec.template)},
            "code": code_hash(__name__),
            "versions": versions(),
        }

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        """Verdicts on questions that are too long first, then the others by length, so that a batch holds questions of similar length."""
        label_model = self._label_model
        fitting: list[tuple[Question, list[int]]] = []
        for question in questions:
            ids = self.spec.encode(label_model.chat, question)
            if len(ids) > min(self.spec.max_tokens, label_model.positions):
                yield question, Verdict(None, TOO_LONG, text=f"{len(ids)} tokens", calls=0)
            else:
                fitting.append((question, ids))
        fitting.sort(key=lambda entry: (len(entry[1]), entry[0].id))
        for start in range(0, len(fitting), self.spec.batch_size):
            batch, started = fitting[start : start + self.spec.batch_size], time.monotonic()
            logps = label_model.label_logps([ids for _, ids in batch])
            latency_s = time.monotonic() - started
            for (question, ids), (first, second) in zip(batch, logps, strict=True):
                yield question, self._verdict(first, second, len(ids), latency_s)

    @cached_property
    def _content(self) -> str:
        return digest_folder(Path(self.model)) if Path(self.model).is_dir() else self.model

    @cached_property
    def _label_model(self) -> "LabelModel":
        from apo_bench.models.policy import load_policy, use_one_thread

        use_one_thread()
        model, tokenizer = load_policy(self.model, self.spec.trust_remote_code)
        return LabelModel(model, self.spec.chat(tokenizer))

    def _verdict(self, first: float, second: float, tokens: int, latency_s: float) -> Verdict:
        odds, text = first - second, f"log P(A) = {first:.4f}, log P(B) = {second:.4f}"
        if math.isnan(odds):
            return Verdict(None, NO_PROBABILITY, text=text, prompt_tokens=tokens, latency_s=latency_s)
        choice = "tie" if abs(odds) <= self.spec.tie_margin else "first" if odds > 0 else "second"
        probability = (1 + math.tanh(odds / 2)) / 2  # P(A) / (P(A) + P(B))
        return Verdict(choice, text=text, probability=probability, prompt_tokens=tokens, latency_s=latency_s)


class LabelModel:
    """A causal language model, in fp32, that gives the probabilities of the two labels as the next token.

    A label may be spelled by two tokens, "A" and " A", as the tokenizer encodes them after the template's generation prompt. A spelling
    counts where it is a single token for both labels; the probabilities of spellings add up. Raises InputError where none counts.
    """

    def __init__(self, model: Any, chat: "ChatFormat") -> None:
        self.model, self.chat, self.tokenizer = model.eval(), chat, chat.tokenizer
        self.positions: float = getattr(model.config, "max_position_embeddings", None) or math.inf
        self.labels = label_tokens(self.chat, LABELS)
        self.keeps_some_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def label_logps(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """log P of each label after each sequence, (B, 2). Sequences are padded on the right, which a causal model does not attend to."""
        import torch

        from apo_bench.models.padding import pad

        padding = self.tokenizer.pad_token_id
        ids, mask = (part.to(self.model.device) for part in pad(sequences, padding))
        last = mask.sum(dim=1) - 1  # (B,)
        kept, column = torch.unique(last, return_inverse=True)
        only = {"logits_to_keep": kept} if self.keeps_some_logits else {}  # the logits of all positions would take most of the memory
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **only).logits  # (B, T or kept, V)
            logits = logits[torch.arange(len(ids)), column if only else last].float()  # (B, V)
            logits[:, padding] = -math.inf  # padding is no word, and the row of an added pad token is untrained
            logps = logits.log_softmax(dim=-1)
            return torch.stack([logps[:, spellings].logsumexp(dim=-1) for spellings in self.labels], dim=1).tolist()


def label_tokens(chat: "ChatFormat", labels: Sequence[str]) -> list[list[int]]:
    """For each label the ids that spell it after a generation prompt, bare and after a space. Raises InputError where none does."""
    start = chat.encode_question("Judge.", "Which?")
    spellings: dict[tuple[int, ...], None] = {}  # (id of the first label, of the second)
    for space in ("", " "):
        longer = [chat.encode_question("Judge.", "Which?", space + label) for label in labels]
        ends = tuple(ids[-1] for ids in longer)
        if all(ids[:-1] == start for ids in longer) and len(set(ends)) == len(labels) and chat.tokenizer.unk_token_id not in ends:
            spellings[ends] = None
    if not spellings:
        raise InputError(f"LocalJudge: path: its tokenizer has no single token for each of the labels {' and '.join(labels)}")
    return [list(ids) for ids in zip(*spellings, strict=True)]
