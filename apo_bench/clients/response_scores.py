"""Scores of single responses by a chat model: a generative reward model behind the OpenAI chat-completions protocol.

The score is the mean of a stated scale under the probabilities of the model's answer, where the server gives them (as G-Eval weighs its
scores; Liu et al., arXiv:2303.16634, equation 1), else the number that it writes. Every answer is in a journal before the next one is
waited for.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.clients.chat import ChatClient
from apo_bench.clients.endpoint import ChatSettings, require
from apo_bench.clients.fences import CRITERIA, fenced_messages, parts_of
from apo_bench.clients.journal import Journal, add_lost, spent_usd
from apo_bench.clients.replies import CUT_OFF, Reply, counted_reasons, with_words
from apo_bench.config.schema import JudgeReward
from apo_bench.errors import InputError
from apo_bench.hashing import digest
from apo_bench.types import Prompt

PROMPTS = Path(__file__).with_name("score_prompts")
NAMES = tuple(sorted(path.stem for path in PROMPTS.glob("*.txt")))
BY_AXIS = "by_axis"
NO_NUMBER = "no number of the scale"
ATTEMPTS = 3  # for an answer that holds no score; each with another seed
MOST_LOGPROBS = 20  # alternatives a token that servers give at most
_ANSWER = re.compile(r"(?:(?:score|rating|answer)\s*[:=]\s*)?(\d+)", re.IGNORECASE)
_DECORATION = " \t\u00a0*_`\"'.,:;!()[]{}<>"


@dataclass(frozen=True)
class ResponseScorer(ChatSettings):
    """The model that scores, and how it is asked. `scale`: lowest and highest score. `probabilities`: ask for those of its answer's tokens.

    `template`: `by_axis`, or the name of one. `unscored`: the score of a response that the model does not score; None: it ends the scoring.
    The other fields are those of ChatSettings. Raises InputError that names the field.
    """

    template: str = BY_AXIS
    scale: tuple[int, int] = (1, 9)
    probabilities: bool = True
    unscored: float | None = None

    @classmethod
    def of(cls, spec: JudgeReward) -> "ResponseScorer":
        """As an experiment has it."""
        return cls(**{part.name: getattr(spec, part.name) for part in fields(cls)})

    def check(self) -> None:
        super().check()
        low, high = self.scale
        require(0 <= low < high, "scale", "the lowest and the highest score are wanted, whole numbers from 0", self.scale)
        require(
            high <= 9 or not self.probabilities, "scale",
            "above 9 a number may be several tokens, whose probabilities do not add up; give probabilities: false", self.scale,
        )  # fmt: skip
        known = (BY_AXIS, *NAMES)
        require(self.template in known, "template", f"no template of that name; there are: {', '.join(known)}", self.template)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What can change a score."""
        return {**self.answer_identity, "unscored": self.unscored}

    @property
    def answer_identity(self) -> Mapping[str, Any]:
        """What can change an answer: the model, its server, how it is sampled, the wording and the scale."""
        used = {name: digest(read_template(name)) for name in sorted({self._template(axis) for axis in (*CRITERIA, "")})}
        own = {"scale": list(self.scale), "probabilities": self.probabilities}
        return {"kind": "response scores", **super().identity, **own, "templates": used}

    def messages(self, prompt: Prompt, response: str) -> list[dict[str, str]]:
        """The question about one response."""
        low, high = map(str, self.scale)
        system, user = (part.replace("{low}", low).replace("{high}", high) for part in read_template(self._template(prompt.axis)))
        return fenced_messages(system, user, prompt, {"response": response})

    def score(self, reply: Reply) -> tuple[float | None, bool]:
        """The score in an answer, None where there is none, and whether it is the mean under probabilities.

        The verdict is the last token that is the number stated. An answer of one token (`max_tokens: 1`) is the verdict, whatever it is.
        """
        low, high = self.scale
        single = self.max_tokens == 1 and reply.failure in ("", CUT_OFF)
        if reply.failure and not single:
            return None, False
        lines = [line.strip(_DECORATION) for line in reply.text.splitlines() if line.strip(_DECORATION)]
        match = _ANSWER.fullmatch(lines[-1]) if lines else None
        stated = int(match[1]) if match and low <= int(match[1]) <= high else None
        verdicts = [options for token, options in reply.logprobs if single or token.strip() == str(stated)]
        mean = self._mean(verdicts[-1]) if verdicts and self.probabilities else None
        return (stated, False) if mean is None else (mean, True)

    def _mean(self, logprobs: Mapping[str, float]) -> float | None:
        """Of the scale, under the probabilities of its numbers; None where none has any."""
        low, high = self.scale
        numbers = {str(number): number for number in range(low, high + 1)}
        weights = [(numbers[token.strip()], math.exp(value)) for token, value in logprobs.items() if token.strip() in numbers]
        total = math.fsum(weight for _, weight in weights)
        return math.fsum(number * weight for number, weight in weights) / total if total > 0 else None

    def _template(self, axis: str) -> str:
        return f"{CRITERIA.get(axis, 'overall')}.v1" if self.template == BY_AXIS else self.template


