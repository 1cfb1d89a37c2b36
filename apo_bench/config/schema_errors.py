"""What is wrong with a file, key by key: pydantic's errors without its words, its marks, and errors that only follow from others.

A misspelt key comes first, with the key that is meant; that the meant key is missing then goes unsaid. Of a value that may be of several
kinds the errors of the nearest kind are left.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from apo_bench.config.schema.values import CLASS, NAME
from apo_bench.errors import InputError, did_you_mean, together, what_is_wrong

FORMS: Mapping[str, str] = {
    NAME: "letters, digits, '_', '-', '.' are needed, at most 100, a letter or digit first",
    CLASS: "module@Class or file.py@Class is needed",
    r"^[a-z][a-z0-9_]*$": "small letters, digits and '_' are needed, a letter first",
    r"^https?://[^\s/]+(/\S*)?$": "http://... or https://... is needed",
}
KEY = "[key]"  # pydantic's mark of a mapping's key
Place = tuple[Any, ...]


def input_error(source: str, error: ValidationError, tree: Any, model: Any, *, joint: str = ": ") -> InputError:
    """The error of a tree that is no `model`: a line for each key that is wrong, which starts with `source`.

    `joint`: between the source and a key of the tree's; a line about the whole tree has a colon.
    """
    return together([f"{source}{joint if each.key else ': '}{each}" for each in problems(error, tree, model)])


@dataclass(frozen=True)
class Problem:
    """What is wrong with a key, which is dotted; empty: with the whole."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


def problems(error: ValidationError, tree: Any, model: Any) -> list[Problem]:
    """What is wrong, key by key, misspelt keys first. `tree` is what was read, `model` the type that it should be of."""
    errors = [_Error(tree, each) for each in error.errors()]
    misspelt: dict[Problem, None] = {}
    meant: set[Place] = set()
    for each in sorted((each for each in errors if each.is_unknown_key), key=lambda each: len(each.place)):
        message, key = _unknown(each.place, _keys(model, each), tree, model)
        misspelt[Problem(_dotted(each.place), message)] = None
        meant.add((*each.place[:-1], key))
    others = [each for each in _of_nearest_kinds(errors) if not each.is_unknown_key and not _follows(each, errors)]
    for each in others:  # of sections that take any key
        *before, name = map(str, each.place or ("",))
        given = _at(tree, each.place[:-1])
        if each.kind == "missing" and each.place not in meant and isinstance(given, dict):
            unknown = [key for key in given if key not in _keys(model, each) and did_you_mean(key, [name])]
            misspelt |= {Problem(_dotted([*before, key]), f"no such key{did_you_mean(key, [name])}"): None for key in unknown[:1]}
            meant |= {each.place} if unknown else set()
    rest = [each for each in others if each.kind != "missing" or each.place not in meant]
    return [*misspelt, *dict.fromkeys(line for group in _by_place(rest) for line in _lines(group, model))]


def _follows(error: "_Error", errors: Sequence["_Error"]) -> bool:
    """Whether a list is too short only because its members are wrong."""
    depth = len(error.place)
    within = any(len(each.place) > depth and each.place[:depth] == error.place for each in errors)
    return within and error.kind in ("too_short", "too_long")


def _by_place(errors: Sequence["_Error"]) -> list[list["_Error"]]:
    """Errors of one value that may be of several kinds together, every other alone."""
    groups: dict[Any, list[_Error]] = {}
    for number, each in enumerate(errors):
        of_a_kind = bool(each.marks) and each.marks[-1][0] == each.place
        groups.setdefault(each.place if of_a_kind else number, []).append(each)
    return list(groups.values())


class _Error:
    """An error with its place in the tree. `marks`: the parts of pydantic's location that stand for kinds, with the place of each."""

    def __init__(self, tree: Any, error: Mapping[str, Any]) -> None:
        self.error, self.kind, location = error, error["type"], error["loc"]
        self.place: Place = ()
        self.marks: list[tuple[Place, str]] = []
        self.of_key = KEY in location
        for part in location:
            if _has(tree, part):
                tree, self.place = tree[part], (*self.place, part)
            elif self.kind in ("missing", "extra_forbidden") and part == location[-1]:
                self.place = (*self.place, part)
            elif part != KEY:
                self.marks.append((self.place, str(part)))
        if self.kind in ("union_tag_not_found", "union_tag_invalid"):
            self.place = (*self.place, str(error["ctx"]["discriminator"]).strip("'"))
            self.kind = "missing" if self.kind == "union_tag_not_found" else "literal_error"

    @property
    def is_unknown_key(self) -> bool:
        return self.kind == "extra_forbidden" or (self.of_key and self.kind == "literal_error")


def _of_nearest_kinds(errors: Sequence[_Error]) -> list[_Error]:
    """The errors without those of kinds that a value is further from being: whose errors lie less deep in it."""
    deepest: dict[tuple[Place, int], tuple[int, set[str]]] = {}
    for each in errors:
        for level, (place, mark) in enumerate(each.marks):
            depth, kinds = deepest.get((place, level), (-1, set()))
            own = len(each.place) - len(place)
            deepest[place, level] = (own, {mark}) if own > depth else (depth, kinds | {mark} if own == depth else kinds)
    return [
        each for each in errors if all(mark in deepest[place, level][1] for level, (place, mark) in enumerate(each.marks))
    ]  # fmt: skip


