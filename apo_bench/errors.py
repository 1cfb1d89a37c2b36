"""The errors that a user can cause, and their words. Each is one line that names the place and the problem."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST = 2000  # characters of a message
MOST_LINES = 20  # of the errors of a file
SIMILAR = 0.6  # of two names, by the letters that they share
WANTED: Mapping[str, str] = {  # what pydantic's types of errors miss, by the first word of their names
    "int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false", "string": "text",
    "dict": "a mapping", "model": "a mapping", "mapping": "a mapping", "tuple": "a list", "list": "a list",
    "date": "a date such as 2025-01-31", "none": "null", "path": "a path", "callable": "a function",
}  # fmt: skip
LIMITS: Mapping[str, str] = {
    "greater_than": "more than {gt:g}", "greater_than_equal": "{ge:g} or more", "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
}  # fmt: skip


def shortened(text: str, most: int = MOST) -> str:
    """The text, without its middle where it has more than so many characters."""
    return text if len(text) <= most else f"{text[: most // 2 - 3]} ... {text[len(text) - most // 2 + 2 :]}"


class InputError(ValueError):
    """A file, key or value from the user is wrong. The command line prints the message and exits with status 2.

    The message is one short line, whatever text it quotes: white space of any kind becomes one blank, and a long one loses its middle.
    """

    def __init__(self, message: object) -> None:
        super().__init__(shortened(" ".join(str(message).split())))


class InputErrors(InputError):
    """Several errors at once. `lines`: each as the message of an InputError, at most MOST_LINES; the message joins them."""

    def __init__(self, messages: Sequence[object]) -> None:
        left = len(messages) - MOST_LINES
        shown = [*messages[:MOST_LINES], *([f"and {left} more errors"] if left > 0 else [])]
        self.lines = tuple(str(InputError(message)) for message in shown)
        super().__init__("; and ".join(self.lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lines,)


def lines_of(error: InputError) -> tuple[str, ...]:
    """The messages of an error, one or several."""
    return error.lines if isinstance(error, InputErrors) else (str(error),)


def together(messages: Sequence[object]) -> InputError:
    """The error that has these messages, one or several."""
    return InputErrors(messages) if len(messages) > 1 else InputError(messages[0])


class NotHere(InputError):
    """The input is right, but this machine lacks something it needs: a key in the environment, an imported model, a package."""


class BudgetExceeded(RuntimeError):
    """An arm needs more of a unit than its budget has left."""

    def __init__(self, arm: str, unit: str, needed: float, left: float) -> None:
        super().__init__(arm, unit, needed, left)  # all four as args, so the error survives pickling
        self.arm, self.unit, self.needed, self.left = arm, unit, needed, left

    def __str__(self) -> str:
        return f"budget exceeded: arm {self.arm}, unit {self.unit}: needs {self.needed:g}, has {self.left:g} left"


def did_you_mean(name: object, known: Iterable[str], before: str = "; ") -> str:
    """A question that names what is most like a misspelt name, or nothing where nothing is."""
    import difflib

    names = {each.casefold(): each for each in known if each != name}
    initials = [each for each in names if "".join(re.findall(r"(?:^|[_-])(.)", each)) == str(name).casefold()]  # lr: learning_rate
    nearest = initials or difflib.get_close_matches(str(name).casefold(), names, n=1, cutoff=SIMILAR)
    return f"{before}did you mean {names[nearest[0]]!r}?" if nearest else ""


def what_is_wrong(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words of our own: what is needed, what is meant, what stands there."""
    kind, context, value = error["type"], error.get("ctx") or {}, error["input"]
    shown = "" if isinstance(value, dict | list) or kind in ("missing", "json_invalid") else f" (got {reprlib.repr(value)})"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", error["msg"])) + shown
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"{context['expected']} is needed{did_you_mean(value, choices) if isinstance(value, str) else ''}{shown}"
    if kind == "is_instance_of":
        return f"{context['class']} is needed{shown}"
    if kind in ("missing", "missing_argument"):
        return "missing"
    if kind == "extra_forbidden":
        return f"no such key{shown}"
    if kind in LIMITS:
        return f"{LIMITS[kind].format(**context)} is needed{shown}"
    if kind in ("too_short", "string_too_short"):
        return f"{'empty' if not value else 'too short'}, at least {context['min_length']} needed"
    if kind in ("too_long", "string_too_long"):
        return f"too long, at most {context['max_length']} allowed"
    if kind == "string_pattern_mismatch":
        return f"not of the form {context['pattern']}{shown}"
    if kind == "json_invalid":
        return f"not JSON: {context.get('error', '')}"
    shown = {dict: " (got a mapping)", list: " (got a list)"}.get(type(value), shown)
    return f"{WANTED.get(kind.partition('_')[0], 'another value')} is needed{shown}"
