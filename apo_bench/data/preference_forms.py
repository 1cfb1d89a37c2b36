"""The forms that preference data come in, each recognised by its columns, and how a row of each is read.

A row that cannot be read raises WrongRow with the reason, which is counted. `FORMS` are tried in order: the first whose columns are there.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from apo_bench.data import transcripts
from apo_bench.data.rows import IDENTICAL, is_text
from apo_bench.data.transcripts import Turns

Row = Mapping[str, Any]
TIES = "ties left out"
ALONE = "responses without another to compare with left out"
NO_QUESTION = transcripts.NO_HUMAN
SPEAKERS = {"user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant", "system": "system"}
SCORE = "score of the chosen side"
ATTRIBUTE = "helpfulness"  # HelpSteer's, unless another is named
PKU_AXES = {"better_response_id": "helpful", "safer_response_id": "harmless"}
LONG_PROMPT = 32  # letters; a side that begins with so long a prompt repeats it, one that begins with "Hi" may not


class WrongRow(Exception):
    """A row that cannot be used; the message is the reason, which is the same for all rows of its kind."""


@dataclass(frozen=True)
class Reading:
    """How rows are read. `score`: what scored responses are ordered by. `against`: the best one's opponent. `repeats`: sides repeat their
    prompts, however short. `system`: what becomes of a system turn, which no prompt here can have.
    """

    score: str | None = None
    against: Literal["worst", "drawn"] = "worst"
    system: Literal["drop", "ignore"] = "drop"
    repeats: bool = False


@dataclass(frozen=True)
class Item:
    """What a row comes to: a pair, or a prompt alone (`reason` says why). `best` is its best response, with its score if there is one."""

    messages: Turns
    chosen: str | None = None
    rejected: str | None = None
    best: str | None = None
    score: float | None = None
    axis: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Scored:
    """Responses to a prompt with scores, which make a pair once all of the prompt's are together. `labels`: scores are 1 or 0."""

    messages: Turns
    responses: tuple[tuple[str, float], ...]
    labels: bool = False


@dataclass(frozen=True)
class Form:
    """A form: its name, the columns it needs, and what reads a row."""

    name: str
    columns: frozenset[str]
    read: Callable[[Row, Reading], Iterator[Item | Scored]]


def recognise(row: Row, reading: Reading) -> Form | None:
    """The form of a row by its columns, None if none fits. Of preference pairs, the name also says how prompt and sides are written."""
    form = next((form for form in FORMS if form.columns <= row.keys()), None)
    if form is None or (form.read is _attributes and (reading.score or ATTRIBUTE) not in row):
        return None
    return replace(form, name=f"{form.name}: {_spelling(row)}") if form.read is _pair else form


def _spelling(row: Row) -> str:
    chosen, prompt = row.get("chosen"), row.get("prompt")
    where = "the prompt in both sides" if prompt is None else "the prompt in a column"
    if isinstance(chosen, list | tuple):
        return f"conversations, {where}"
    if isinstance(prompt, list | tuple):
        return "texts, a conversation as prompt"
    written = "transcripts" if transcripts.is_transcript(str(chosen if prompt is None else prompt)) else "texts"
    return f"{written}, {where}"


def repeats_prompt(rows: Sequence[Row]) -> bool:
    """Whether most rows of plain text repeat the prompt in both sides, so that it is no chance."""
    plain = [row for row in rows if all(isinstance(row.get(key), str) for key in ("prompt", "chosen", "rejected"))]
    repeating = [row for row in plain if all(row[side].lstrip().startswith(row["prompt"].strip()) for side in ("chosen", "rejected"))]
    return bool(plain) and 2 * len(repeating) > len(plain)


def pair_up(scored: Scored, against: Literal["worst", "drawn"]) -> Iterator[Item]:
    """The pairs of a prompt's scored responses: the best and its opponent; of labelled ones, each good one and a bad one, in order."""
    scores: dict[str, float] = {}
    for text, score in scored.responses:
        scores.setdefault(text, score)
    ranked = sorted(scores.items(), key=lambda item: -item[1])  # equal scores in the order of the file
    best, score = ranked[0]
    alone = Item(scored.messages, best=best, score=score)
    if len(ranked) < 2:
        yield replace(alone, reason=ALONE)
    elif scored.labels:
        good, bad = [text for text, label in ranked if label], [text for text, label in ranked if not label]
        yield from (Item(scored.messages, *sides, best=sides[0], score=1.0) for sides in zip(good, bad, strict=False))
        if not good or not bad:
            yield replace(alone, reason=ALONE)
    elif not (lower := [text for text, other in ranked if other < score]):
        yield replace(alone, reason=TIES)
    else:
        yield replace(alone, chosen=best, rejected=lower[_draw(scored, len(lower))] if against == "drawn" else lower[-1])