def _lines(errors: Sequence[_Error], model: Any) -> Iterator[Problem]:
    """A value's problem; of a check over several keys, each of its own."""
    messages = [_message(each, model) for each in errors]
    if len(messages) > 1 and all(" is needed" in message for message in messages):
        wanted = dict.fromkeys(message.partition(" is needed")[0] for message in messages)
        message = f"{' or '.join(wanted)} is needed{messages[0].partition(' is needed')[2]}"
    else:
        message = messages[0]
    yield from (Problem(_dotted(errors[0].place), line) for line in message.split("\n"))


def _message(error: _Error, model: Any) -> str:
    details = dict(error.error)
    if details["type"] in ("union_tag_not_found", "union_tag_invalid"):
        tags = _tags(model, error)
        expected = f"{', '.join(map(repr, tags[:-1]))} or {tags[-1]!r}"
        if error.kind == "missing":
            return f"missing; {expected} is needed"
        return what_is_wrong({"type": "literal_error", "input": details["ctx"]["tag"], "ctx": {"expected": expected}})
    if details["type"] == "string_pattern_mismatch" and details["ctx"]["pattern"] in FORMS:
        return f"{FORMS[details['ctx']['pattern']]} (got {details['input']!r})"
    return what_is_wrong(details)


def _unknown(place: Place, known: Sequence[str], tree: Any, model: Any) -> tuple[str, str | None]:
    """What to say of a key that does not exist, and the key that is meant, where there is one."""
    *before, name = place
    present = _at(tree, before)
    free = [key for key in known if key not in present]
    question = did_you_mean(name, free) or did_you_mean(name, known)
    if question:
        meant = question.split("'")[1]
        return f"no such key{question}", meant
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == name]
    if elsewhere:
        near = [path for path in elsewhere if path.startswith(_dotted([*before, ""]))] or elsewhere
        return f"no such key here; it belongs in {' or '.join(path.rpartition('.')[0] for path in near[:3])}", None
    return f"no such key; keys: {', '.join(known)}", None


def _sections(model: Any, error: _Error) -> list[Any]:
    """The types that what holds the key of an error may be of."""
    location = error.error["loc"]
    own = str(error.error["type"]).startswith("union_tag")  # whose key is below the location
    kinds = [model]
    for part in location if own else location[: location.index(KEY) - 1 if error.of_key else -1]:
        kinds = [inner for each in kinds for inner in _inner(each, part)]
    return [member for kind in kinds for member in _members(kind)]


def _keys(model: Any, error: _Error) -> list[str]:
    """The keys that can stand beside the key of an error."""
    keys: dict[str, None] = {}
    for each in _sections(model, error):
        if isinstance(each, type) and issubclass(each, BaseModel):
            keys |= dict.fromkeys(each.model_fields)
        elif get_origin(each) is dict:
            keys |= dict.fromkeys(get_args(_bare(get_args(each)[0])))
    return list(keys)


def _tags(model: Any, error: _Error) -> list[str]:
    """The kinds that the key of an error can name."""
    fields = [each.model_fields[error.place[-1]] for each in _sections(model, error) if error.place[-1] in each.model_fields]
    return list(dict.fromkeys(tag for field in fields for tag in get_args(field.annotation)))


def _members(kind: Any) -> list[Any]:
    """The types that a union stands for; any other type alone."""
    bare = _bare(kind)
    return [inner for each in get_args(bare) for inner in _members(each)] if get_origin(bare) in (Union, types.UnionType) else [bare]


def _bare(kind: Any) -> Any:
    """A type without what Annotated says of it."""
    return _bare(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def _inner(kind: Any, part: Any) -> Iterator[Any]:
    """The types below a part of a location: a field, a mapping's or list's value; of a kind's mark, the models that have it."""
    for each in _members(kind):
        if isinstance(each, type) and issubclass(each, BaseModel):
            field = each.model_fields.get(part)
            if field is not None:
                yield field.annotation
            elif part == each.__name__ or any(part in get_args(field.annotation) for field in each.model_fields.values()):
                yield each
        elif get_origin(each) is dict:
            yield get_args(each)[1]
        elif get_origin(each) is tuple:
            yield get_args(each)[0]


def _paths(model: Any, before: str = "") -> Iterator[str]:
    """The dotted keys of a model's sections; those of lists and of mappings with free names are left out."""
    for each in _members(model):
        if isinstance(each, type) and issubclass(each, BaseModel):
            for name, field in each.model_fields.items():
                yield f"{before}{name}"
                yield from _paths(field.annotation, f"{before}{name}.")


def _has(tree: Any, part: Any) -> bool:
    return part in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(part, int) and part < len(tree)


def _at(tree: Any, place: Sequence[Any]) -> Any:
    for part in place:
        tree = tree[part] if _has(tree, part) else {}
    return tree


def _dotted(place: Sequence[Any]) -> str:
    return ".".join(map(str, place))
