"""Reads a task's rows: checks each, and assigns it to the split of its cluster."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, cast

from apo_bench.data.splits import normalise, split_of
from apo_bench.data.task_folder import Description
from apo_bench.errors import InputError
from apo_bench.types import SPLITS, Demonstration, Message, Pair, Prompt, Role, Split, identity, prompt_id

WARM_UP_SPLITS: tuple[Split, ...] = ("rm", "policy")  # demonstrations of the other splits' clusters are left out
ALL = "all"  # the axes together, in tables
IDENTICAL, EMPTY = "identical pairs dropped", "empty-sided pairs dropped"


class RowReader:
    """Checks a task's rows and collects them by the split of their cluster."""

    def __init__(self, path: Path, about: Description) -> None:
        self.path, self.about = path, about
        self.pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
        self.prompts: dict[Split, dict[str, Prompt]] = {split: {} for split in SPLITS}
        self.demonstrations: dict[Split, list[Demonstration]] = {split: [] for split in SPLITS}
        self.golden: dict[str, str] = {}
        self.dropped: Counter[str] = Counter({IDENTICAL: 0, EMPTY: 0})
        self._splits: dict[str, tuple[Split, str]] = {}

    def add_row(self, number: int, row: Any) -> None:
        if isinstance(row, Mapping) and "dropped" in row:
            if not is_text(row["dropped"]):
                raise self._error("rows", number, f"dropped: the reason in words is needed, got {row['dropped']!r}")
            self.dropped[row["dropped"]] += 1
            return
        split, prompt = self._prompt("rows", number, row, {"chosen", "rejected", "golden"})
        chosen, rejected = self._text("rows", number, row, "chosen"), self._text("rows", number, row, "rejected")
        if (chosen is None) != (rejected is None):
            raise self._error("rows", number, "chosen and rejected go together")
        if chosen is not None and rejected is not None:
            if not chosen.strip() or not rejected.strip():
                self.dropped[EMPTY] += 1
                return
            if chosen.strip() == rejected.strip():
                self.dropped[IDENTICAL] += 1
                return
            self.pairs[split].append(Pair(prompt, chosen, rejected))
        self.prompts[split].setdefault(prompt.id, prompt)
        golden = self._text("rows", number, row, "golden") or (chosen if self.about.golden == "chosen" else None)
        if golden is not None:
            self.golden.setdefault(prompt.id, golden)  # of several, the first

    def add_demonstration(self, number: int, row: Any) -> None:
        split, prompt = self._prompt("demonstrations", number, row, {"response"})
        response = self._text("demonstrations", number, row, "response")
        if not response:
            raise self._error("demonstrations", number, "response: missing or empty")
        if split in WARM_UP_SPLITS:
            self.demonstrations[split].append(Demonstration(prompt, response))
        else:
            self.dropped["demonstrations of gold, dev and test clusters left out"] += 1

    def _prompt(self, key: str, number: int, row: Any, others: set[str]) -> tuple[Split, Prompt]:
        if not isinstance(row, Mapping):
            raise self._error(key, number, f"a mapping of keys is needed, got {type(row).__name__}")
        if unknown := set(row) - {"messages", "axis", "cluster"} - others:
            raise self._error(key, number, f"{min(map(str, unknown))}: unknown key")
        if missing := {"messages", "axis", "cluster"} - set(row):
            raise self._error(key, number, f"{sorted(missing)[0]}: missing")
        turns = row["messages"]
        if not isinstance(turns, list | tuple) or not turns or not all(_is_turn(turn) for turn in turns) or turns[-1][0] != "user":
            raise self._error(key, number, "messages: [role, content] turns of user and assistant, the last the user's, are needed")
        if not isinstance(row["cluster"], str):
            raise self._error(key, number, f"cluster: text is needed, got {type(row['cluster']).__name__}")
        if self.about.axes != "rows" and row["axis"] not in self.about.axes:
            raise self._error(key, number, f"axis: {row['axis']!r} is none of {', '.join(self.about.axes)}")
        if not is_text(row["axis"]) or not row["axis"].strip() or row["axis"] == ALL:
            raise self._error(key, number, f"axis: a name other than {ALL} is needed, got {row['axis']!r}")
        messages = tuple(Message(cast(Role, role), text) for role, text in turns)
        split, cluster_id = self._placed(row["cluster"])
        return split, Prompt(prompt_id(row["axis"], messages), messages, row["axis"], cluster_id)

    def _placed(self, cluster: str) -> tuple[Split, str]:
        if cluster not in self._splits:
            self._splits[cluster] = split_of(cluster, self.about.splits, self.about.salt), identity(normalise(cluster))
        return self._splits[cluster]

    def _text(self, key: str, number: int, row: Mapping[str, Any], name: str) -> str | None:
        value = row.get(name)
        if value is not None and not is_text(value):
            got = "half a surrogate pair" if isinstance(value, str) else type(value).__name__
            raise self._error(key, number, f"{name}: text is needed, got {got}")
        return value

    def _error(self, key: str, number: int, problem: str) -> InputError:
        return InputError(f"{self.path}: {key}: row {number}: {problem}")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2 and turn[0] in ("user", "assistant") and is_text(turn[1])


def is_text(value: Any) -> TypeGuard[str]:
    """Whether this can be written as UTF-8: a string may hold half a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