def _draw(scored: Scored, n: int) -> int:
    """A place below n, by the content's hash."""
    content = repr((scored.messages, scored.responses))
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % n


# Readers of a form's row


def _pair(row: Row, reading: Reading) -> Iterator[Item]:
    """TRL's preference forms and HH's: chosen and rejected, texts or messages, with the prompt beside them or in both."""
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if isinstance(chosen, list | tuple) and isinstance(rejected, list | tuple):
        yield _conversations(conversation(chosen, reading), conversation(rejected, reading), prompt_turns(prompt, reading), row)
    elif prompt is not None:
        chosen, rejected, opening = text_of(row, "chosen"), text_of(row, "rejected"), prompt_turns(prompt, reading)
        yield _item(opening, [_answer(prompt, side, reading) for side in (chosen, rejected)], row)
    else:
        chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
        if transcripts.is_transcript(chosen):
            try:
                head, *sides = transcripts.split_sides(chosen, rejected)
            except ValueError:
                raise WrongRow("transcripts without an assistant's turn dropped") from None
            if head is None:
                raise WrongRow(transcripts.NO_SHARED_PROMPT)
            yield _item(_transcript(head), [_whole(side) for side in sides], row)
        else:
            shared = _shared(chosen, rejected)
            if chosen == rejected:
                raise WrongRow(IDENTICAL)
            if not chosen[:shared].strip():
                raise WrongRow(transcripts.NO_SHARED_PROMPT)
            prompt = chosen[:shared]
            yield _item(prompt_turns(prompt, reading), [_answer("", side[shared:], reading) for side in (chosen, rejected)], row)


def _conversations(chosen: Turns, rejected: Turns, prompt: Turns, row: Row) -> Item:
    """Sides of messages: what follows the prompt, or where they hold the whole conversation, their last turns."""
    if not chosen or not rejected:
        return _item(prompt, ["", ""], row)
    sides = [chosen, rejected]
    if all(side[0][0] == "user" for side in sides):
        if not all(_holds(side[:-1], prompt) for side in sides):
            raise WrongRow("pairs whose sides begin with another prompt than theirs dropped")
        prompt = ()
    if _squeezed(chosen[:-1]) != _squeezed(rejected[:-1]):
        raise WrongRow(transcripts.NO_SHARED_PROMPT)
    if any(side[-1][0] != "assistant" for side in sides):
        raise WrongRow("pairs with a side that does not end with an assistant's turn dropped")
    messages = transcripts.joined((*prompt, *chosen[:-1]))
    return _item(messages, [_whole(transcripts.answer("", side[-1][1])) for side in sides], row)


def _votes(row: Row, reading: Reading) -> Iterator[Item]:
    """AlpacaEval's annotations: a preference of 1 is output_1's, 2 output_2's, what lies between is nearer to one; 1.5 and 0 are ties."""
    value = number_of(row, "preference")
    if not (value == 0 or 1 <= value <= 2):
        raise WrongRow("rows whose preference is neither 0 nor between 1 and 2 dropped")
    yield _decided(row, reading, "output_1", "output_2", 0 if value in (0, 1.5) else 1 if value < 1.5 else 2)


def _annotators(row: Row, reading: Reading) -> Iterator[Item]:
    """PandaLM's: what most annotators say, of 0 (a tie), 1 and 2."""
    votes = [number_of(row, key) for key in row if key.startswith("annotator")]
    if any(vote not in (0, 1, 2) for vote in votes):
        raise WrongRow("rows with an annotator's vote that is none of 0, 1 and 2 dropped")
    most = max((0, 1, 2), key=votes.count)
    if 2 * votes.count(most) <= len(votes):
        raise WrongRow("rows without a majority of annotators dropped")
    yield _decided(row, reading, "response1", "response2", most)


