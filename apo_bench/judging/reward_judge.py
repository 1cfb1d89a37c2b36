"""A reward model as a judge: the response with the higher score is the better one."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, digest_folder
from apo_bench.judging.judge_protocol import GoldScorer, Judge, JudgeContext, Question, Verdict
from apo_bench.models.pretrained_weights import resolve_model
from apo_bench.provenance import versions
from apo_bench.types import Prompt

TOO_LONG = "too long"
NO_SCORE = "no score"
Scored = tuple[Prompt, str]


@dataclass(frozen=True)
class RewardModelJudge:
    """Judges by the difference of two scores, a log-odds under Bradley-Terry; a tie where it is at most `tie_margin` either way.

    The scores are those of `gold`, a gold reward model of the run, or of the sequence-classification model in `path`: a folder, or
    a hub id. The other fields concern the latter: an input of more than `max_tokens` is not cut; its question fails as too long.
    Raises InputError unless exactly one of `gold` and `path` is given.
    """

    gold: str | None = None
    path: str | None = None
    tie_margin: Annotated[float, Ge(0)] = 0.0
    max_tokens: Annotated[int, Ge(2)] = 512
    batch_size: Annotated[int, Ge(1)] = 64
    axis_input: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if (self.gold is None) == (self.path is None):
            raise InputError(f"RewardModelJudge: give exactly one of gold and path, got gold={self.gold!r} and path={self.path!r}")

    def open(self, context: JudgeContext) -> Judge:
        """Raises InputError for an unknown gold model, for a gold model outside a run, and for a path that does not exist."""
        if self.path is not None:
            return OpenRewardModelJudge(self, resolve_model(self.path, Path(context.base) if context.base else None), None, "")
        if context.gold_scorer is None:
            raise InputError(f"RewardModelJudge: gold: {self.gold!r} is a reward model of a run, and there is none here; give a path")
        if self.gold is None or self.gold not in context.gold_ids:
            raise InputError(
                f"RewardModelJudge: gold: no gold reward model {self.gold!r}; there are: {', '.join(context.gold_ids) or 'none'}"
            )
        return OpenRewardModelJudge(self, None, context.gold_scorer, context.gold_ids[self.gold])


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
        lengths = self._lengths(list(dict.fromkeys(item for pair in pairs.values() for item in pair)))
        fitting = [pair for pair in pairs.values() if all(lengths.get(item, 0) <= self.spec.max_tokens for item in pair)]
        items = list(dict.fromkeys(item for pair in fitting for item in pair))
        scores = dict(zip(items, self._scores(items), strict=True)) if items else {}
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

    def _lengths(self, items: Sequence[Scored]) -> dict[Scored, int]:
        """Tokens of each item for the model in `path`; empty for a gold model, which truncates by its own settings."""
        if self.model is None:
            return {}
        from apo_bench.models.tokenize import ChatFormat, load_tokenizer

        chat = ChatFormat(load_tokenizer(self.model, self.spec.trust_remote_code))
        return {item: len(chat.encode_scored(*item, sys.maxsize, axis_input=self.spec.axis_input).ids) for item in items}

    def _scores(self, items: Sequence[Scored]) -> Sequence[float]:
        if self.gold_scorer is not None and self.spec.gold is not None:
            return self.gold_scorer(self.spec.gold, items)
        from apo_bench.config.schema import NeuralReward, Recipe
        from apo_bench.models.policy import use_one_thread
        from apo_bench.models.reward import load_reward_model, score

        assert self.model is not None
        use_one_thread()
        spec = NeuralReward(
            path=self.model, max_tokens=self.spec.max_tokens, score_batch_size=self.spec.batch_size, axis_input=self.spec.axis_input,
            trust_remote_code=self.spec.trust_remote_code, training=Recipe(learning_rate=1.0),
        )  # fmt: skip
        loaded = load_reward_model(self.model, spec.trust_remote_code)
        return score(*loaded, items, spec)[0]  # the recipe is required by the spec and not used: nothing is trained
