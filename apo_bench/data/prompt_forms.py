"""The forms that prompts alone come in, each recognised by its columns, and how a row of each is read.

A row that cannot be read raises WrongRow with the reason, which is counted. `FORMS` are tried in order: the first whose columns are there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apo_bench.data.preference_forms import NO_QUESTION, Reading, WrongRow, conversation, prompt_turns, text_of
from apo_bench.data.transcripts import Turns

Row = Mapping[str, Any]
CONTEXT = "\n\n---\n\n"  # between HarmBench's context and its behaviour
UNSAFE_TYPES = "contrast_"  # XSTest: types of the unsafe prompts begin so; files without a label have only this
LABELS = ("safe", "unsafe")
NO_PROMPT = "rows without a prompt dropped"
_READING = Reading()


@dataclass(frozen=True)
class Question:
    """What a row asks: a conversation that ends with the user's turn, and the user's turns after the model's own answers."""

    messages: Turns
    follow_ups: tuple[str, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class PromptForm:
    """A form: its name, the columns it needs, and what reads a row."""

    name: str
    columns: frozenset[str]
    read: Callable[[Row], Question]


def recognise(row: Row) -> PromptForm | None:
    """The form of a row by its columns, None if none fits."""
    return next((form for form in FORMS if form.columns <= {name for name, value in row.items() if value is not None}), None)


def _alpaca_eval(row: Row) -> Question:
    question = "\n\n".join(filter(None, (text_of(row, "instruction"), text_of(row, "input") if row.get("input") else "")))
    return _question(question)


def _turns(row: Row) -> Question:
    """MT-Bench's texts, or Arena-Hard's objects with `content`: the user's turns, asked one after the other."""
    turns = row.get("turns")
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise WrongRow("rows whose turns are no list dropped")
    texts = [text_of(turn if isinstance(turn, Mapping) else {"content": turn}, "content").strip() for turn in turns]
    if not all(texts):
        raise WrongRow(NO_PROMPT)
    return Question((("user", texts[0]),), tuple(texts[1:]))


def _conversation_input(row: Row) -> Question:
    """WildBench: a conversation of people with a model, up to the turn that is asked."""
    turns = row.get("conversation_input")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise WrongRow("rows whose conversation_input is no list dropped")
    return _question(turns)


def _xstest(row: Row) -> Question:
    label = row.get("label")
    if label is None:
        label = "unsafe" if text_of(row, "type").startswith(UNSAFE_TYPES) else "safe"
    if label not in LABELS:
        raise WrongRow("rows whose label is neither safe nor unsafe dropped")
    return Question(_question(text_of(row, "prompt")).messages, label=label)


def _harmbench(row: Row) -> Question:
    behaviour = text_of(row, "Behavior")
    return _question(f"{text_of(row, 'ContextString')}{CONTEXT}{behaviour}" if row.get("ContextString") else behaviour)


def _prompt(row: Row) -> Question:
    return _question(row.get("prompt"))


def _messages(row: Row) -> Question:
    """A conversation; an answer at its end is left out, since the model's own is wanted."""
    turns = row.get("messages")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise WrongRow("rows whose messages are no list dropped")
    read = _read(turns)
    return Question(_ending_with_a_question(read[:-1] if read and read[-1][0] == "assistant" else read))


FORMS = tuple(
    PromptForm(name, frozenset(columns.split()), read)
    for name, columns, read in (
        ("HarmBench", "Behavior SemanticCategory", _harmbench),
        ("WildBench", "conversation_input", _conversation_input),
        ("XSTest", "prompt type label", _xstest),
        ("XSTest, labels by type", "prompt type focus", _xstest),
        ("MT-Bench or Arena-Hard, by turns", "turns", _turns),
        ("Arena-Hard", "uid prompt category", _prompt),
        ("AlpacaEval", "instruction", _alpaca_eval),
        ("prompts", "prompt", _prompt),
        ("conversations", "messages", _messages),
    )
)


def _question(prompt: Any) -> Question:
    """A text, a transcript or messages."""
    return Question(_ending_with_a_question(_read(prompt)))


def _read(prompt: Any) -> Turns:
    try:
        return conversation(prompt, _READING) if isinstance(prompt, list | tuple) else prompt_turns(prompt, _READING)
    except WrongRow as error:  # the option that it names is of the task `preferences`
        raise WrongRow(str(error).partition(" (options")[0]) from None


def _ending_with_a_question(turns: Turns) -> Turns:
    if not turns or not any(text.strip() for _, text in turns):
        raise WrongRow(NO_PROMPT)
    if turns[0][0] != "user" or turns[-1][0] != "user" or not turns[0][1].strip() or not turns[-1][1].strip():
        raise WrongRow(NO_QUESTION.replace("pairs", "rows"))
    return turns