@cache
def read_template(name: str) -> tuple[str, str]:
    """The system and the user part of a template."""
    return parts_of((PROMPTS / f"{name}.txt").read_text(encoding="utf-8"))


def score_responses(scorer: ResponseScorer, items: Sequence[tuple[Prompt, str]], folder: Path) -> tuple[list[float], dict[str, float]]:
    """A score for each (prompt, response), and the counts spent. Journals lie in `folder`, one a set of items; `max_usd` counts them all.

    An item that occurs twice is asked once. Raises InputError where a response has no score: nobody answered, and a later call asks again;
    or the model would not score it, and `unscored` is None.
    """
    client = ChatClient(scorer.endpoint)
    keys = [digest([dict(scorer.answer_identity), prompt.id, response]) for prompt, response in items]
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / f"{digest(keys)}.journal")
    elsewhere = math.fsum(spent_usd(Journal(path)) for path in folder.glob("*.journal") if path != journal.path) if scorer.max_usd else 0.0
    unanswered: Mapping[str, str] = {}
    with journal.open():
        for attempt in range(ATTEMPTS):
            missing = {key: item for key, item in zip(keys, items, strict=True) if _is_open(journal.records.get(key, {}), attempt)}
            unanswered = _ask(client, scorer, missing, journal, elsewhere, attempt)
            if unanswered or not missing:
                break
    if unanswered:
        why = counted_reasons(Counter(unanswered.values()))
        raise InputError(f"kind: judge: {scorer.model} gave no answer about {len(unanswered)} of {len(set(keys))} responses: {why}")
    answers = [journal.records[key] for key in keys]
    failed = Counter(answer["failure"] for answer in answers if answer["score"] is None)
    if failed and scorer.unscored is None:
        why = counted_reasons(failed)
        mend = "give `unscored`, the score of such a response"
        raise InputError(f"kind: judge: {scorer.model} did not score {failed.total()} of {len(keys)} responses: {why}; {mend}")
    scores = [scorer.unscored if answer["score"] is None else answer["score"] for answer in answers]
    counts = {
        "scored_responses": float(len(items)),
        "unscored_responses": float(failed.total()),
        "scored_without_probabilities": float(sum(answer["score"] is not None and not answer["probabilities"] for answer in answers)),
        "judge_prompt_tokens": float(sum(answer["prompt_tokens"] or 0 for answer in journal.records.values() if "score" in answer)),
        "judge_completion_tokens": float(sum(answer["completion_tokens"] or 0 for answer in journal.records.values() if "score" in answer)),
        "judge_usd": spent_usd(journal),
    }
    return scores, counts  # pyright: ignore


def _ask(
    client: ChatClient,
    scorer: ResponseScorer,
    missing: Mapping[str, tuple[Prompt, str]],
    journal: Journal,
    elsewhere_usd: float,
    attempt: int,
) -> dict[str, str]:
    """Ask about these items; why nobody answered, by key."""
    sampling = scorer.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sampling.seed + attempt)
    if scorer.probabilities:
        sampling = replace(sampling, extra={"logprobs": True, "top_logprobs": MOST_LOGPROBS, **sampling.extra})
    unanswered: dict[str, str] = {}
    rejected: dict[str, Reply] = {}
    calls = ((key, scorer.messages(*item)) for key, item in sorted(missing.items()))
    with closing(client.replies(calls, sampling, elsewhere_usd + spent_usd(journal), fresh=attempt > 0)) as replies:
        for key, reply in replies:
            if reply.answered:
                _keep(journal, key, scorer, reply, attempt)
                continue
            add_lost(journal, key, reply.lost_usd)
            if reply.rejected:
                rejected[key] = replace(reply, lost_usd=0.0)  # which is in the journal
            else:
                unanswered[key] = reply.failure
    for key, reply in rejected.items():
        if any(record.get("answered") for record in journal.records.values()):  # the request is at fault, not the set-up
            _keep(journal, key, scorer, reply, attempt)
        else:
            unanswered[key] = with_words(reply.failure, reply.text)
    return unanswered


def _is_open(record: Mapping[str, Any], attempt: int) -> bool:
    """Whether an item is still to be asked about in this attempt."""
    return record.get("score") is None and record.get("attempt", -1) < attempt


def _keep(journal: Journal, key: str, scorer: ResponseScorer, reply: Reply, attempt: int) -> None:
    score, by_probabilities = scorer.score(reply)
    before = journal.records.get(key, {})
    journal.add(key, {
        "score": score, "probabilities": by_probabilities, "failure": "" if score is not None else reply.failure or NO_NUMBER,
        "text": reply.text, "answered": reply.answered, "attempt": attempt,
        "prompt_tokens": (reply.prompt_tokens or 0) + before.get("prompt_tokens", 0),
        "completion_tokens": (reply.completion_tokens or 0) + before.get("completion_tokens", 0),
        "cost_usd": reply.cost_usd + before.get("cost_usd", 0.0), "lost_usd": reply.lost_usd + before.get("lost_usd", 0.0),
    })  # fmt: skip