def _decided(row: Row, reading: Reading, first: str, second: str, vote: int) -> Item:
    """An instruction, with its input, and two outputs. vote: 1 or 2, 0 for a tie."""
    question = "\n\n".join(filter(None, (text_of(row, "instruction"), text_of(row, "input") if row.get("input") else "")))
    sides = [_answer(question, text_of(row, key), reading) for key in (first, second)]
    item = _item(prompt_turns(question, reading), sides if vote != 2 else sides[::-1], row)
    return item if vote else Item(item.messages, reason=TIES)


def _pku(row: Row, reading: Reading) -> Iterator[Item]:
    """PKU-SafeRLHF: two labels a pair, each an axis of its own."""
    prompt = text_of(row, "prompt")
    sides = [_answer(prompt, text_of(row, f"response_{i}"), reading) for i in (0, 1)]
    for key, axis in PKU_AXES.items():
        better = number_of(row, key)
        if better not in (0, 1):
            raise WrongRow(f"rows whose {key} is neither 0 nor 1 dropped")
        yield replace(_item(prompt_turns(prompt, reading), sides if better == 0 else sides[::-1], row), axis=axis)


def _completions(row: Row, reading: Reading) -> Iterator[Scored]:
    """UltraFeedback: an instruction and completions, ordered by overall_score, or by an aspect's rating."""
    name, scored = reading.score or "overall_score", []
    for completion in _listed(row, "completions"):
        if not isinstance(completion, Mapping):
            raise WrongRow("rows with a completion that is no object dropped")
        value, aspects = completion.get(name), completion.get("annotations")
        if value is None and isinstance(aspects, Mapping) and isinstance(aspect := aspects.get(name), Mapping):
            value = aspect.get("Rating")
        try:
            scored.append((_answer("", text_of(completion, "response"), reading), number_of({name: value}, name)))
        except WrongRow:
            continue  # a completion without a rating ("N/A") is not compared
    yield _scored(prompt_turns(text_of(row, "instruction"), reading), scored)


def _responses(row: Row, reading: Reading) -> Iterator[Scored]:
    """A prompt, its responses and their scores, in lists."""
    responses, scores = _listed(row, "responses"), _listed(row, "scores")
    if len(responses) != len(scores):
        raise WrongRow("rows with another number of scores than of responses dropped")
    scored = [
        (_answer("", text_of({"responses": response}, "responses"), reading), number_of({"scores": score}, "scores"))
        for response, score in zip(responses, scores, strict=True)
    ]
    yield _scored(prompt_turns(row.get("prompt"), reading), scored)


def _attributes(row: Row, reading: Reading) -> Iterator[Scored]:
    """HelpSteer: a response a row, with attributes; a prompt's responses stand in several rows."""
    score = number_of(row, reading.score or ATTRIBUTE)
    yield _scored(prompt_turns(row.get("prompt"), reading), [(_answer("", text_of(row, "response"), reading), score)])


def _labelled(row: Row, reading: Reading) -> Iterator[Scored]:
    """TRL's unpaired form, KTO's: a completion and whether it is desirable."""
    label, completion = row.get("label"), row.get("completion")
    value = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}.get(str(label).lower())
    if value is None:
        raise WrongRow("rows whose label is neither true nor false dropped")
    if isinstance(completion, list | tuple):
        turns = conversation(completion, reading)
        if [role for role, _ in turns] != ["assistant"]:
            raise WrongRow("rows whose completion is not an assistant's turn dropped")
        completion = turns[0][1]
    scored = [(_answer("", text_of({"completion": completion}, "completion"), reading), value)]
    yield replace(_scored(prompt_turns(row.get("prompt"), reading), scored), labels=True)


FORMS = tuple(
    Form(name, frozenset(columns.split()), read)
    for name, columns, read in (
        ("preference pairs", "chosen rejected", _pair),
        ("AlpacaEval's annotations", "instruction output_1 output_2 preference", _votes),
        ("PandaLM's annotations", "instruction response1 response2 annotator1", _annotators),
        ("PKU-SafeRLHF: two labels a pair", "prompt response_0 response_1 better_response_id safer_response_id", _pku),
        ("UltraFeedback: scored completions", "instruction completions", _completions),
        ("scored responses", "prompt responses scores", _responses),
        ("unpaired labels", "prompt completion label", _labelled),
        ("responses with attributes, as HelpSteer's", "prompt response", _attributes),
    )
)


# Values


def text_of(row: Row, key: str) -> str:
    """A column's text, line ends as \\n. Raises WrongRow."""
    value = row.get(key)
    if value is None:
        raise WrongRow(f"rows without {key} dropped")
    if not is_text(value):
        raise WrongRow(f"rows whose {key} is no text dropped")
    return value.replace("\r\n", "\n").replace("\r", "\n")


