"""A reward model as a judge: the response with the higher score is the better one."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, digest_folder
from apo_bench.judging.judge_protocol import GoldScorer, Judge, JudgeContext, Question, Verdict
from apo_bench.models.model_folder import check_context, check_model, config_fields
from apo_bench.models.pretrained_weights import resolve_model
from apo_bench.provenance import versions
from apo_bench.types import Prompt

TOO_LONG = "too long"
NO_SCORE = "no score"
DEFAULT_TOKENS = 512
Scored = tuple[Prompt, str]


@dataclass(frozen=True)
class RewardModelJudge:
    """Judges by the difference of two scores, a log-odds under Bradley-Terry; a tie where it is at most `tie_margin` either way.

    The scores are those of `gold`, a gold reward model of the run, or of the finished reward model in `path`: a folder, or a hub id.
    The other fields concern the latter, as in `kind: pretrained`. `template` None: the tokenizer's chat template, where it has one.
    An input of more than `max_tokens` (None: 512, or the model's places if these are fewer) is not cut; its question fails as too long.
    Raises InputError unless exactly one of `gold` and `path` is given.
    """

    gold: str | None = None
    path: str | None = None
    tie_margin: Annotated[float, Ge(0)] = 0.0
    max_tokens: Annotated[int, Ge(2)] | None = None
    batch_size: Annotated[int, Ge(1)] = 64
    axis_input: bool = False
    output: Annotated[int, Ge(0)] = 0
    template: Literal["chat", "transcript"] | None = None
    system_prompt: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if (self.gold is None) == (self.path is None):
            raise InputError(f"RewardModelJudge: give exactly one of gold and path, got gold={self.gold!r} and path={self.path!r}")

    def open(self, context: JudgeContext) -> Judge:
        """Raises InputError for an unknown gold model, for a gold model outside a run, for a path that does not exist, for a folder whose
        model cannot score, and for more `max_tokens` than it has places."""
        if self.path is not None:
            model = resolve_model(self.path, Path(context.base) if context.base else None)
            if Path(model).is_dir():
                self._check(Path(model))
            return OpenRewardModelJudge(self, model, None, "")
        if context.gold_scorer is None:
            raise InputError(f"RewardModelJudge: gold: {self.gold!r} is a reward model of a run, and there is none here; give a path")
        if self.gold is None or self.gold not in context.gold_ids:
            raise InputError(
                f"RewardModelJudge: gold: no gold reward model {self.gold!r}; there are: {', '.join(context.gold_ids) or 'none'}"
            )
        return OpenRewardModelJudge(self, None, context.gold_scorer, context.gold_ids[self.gold])

    def _check(self, folder: Path) -> None:
        fields = config_fields(folder)
        if self.max_tokens is not None:
            check_context(fields, f"{self.path}: max_tokens", self.max_tokens)
        if self.trust_remote_code and "auto_map" in fields:
            return
        from transformers import AutoModelForSequenceClassification

        from apo_bench.models.finished_reward import check_finished, finished_tokenizer

        network = check_model(AutoModelForSequenceClassification, folder, self.trust_remote_code)
        spec = self.model_spec(str(folder))
        check_finished(folder, network.config, spec)
        finished_tokenizer(folder, spec, network)

    def model_spec(self, model: str) -> Any:
        """The model as `kind: pretrained` has it."""
        from apo_bench.config.schema import PretrainedReward
        from apo_bench.models.finished_reward import own_template
        from apo_bench.models.model_folder import context_length, read_config

        context = context_length(read_config(model, self.trust_remote_code))
        limit = self.max_tokens or min(DEFAULT_TOKENS, context or DEFAULT_TOKENS)
        template = self.template or own_template(model, self.trust_remote_code)
        fields = ("axis_input", "output", "system_prompt", "dtype", "attention", "trust_remote_code")
        return PretrainedReward(
            kind="pretrained", path=model, max_tokens=limit, template=template, score_batch_size=self.batch_size,
            **{name: getattr(self, name) for name in fields},
        )  # fmt: skip


@dataclass(frozen=True)
class OpenRewardModelJudge(Judge):
    spec: RewardModelJudge
    model: str | None
    gold_scorer: GoldScorer | None
    gold_id: str

    @property
    def identity(self) -> Mapping[str, Any]:
        code = {"code": code_hash(__name__), "versions": versions()}
        return {"kind": "reward model", **asdict(self.spec), "path": self._content, "gold_id": self.gold_id, **code}

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        """Scores each distinct response once, all before the first verdict: the model is loaded for the call and not kept."""
        pairs = {question: ((question.prompt, question.first), (question.prompt, question.second)) for question in questions}
        items = list(dict.fromkeys(item for pair in pairs.values() for item in pair))
        scores, lengths = self._scores(items) if items else ({}, {})
        for question, pair in pairs.items():
            yield question, self._verdict([scores.get(item) for item in pair], tokens=sum(lengths.get(item, 0) for item in pair))

    @cached_property
    def _content(self) -> str | None:
        return digest_folder(Path(self.model)) if self.model and Path(self.model).is_dir() else self.model

    def _verdict(self, scores: Sequence[float | None], tokens: int) -> Verdict:
        first, second = scores
        if first is None or second is None:
            return Verdict(None, TOO_LONG, text=f"{tokens} tokens", calls=0)
        difference, text = first - second, f"score(A) = {first:.6g}, score(B) = {second:.6g}"
        if math.isnan(difference):
            return Verdict(None, NO_SCORE, text=text, prompt_tokens=tokens)
        choice = "tie" if abs(difference) <= self.spec.tie_margin else "first" if difference > 0 else "second"
        return Verdict(choice, text=text, probability=(1 + math.tanh(difference / 2)) / 2, prompt_tokens=tokens)

    def _scores(self, items: Sequence[Scored]) -> tuple[dict[Scored, float], dict[Scored, int]]:
        """Scores of the items that are short enough, and tokens of all; a gold model truncates by its own settings."""
        if self.gold_scorer is not None and self.spec.gold is not None:
            return dict(zip(items, self.gold_scorer(self.spec.gold, items), strict=True)), {}
        from apo_bench.models.device import own_device
        from apo_bench.models.finished_reward import load_finished
        from apo_bench.models.policy import use_one_thread
        from apo_bench.models.precision import resolved
        from apo_bench.models.reward import encode_texts, score

        assert self.model is not None
        use_one_thread()
        spec = self.spec.model_spec(self.model)
        limit = spec.max_tokens
        spec = resolved(spec, own_device().type)
        model, tokenizer = load_finished(self.model, spec, dtype=spec.dtype, attention=spec.attention)
        encoded = encode_texts(tokenizer, items, spec.model_copy(update={"max_tokens": sys.maxsize}), model=model)
        lengths = {item: len(each.ids) for item, each in zip(items, encoded, strict=True)}
        fitting = [item for item in items if lengths[item] <= limit]
        return dict(zip(fitting, score(model, tokenizer, fitting, spec)[0], strict=True)) if fitting else {}, lengths