def number_of(row: Row, key: str) -> float:
    """A column's finite number, also where it is written as text. Raises WrongRow."""
    value = row.get(key)
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise WrongRow(f"rows whose {key} is no number dropped")
    return number


def conversation(turns: Iterable[Any], reading: Reading) -> Turns:
    """The turns of messages {role, content}, {from, value} or [role, text]. Raises WrongRow."""
    collected = []
    for turn in turns:
        if isinstance(turn, Mapping):
            role, content = (turn.get(key, turn.get(other)) for key, other in (("role", "from"), ("content", "value")))
        else:
            role, content = turn if isinstance(turn, list | tuple) and len(turn) == 2 else (None, None)
        if isinstance(content, list | tuple):  # parts, of which all have to be text
            texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
            content = "".join(map(str, texts)) if len(texts) == len(content) else None
        speaker = SPEAKERS.get(role) if isinstance(role, str) else None
        if speaker is None:
            raise WrongRow("rows with a turn of neither user nor assistant dropped")
        text = text_of({"content": content}, "content")
        if speaker != "system":
            collected.append((speaker, text))
        elif text.strip() and reading.system == "drop":
            raise WrongRow("rows with a system turn dropped (options.system: ignore reads them without it)")
    return transcripts.joined(collected)


def prompt_turns(prompt: Any, reading: Reading = Reading()) -> Turns:
    """A prompt's turns: messages, a transcript, or a single question."""
    if prompt is None:
        return ()
    if isinstance(prompt, list | tuple):
        return conversation(prompt, reading)
    text = text_of({"prompt": prompt}, "prompt")
    return _transcript(text) if transcripts.is_transcript(text) else (("user", text.strip()),)


def _transcript(text: str) -> Turns:
    return transcripts.turns_of(transcripts.OPEN_ANSWER.sub("", text))


def _answer(prompt: Any, side: str, reading: Reading) -> str:
    """The answer in a side, without the prompt where it is repeated."""
    known = isinstance(prompt, str)
    repeated = known and (reading.repeats or transcripts.is_transcript(prompt) or len("".join(prompt.split())) >= LONG_PROMPT)
    return _whole(transcripts.answer(transcripts.OPEN_ANSWER.sub("", prompt) if repeated else "", side))


def _whole(answer: str | None) -> str:
    if answer is None:
        raise WrongRow(transcripts.TURN_INSIDE)
    return answer


def _shared(chosen: str, rejected: str) -> int:
    """How many letters the sides share at their beginning, whole words only (TRL's own rule may cut a word)."""
    n = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    while 0 < n < max(len(chosen), len(rejected)) and not chosen[n - 1].isspace():
        n -= 1
    return n


def _holds(turns: Turns, prompt: Turns) -> bool:
    """Whether a conversation begins or, as in mixtures with several turns, ends with a prompt."""
    whole, part = _squeezed(turns), _squeezed(prompt)
    return part in (whole[: len(part)], whole[len(whole) - len(part) :])


def _squeezed(turns: Turns) -> tuple[tuple[str, str], ...]:
    return tuple((role, " ".join(text.split())) for role, text in turns)


def _item(messages: Turns, sides: Sequence[str], row: Row) -> Item:
    """The pair of two sides, the chosen one first, with its score where a column has it."""
    score = next((row[key] for key in ("score_chosen", "chosen_score", "chosen_rating") if row.get(key) is not None), None)
    number = None if score is None else number_of({SCORE: score}, SCORE)
    return Item(_with_question(messages), sides[0], sides[1], sides[0], number)


def _scored(messages: Turns, responses: Iterable[tuple[str, float]]) -> Scored:
    kept = tuple((text, score) for text, score in responses if text)
    if not kept:
        raise WrongRow("rows without a scored response dropped")
    return Scored(_with_question(messages), kept)


def _with_question(messages: Turns) -> Turns:
    if not messages or messages[0][0] != "user" or messages[-1][0] != "user" or not messages[0][1] or not messages[-1][1]:
        raise WrongRow(NO_QUESTION)
    return messages


def _listed(row: Row, key: str) -> Sequence[Any]:
    value = row.get(key)
    if not isinstance(value, list | tuple):
        raise WrongRow(f"rows whose {key} is no list dropped")
    return value
