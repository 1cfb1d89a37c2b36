"""Broken inputs, more than 500, through the command line: each is lawful after all, or refused in one line, and nothing is written.

What breaks them is drawn by seeds that their names hold, so a failure says which mutation did it, and the same one is made again.
tests/test_config.py has experiment files as the loader sees them; here they meet tasks, methods and models, and so does everything else
that a user can hand in or damage: task folders, data, judges, annotators' sheets, outside annotations and whole run folders.
"""

import copy
import csv
import hashlib
import io
import json
import math
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import EXPERIMENT
from tiny_world import tiny_tree
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.config.plain_yaml import parse_yaml
from apo_bench.package_data import shipped_root

Place = tuple[Any, ...]
Mutation = tuple[str, Any, set[str]]  # how, what came of it, the keys of which a refusal names one
pytestmark = pytest.mark.slow  # hundreds of commands on run folders, each broken in one place
SIMULATED = "apo_bench.judging.simulated_judge@SimulatedJudge"
SMALL_WORLD = {"prompts_per_cluster": 1, "pairs_per_prompt": 1, "demonstrations_per_cluster": 2}
JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1.5, math.nan, math.inf, "", "x", "two\u2028lines\nand \x1b[31m", "../../up", "x" * 20_000, [], {}, [None],
    [[["a"]]], {"a": {"b": []}}, {"use": "absent.py@Absent"}, "\ud83d",
)  # fmt: skip
SNIPPETS = (
    b"\t", b"\0", b"\xff", b"&a ", b"*b ", b"<<: ", b"{", b"]", b"'", b'"', b": ", b"- ", b"#", b"%", b"@", b"!!python/name:os.system ",
    b"---\n", "\ufeff".encode(), "\u2028".encode(), b"\r", b"\xc2\x85", b"? ", b"|\n", b"\n", b"9" * 5000, b",", b'"\\ud800"',
)  # fmt: skip


# --- what breaks things ------------------------------------------------------------------------------------------------------


def places(tree: Any, before: Place = ()) -> Iterator[Place]:
    """The path of every value in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*before, key)
        yield from places(value, (*before, key))


def keys(value: Any) -> set[str]:
    """Every key inside a value, and the texts that could be told of it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = set(map(str, value)) if isinstance(value, dict) else {value} if isinstance(value, str) and value.strip() else set()
    return own.union(*map(keys, inner))


def broken_tree(tree: Any, name: str) -> Mutation:
    """The tree with one place changed, drawn by the name."""
    draw, tree = random.Random(name), copy.deepcopy(tree)
    place = draw.choice([*places(tree)])
    at = tree
    for key in place[:-1]:
        at = at[key]
    how, last = draw.choice(["junk"] * 6 + ["remove", "rename", "add", "double", "other"]), place[-1]
    named = {str(part) for part in place} | keys(at[last])
    if how == "remove" or (how == "rename" and isinstance(at, list)):
        del at[last]
    elif how == "rename":
        at[f"{last}s"] = at.pop(last)
        named.add(f"{last}s")
    elif how == "add" and isinstance(at, dict):
        at["surplus"] = draw.choice(JUNK)
        named.add("surplus")
    elif how == "double" and isinstance(at, list):
        at.append(copy.deepcopy(at[last]))
    elif how == "other":
        other: Any = tree
        for key in draw.choice([*places(tree)]):
            other = other[key]
        at[last] = copy.deepcopy(other)
        named |= keys(other)
    else:
        how, at[last] = "junk", draw.choice(JUNK)
        named |= keys(at[last])
    return f"{how} at {'.'.join(map(str, place))}, now {repr(at)[:80]}", tree, named


def broken_bytes(content: bytes, name: str) -> tuple[str, bytes]:
    """The content damaged in one place, drawn by the name."""
    draw = random.Random(name)
    lines = content.splitlines(keepends=True) or [b""]
    spot, line = draw.randrange(len(content)), draw.randrange(len(lines))
    end = min(len(content), spot + draw.randrange(1, 40))
    match how := draw.choice(["flip", "insert", "insert", "cut", "truncate", "repeat", "drop", "twice", "swap", "indent"]):
        case "flip":
            damaged = content[:spot] + bytes([content[spot] ^ draw.randrange(1, 256)]) + content[spot + 1 :]
        case "insert":
            damaged = content[:spot] + draw.choice(SNIPPETS) + content[spot:]
        case "cut":
            damaged = content[:spot] + content[end:]
        case "truncate":
            damaged = content[:spot]
        case "repeat":
            damaged = content[:end] + content[spot:]
        case "drop":
            damaged = b"".join([*lines[:line], *lines[line + 1 :]])
        case "twice":
            damaged = b"".join([*lines[:line], lines[line], *lines[line:]])
        case "swap":
            lines[line], lines[-1] = lines[-1], lines[line]
            damaged = b"".join(lines)
        case _:
            damaged = b"".join([*lines[:line], b"   ", *lines[line:]])
    return f"{how} at byte {spot}, line {line + 1}", damaged


# --- and what must come of it ------------------------------------------------------------------------------------------------


def fingerprint(folder: Path, besides: Sequence[Path] = ()) -> dict[str, str]:
    """Every file under a folder, and what it holds."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not any(path.is_relative_to(beside) for beside in besides))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def settle(how: str, root: Path, named: set[str], *words: str | Path, writes: Sequence[Path] = (), must: bool = False) -> bool:
    """Whether a command refused its input: then in lines of errors that name one of `named`, with nothing under `root` changed.

    `writes`: what the command may write where it accepts. `must`: it may not accept.
    """
    before = fingerprint(root)
    process = CliRunner().invoke(app, [str(word) for word in words])
    about = f"{how}\n{' '.join(map(str, words))}\nexit {process.exit_code}: {process.stderr[-2000:]}"
    if process.exception is not None and not isinstance(process.exception, SystemExit):
        raise AssertionError(about) from process.exception
    if process.exit_code == 2:
        assert fingerprint(root) == before, about
        errors = [line for line in process.stderr.splitlines() if not line.startswith(("reading ", "note: "))]
        assert errors, about
        assert all(line.startswith("error: ") for line in errors), about
        assert any(name in process.stderr for name in named), f"{about}\nnone is named: {sorted(named)}"
        return True
    assert process.exit_code in (0, 1), about
    assert not must, f"accepted: {about}"
    changed = {name for name, digest in fingerprint(root, writes).items() if before.get(name) != digest}
    assert not changed, f"{about}\nwritten: {sorted(changed)}"
    return False


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a case, with an empty one in it to work in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # a __pycache__ beside what was read would be something written
    return tmp_path


def write_tree(path: Path, tree: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


# --- experiments -------------------------------------------------------------------------------------------------------------


def shrunk(tree: Any, key: str = "") -> Any:
    """An experiment that asks for no more prompts than a small world has."""
    if isinstance(tree, dict):
        return {name: shrunk(value, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [shrunk(value) for value in tree]
    return min(tree, 8) if key in ("prompts", "dev_prompts", "prompts_per_round") and isinstance(tree, int) else tree


def shipped(path: Path) -> dict[str, Any]:
    tree = shrunk(parse_yaml(path.read_text(encoding="utf-8"), str(path)))
    task = {"use": tree["task"]} if isinstance(tree["task"], str) else tree["task"]
    tree["task"] = task | ({"options": task.get("options", {}) | SMALL_WORLD} if task["use"] == "sim_hh" else {})
    return tree


def judged_tree() -> dict[str, Any]:
    """A small experiment with every kind of judge."""
    chat = {"use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": "http://127.0.0.1:1/v1", "api_key_env": None}
    return copy.deepcopy(EXPERIMENT) | {
        "judges": {
            "sim": {"use": SIMULATED, "noise": 0.2, "position_bias": 0.1, "length_bias": 0.0, "failure_rate": 0.1},
            "gold": {"use": "apo_bench.judging.reward_judge@RewardModelJudge", "gold": "linear"},
            "chat": chat,
        },
        "judging": {"pairs": "reference", "reference": "rjs", "seeds": "same", "prompts": 8, "audit_pairs": 20, "attacks": True},
    }


SHIPPED = sorted((shipped_root() / "experiments").glob("*.yaml"))
EXPERIMENTS = {path.stem: shipped(path) for path in SHIPPED} | {"judged": judged_tree()}
TREES = [(name, number) for name in EXPERIMENTS for number in range(40 if name == "judged" else 8)]
TEXTS = [(path.stem, number) for path in SHIPPED if path.stem.startswith("hh_") for number in range(12)]
TEXTS += [("judged", number) for number in range(24)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_will_be_broken_is_whole(root: Path, name: str) -> None:
    assert not settle(name, root, set(), "check", write_tree(root / "beside" / "e.yaml", EXPERIMENTS[name]))


@pytest.mark.parametrize(("name", "number"), TREES)
def test_experiments(root: Path, name: str, number: int) -> None:
    how, tree, named = broken_tree(EXPERIMENTS[name], f"{name} {number}")
    path = write_tree(root / "beside" / "e.yaml", tree)
    if settle(how, root, {str(path)}, "check", path):
        settle(how, root, named | {"not JSON", "with the longest response"}, "check", path)


@pytest.mark.parametrize(("name", "number"), TEXTS)
def test_experiments_texts(root: Path, name: str, number: int) -> None:
    file = shipped_root() / "experiments" / f"{name}.yaml"
    text = file.read_bytes() if file.exists() else yaml.safe_dump(EXPERIMENTS[name], sort_keys=False).encode()
    how, content = broken_bytes(text, f"text {name} {number}")
    path = root / "e.yaml"
    path.write_bytes(content)
    settle(how, root, {str(path)}, "check", path)


# --- task folders ------------------------------------------------------------------------------------------------------------

TOY = """
def rows(**options):
    for number in range(80):
        yield {"messages": [["user", f"question {number}"]], "chosen": "yes", "rejected": "no", "axis": "only", "cluster": f"{number}"}


def golden(**options):
    return lambda prompt: "yes"


def demonstrations(**options):
    return [{"messages": [["user", f"question {number}"]], "response": "yes", "axis": "only", "cluster": f"{number}"}
            for number in range(80)]


def vocabulary(**options):
    return ["yes", "no", "question"]
"""
TOY_YAML: dict[str, Any] = {
    "task": "toy",
    "metadata": {
        "version": 1.0,
        "apo_bench": {
            "axes": ["only"],
            "splits": {"rm": 0.2, "policy": 0.2, "gold": 0.2, "dev": 0.2, "test": 0.2},
            "salt": "toy",
            "rows": "toy.rows",
            "golden": "toy.golden",
            "demonstrations": "toy.demonstrations",
            "vocabulary": "toy.vocabulary",
            "options": {"size": 1, "share": 0.5, "names": ["a"]},
            "provenance": "Made up.",
        },
    },
}
PYTHON = {  # what stands in toy.py in place of what
    "syntax": ("def rows(**options):", "def rows(**options)"),
    "no module": ("def rows(", "import absent_module\n\n\ndef rows("),
    "fails while loading": ("def rows(", "1 / 0\n\n\ndef rows("),
    "exits while loading": ("def rows(", "raise SystemExit(3)\n\n\ndef rows("),
    "no such function": ("def rows(", "def raws("),
    "a name that is no function": ("def rows(", "rows = 3\n\n\ndef raws("),
    "takes no options": ("rows(**options)", "rows()"),
    "golden takes no options": ("golden(**options)", "golden()"),
    "no rows at all": ("in range(80):\n        yield", "in range(0):\n        yield"),
    "rows are None": ("    for number in range(80):\n        yield", "    return None\n    for number in range(80):\n        yield"),
    "rows are a number": ("    for number in range(80):\n        yield {", "    return 3\n    {"),
    "rows fail": ("        yield {", "        1 / 0\n        yield {"),
    "a row is a list": ('yield {"messages": ', 'yield [] or {"massages": '),
    "a row is None": ("        yield {", "        yield None\n        yield {"),
    "a row is text": ("        yield {", "        yield 'x'\n        yield {"),
    "no messages": ('"messages": [["user", f"question {number}"]], "chosen"', '"chosen"'),
    "messages are text": ('[["user", f"question {number}"]], "chosen"', '"question", "chosen"'),
    "messages are a number": ('[["user", f"question {number}"]], "chosen"', '3, "chosen"'),
    "a turn of somebody else": ('[["user", f"question {number}"]], "chosen"', '[["system", "x"]], "chosen"'),
    "a role that is a list": ('[["user", f"question {number}"]], "chosen"', '[[[], "x"]], "chosen"'),
    "a turn that is no text": ('[["user", f"question {number}"]], "chosen"', '[["user", 3]], "chosen"'),
    "another axis": ('"no", "axis": "only"', '"no", "axis": "other"'),
    "an axis that is a list": ('"no", "axis": "only"', '"no", "axis": ["only"]'),
    "a cluster that is a number": ('"no", "axis": "only", "cluster": f"{number}"', '"no", "axis": "only", "cluster": number'),
    "a cluster that is a list": ('"no", "axis": "only", "cluster": f"{number}"', '"no", "axis": "only", "cluster": [number]'),
    "a cluster that is None": ('"no", "axis": "only", "cluster": f"{number}"', '"no", "axis": "only", "cluster": None'),
    "chosen is a number": ('"chosen": "yes"', '"chosen": 1'),
    "one side only": ('"chosen": "yes", ', ""),
    "half a character": ('"chosen": "yes"', '"chosen": "\\ud83d"'),
    "half a character in a turn": ('[["user", f"question {number}"]], "chosen"', '[["user", f"\\ud83d {number}"]], "chosen"'),
    "a surplus key": ('"chosen": "yes"', '"chosen": "yes", "surplus": 1'),
    "a key that is no text": ('"chosen": "yes"', '"chosen": "yes", 3: 1'),
    "dropped for a list": ('yield {"messages"', 'yield {"dropped": [], "messages"'),
    "all dropped": ('yield {"messages"', 'yield {"dropped": "why", "messages"'),
    "a question in two splits": ('f"question {number}"]], "chosen"', '"question"]], "chosen"'),
    "golden is no function": ('lambda prompt: "yes"', "3"),
    "golden is a number": ('lambda prompt: "yes"', "lambda prompt: 3"),
    "golden fails": ('lambda prompt: "yes"', "lambda prompt: 1 / 0"),
    "golden is half a character": ('lambda prompt: "yes"', 'lambda prompt: "\\ud83d"'),
    "a demonstration without a response": ('"response": "yes"', '"response": ""'),
    "a demonstration that is a number": ("return [{", "return [3] or [{"),
    "vocabulary of numbers": ('["yes", "no", "question"]', "[1, 2]"),
    "vocabulary is None": ('["yes", "no", "question"]', "None"),
}


def toy_experiment(use: str, **options: Any) -> dict[str, Any]:
    """An experiment whose models come from the hub, so that only the task is looked at."""
    tree = shipped(shipped_root() / "experiments" / "hh_modern.yaml")
    tree["task"], tree["compare"]["axes"] = {"use": use, "options": options}, ["all"]
    tree["evaluation"] = {"sampling": {"max_new_tokens": 8}}
    return tree


def toy(root: Path, description: Any = TOY_YAML, python: str = TOY) -> tuple[Path, set[str]]:
    """An experiment on a task of its own beside it, and the files a refusal may name."""
    folder = root / "beside" / "tasks" / "toy"
    path = write_tree(folder.parents[1] / "e.yaml", toy_experiment("toy"))
    write_tree(folder / "toy.yaml", description)
    (folder / "toy.py").write_text(python, encoding="utf-8")
    return path, {str(folder / "toy.yaml"), str(folder / "toy.py")}


def test_the_toy_task_is_whole(root: Path) -> None:
    path, files = toy(root)
    assert not settle("toy", root, files, "check", path)


@pytest.mark.parametrize("name", PYTHON)
def test_tasks_python(root: Path, name: str) -> None:
    old, new = PYTHON[name]
    assert TOY.count(old) == 1, name
    path, files = toy(root, python=TOY.replace(old, new))
    settle(name, root, files, "check", path, must=True)


@pytest.mark.parametrize("number", range(50))
def test_tasks_descriptions(root: Path, number: int) -> None:
    how, about, named = broken_tree(TOY_YAML["metadata"]["apo_bench"], f"task {number}")
    path, files = toy(root, TOY_YAML | {"metadata": {"version": 1.0, "apo_bench": about}})
    if settle(how, root, files, "check", path):
        settle(how, root, named | {"module.function"}, "check", path)


@pytest.mark.parametrize("number", range(24))
@pytest.mark.parametrize("name", ["sim_hh", "hh"])
def test_tasks_texts(root: Path, name: str, number: int) -> None:
    folder = root / "beside" / "tasks" / name
    shutil.copytree(shipped_root() / "tasks" / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    description = folder / f"{name}.yaml"
    how, content = broken_bytes(description.read_bytes(), f"task {name} {number}")
    description.write_bytes(content)
    options = SMALL_WORLD if name == "sim_hh" else {"data_files": [write_rows(root / "beside" / "rows.jsonl", ROWS).name]}
    path = write_tree(root / "beside" / "e.yaml", toy_experiment(name, **options))
    settle(how, root, {str(description), f"task {name}: options."}, "check", path)


# --- data --------------------------------------------------------------------------------------------------------------------

ROWS = [
    {
        "prompt": f"\n\nHuman: How does number {number} go?\n\nAssistant:",
        "chosen": f" Like {number + 1}.",
        "rejected": " No.",
        "subset": ("helpful-base", "harmless-base")[number % 2],
    }
    for number in range(300)
]
GOLDEN = [{"prompt": row["prompt"], "response": "Well."} for row in ROWS]
VOTED = [
    {"instruction": f"Say {number}", "input": "", "response1": f"{number}", "response2": "no",
     "annotator1": 1, "annotator2": 1, "annotator3": 2}
    for number in range(12)
]  # fmt: skip
ANNOTATED = [
    {"instruction": f"Say {number}", "output_1": "no", "output_2": f"{number} it is", "generator_1": "base", "generator_2": "ours",
     "annotator": "someone", "dataset": "set", "preference": 1 + number % 2}
    for number in range(12)
]  # fmt: skip
JUDGE = '''
from dataclasses import dataclass

from apo_bench.judging.judge_protocol import Judge, Verdict


@dataclass(frozen=True)
class Longer:
    """The longer one."""

    tie_margin: int = 0

    def open(self, at):
        return Open(self.tie_margin)


@dataclass(frozen=True)
class Open(Judge):
    tie_margin: int

    @property
    def identity(self):
        return {"kind": "longer", "tie_margin": self.tie_margin}

    def verdicts(self, questions, attempt=0, spent_usd=0.0):
        for one in questions:
            longer = len(one.first) - len(one.second)
            yield one, Verdict("tie" if abs(longer) <= self.tie_margin else "first" if longer > 0 else "second", text=str(longer))
'''


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def broken_rows(rows: Sequence[Any], name: str) -> tuple[str, bytes, set[str]]:
    """JSON lines with one row's value changed, or one byte; and what a refusal may name besides the file."""
    draw = random.Random(name)
    if draw.random() < 0.4:
        how, content = broken_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(), name)
        return how, content, {"line "}
    line = draw.randrange(len(rows))
    if draw.random() < 0.2:
        how, row = "junk row", draw.choice(JUNK)
    else:
        how, row, _ = broken_tree(rows[line], name)
    lines = [json.dumps(row) for row in (*rows[:line], row, *rows[line + 1 :])]
    return f"line {line + 1}: {how}", "".join(row + "\n" for row in lines).encode(), {f"line {line + 1}"}


def broken_list(rows: Sequence[Any], name: str) -> tuple[str, bytes]:
    """A JSON list with one value changed, or one byte."""
    if random.Random(name).random() < 0.4:
        return broken_bytes(json.dumps(rows, indent=1).encode(), name)
    how, tree, _ = broken_tree(list(rows), name)
    return how, json.dumps(tree).encode()


@pytest.mark.parametrize("number", range(50))
def test_data_rows(root: Path, number: int) -> None:
    how, content, named = broken_rows(ROWS, f"rows {number}")
    data = root / "beside" / "rows.jsonl"
    path = write_tree(root / "beside" / "e.yaml", toy_experiment("hh", data_files=["rows.jsonl"]))
    data.write_bytes(content)
    if settle(how, root, {str(data)}, "check", path):
        settle(how, root, named, "check", path)


@pytest.mark.parametrize("number", range(30))
def test_golden_rows(root: Path, number: int) -> None:
    how, content, named = broken_rows(GOLDEN, f"golden {number}")
    write_rows(root / "beside" / "rows.jsonl", ROWS)
    golden = root / "beside" / "golden.jsonl"
    path = write_tree(root / "beside" / "e.yaml", toy_experiment("hh", data_files=["rows.jsonl"], golden="golden.jsonl"))
    golden.write_bytes(content)
    if settle(how, root, {str(golden)}, "check", path):
        settle(how, root, named, "check", path)


WHOLE_FILES = {
    "empty": b"",
    "blank lines": b"\n \n\n",
    "NUL bytes": b"\0" * 100,
    "UTF-16": "\n".join(map(json.dumps, ROWS)).encode("utf-16"),
    "a list": json.dumps(ROWS).encode(),
    "one huge line": json.dumps({**ROWS[0], "chosen": "word " * 300_000}).encode(),
    "a huge line that breaks off": b'{"prompt": "' + b"x" * 5_000_000,
    "deep": b"[" * 100_000,
    "a long number": b'{"prompt": ' + b"9" * 10_000 + b"}",
    "not a number": b'{"prompt": NaN}',
    "gzip by name alone": b"plain",
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_whole_files_of_data(root: Path, name: str) -> None:
    data = root / "beside" / ("rows.jsonl.gz" if name.startswith("gzip") else "rows.jsonl")
    path = write_tree(root / "beside" / "e.yaml", toy_experiment("hh", data_files=[data.name]))
    data.write_bytes(WHOLE_FILES[name])
    settle(name, root, {str(data), "splits", "no rows are left"}, "check", path, must=True)
    (root / "here" / "longer.py").write_text(JUDGE)
    words = ("audit-judge", "--judge", "{name: longer, use: longer.py@Longer}", "--data", data, "--out", root / "audit")
    settle(name, root, {str(data)}, *words, must=name != "one huge line", writes=[root / "audit"])


@pytest.mark.parametrize("number", range(30))
def test_labelled_data(root: Path, number: int) -> None:
    how, content = broken_list(VOTED, f"voted {number}")
    data = root / "voted.json"
    data.write_bytes(content)
    (root / "here" / "longer.py").write_text(JUDGE)
    words = ("audit-judge", "--judge", "{name: longer, use: longer.py@Longer}", "--data", data, "--out", root / "audit")
    settle(how, root, {str(data)}, *words, writes=[root / "audit"])


@pytest.mark.parametrize("number", range(40))
def test_outside_annotations(root: Path, number: int) -> None:
    how, content = broken_list(ANNOTATED, f"annotated {number}")
    data = root / "annotated.json"
    data.write_bytes(content)
    settle(how, root, {str(data)}, "import-judgments", data, "--out", root / "outside", writes=[root / "outside"])


# --- a finished run, and what comes to it from outside -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with a judge, and beside it the annotators' sheet, filled in."""
    root = tmp_path_factory.mktemp("finished")
    tree = tiny_tree() | {"judges": {"sim": {"use": SIMULATED, "noise": 0.2}}, "judging": {"audit_pairs": 10, "prompts": 6}}
    tree["arms"]["apo_rjs"]["rounds"] = 1
    path, folder = write_tree(root / "e.yaml", tree), root / "run"
    sheet = root / "sheet.csv"
    for words in (("run", path, "--out", folder, "--workers", 1), ("export", folder, "--format", "annotate", "--out", sheet)):
        assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    filled = io.StringIO()
    writer = csv.DictWriter(filled, list(rows[0]))
    writer.writeheader()
    writer.writerows(row | {"preference": ("1", "2", "tie", "")[place % 4]} for place, row in enumerate(rows))
    sheet.write_text(filled.getvalue(), encoding="utf-8-sig")
    for kind in (
        folder / "store"
    ).iterdir():  # rows are looked at before they are believed; no other artifact is opened, and there are hundreds
        if kind.is_dir() and kind.name not in ("judging", "arm_seeds", "curves", "evaluations", "gold_accuracy"):
            shutil.rmtree(kind)
    return root


@pytest.fixture
def run(finished: Path, root: Path) -> Path:
    """A copy of its own of the run folder and what lies beside it."""
    shutil.copytree(finished, root / "there")
    return root / "there" / "run"


JUDGES: dict[str, dict[str, Any]] = {
    "simulated": {"use": SIMULATED, "noise": 0.2, "position_bias": 0.1, "length_bias": 0.05, "failure_rate": 0.1},
    "gold": {"use": "apo_bench.judging.reward_judge@RewardModelJudge", "gold": "linear", "tie_margin": 0.1},
    "chat": {
        "use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY",
        "max_attempts": 1, "timeout_s": 1.0, "sampling": {"temperature": 0.0, "seed": 1},
    },
    "local": {"use": "apo_bench.judging.local_judge@LocalJudge", "path": "absent/model", "max_new_tokens": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", ["simulated", "gold"])  # the others want a server or a model
def test_these_judges_are_whole(run: Path, root: Path, name: str) -> None:
    file = write_tree(root / "judge.yaml", {"name": "more", **JUDGES[name]})
    assert not settle(name, root, set(), "judge", run, "--judge", file, writes=[run])


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("name", JUDGES)
def test_judges(run: Path, root: Path, name: str, number: int) -> None:
    how, judge, named = broken_tree({"name": "more", **JUDGES[name]}, f"judge {name} {number}")
    file = write_tree(root / "judge.yaml", judge)
    named |= {"api_key_env", "NO_SUCH_KEY", "judges.more", "judge.yaml"}
    settle(how, root, named, "judge", run, "--judge", file, writes=[run])


@pytest.mark.parametrize("number", range(10))
def test_judges_texts(run: Path, root: Path, number: int) -> None:
    how, content = broken_bytes(yaml.safe_dump({"name": "more", **JUDGES["chat"]}).encode(), f"judge text {number}")
    file = root / "judge.yaml"
    file.write_bytes(content)
    settle(how, root, {str(file), "judges."}, "judge", run, "--judge", file, writes=[run])


@pytest.mark.parametrize("number", range(9))
def test_annotators_sheets(run: Path, root: Path, number: int) -> None:
    sheet = run.parent / "sheet.csv"
    how, content = broken_bytes(sheet.read_bytes(), f"sheet {number}")
    sheet.write_bytes(content)
    settle(how, root, {str(sheet)}, "import-judgments", sheet, "--run", run, writes=[run])


@pytest.mark.parametrize("number", range(12))
def test_annotators_keys(run: Path, root: Path, number: int) -> None:
    key = run.parent / "sheet.key.json"
    if number % 2:
        how, content = broken_bytes(key.read_bytes(), f"key {number}")
        key.write_bytes(content)
    else:
        how, tree, _ = broken_tree(json.loads(key.read_text()), f"key {number}")
        key.write_text(json.dumps(tree))
    settle(
        how,
        root,
        {str(key), "sheet.csv", "are not those shown"},
        "import-judgments",
        key.with_name("sheet.csv"),
        "--run",
        run,
        writes=[run],
    )


def readers(run: Path, root: Path) -> dict[str, tuple[str | Path, ...]]:
    """The commands that read a run folder, the quick ones."""
    return {
        "power": ("power", run),
        "pairs": ("export", run, "--format", "pairs", "--out", root / "out"),
        "alpaca-eval": ("export", run, "--format", "alpaca-eval", "--out", root / "out"),
        "annotate": ("export", run, "--format", "annotate", "--out", root / "out" / "sheet.csv"),
    }


TABLES = ("scores", "metrics", "reward_models", "gold", "ledger", "reliability", "judgments", "judge_audit", "responses")
READ: dict[str, tuple[str, ...]] = {  # the commands that a table is read by, besides the report
    "responses": ("alpaca-eval", "annotate"),
    "judgments": ("power", "pairs"),
}


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("table", TABLES)
def test_tables_bytes(run: Path, root: Path, table: str, number: int) -> None:
    path = run / "tables" / f"{table}.parquet"
    how, content = broken_bytes(path.read_bytes(), f"{table} {number}")
    path.write_bytes(content)
    for name in READ.get(table, ("power",)):
        settle(how, root, {str(path)}, *readers(run, root)[name], writes=[root / "out"])


SPOILED: dict[str, Callable[[pd.DataFrame, str], Any]] = {
    "column dropped": lambda rows, column: rows.drop(columns=column),
    "column of nothing": lambda rows, column: rows.assign(**{column: None}),
    "column of text": lambda rows, column: rows.assign(**{column: "?"}),
    "column of lists": lambda rows, column: rows.assign(**{column: pd.Series([[1]] * len(rows), index=rows.index)}),
    "column of huge numbers": lambda rows, column: rows.assign(**{column: 1e308}),
    "column of infinity": lambda rows, column: rows.assign(**{column: math.inf}),
    "column twice as long": lambda rows, column: pd.concat([rows, rows]),
    "first value missing": lambda rows, column: rows.assign(**{column: rows[column].where(rows.index > 0)}),
    "no rows": lambda rows, column: rows.head(0),
    "one row": lambda rows, column: rows.head(1),
}


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("table", TABLES)
def test_tables_columns(run: Path, root: Path, table: str, number: int) -> None:
    draw, path = random.Random(f"{table} {number}"), run / "tables" / f"{table}.parquet"
    rows = pd.read_parquet(path)
    how, column = draw.choice([*SPOILED]), draw.choice([*rows.columns])
    SPOILED[how](rows, column).to_parquet(path)
    named = {str(path), "tables/scores", "judgments: judge", "no test prompt", "nothing to annotate", "no responses", "no comparison"}
    for name in READ.get(table, ("power",)):
        settle(f"{table}: {column}: {how}", root, named, *readers(run, root)[name], writes=[root / "out"])
    if number == 0:
        settle(f"{table}: {column}: {how}", root, named, "report", run, writes=[run / "report"])


@pytest.mark.parametrize("number", range(32))
def test_manifests(run: Path, root: Path, number: int) -> None:
    path = run / "manifest.json"
    if number % 2:
        how, content = broken_bytes(path.read_bytes(), f"manifest {number}")
        path.write_bytes(content)
    else:
        how, tree, _ = broken_tree(json.loads(path.read_text()), f"manifest {number}")
        path.write_text(json.dumps(tree))
    settle(how, root, {str(path)}, "power", run)
    if number % 4 == 0:
        settle(how, root, {str(path)}, "report", run, writes=[run / "report"])


@pytest.mark.parametrize("number", range(20))
def test_resolved_experiments(run: Path, root: Path, number: int) -> None:
    path = run / "experiment.yaml"
    how, tree, _ = broken_tree(yaml.safe_load(path.read_text()), f"resolved {number}")
    write_tree(path, tree)
    for words in [*readers(run, root).values()][:3]:
        settle(how, root, {str(path), "task", "judgments: judge"}, *words, writes=[root / "out"])


DAMAGED = {  # by file of the run folder: what stands there
    "store/preregistration.json": (b"", b"[", b"[3]", b'[{"seeds": 3, "prompts": 1}]', b"\xff"),
    "judges.json": (b"", b"[", b"[]", b'{"x": 3}', b'{"x": {"use": "nothing"}}', b"\xff"),
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in DAMAGED.items() for content in contents])
def test_records_of_a_run(run: Path, root: Path, name: str, content: bytes) -> None:
    """Read where a run goes on; a judge that is added reads those that were added before."""
    path = run / name
    path.write_bytes(content)
    if name == "judges.json":
        words = ("judge", run, "--judge", f"{{name: more, use: {SIMULATED}}}")
    else:
        words = ("run", run.parent / "e.yaml", "--out", run, "--workers", "1")
    settle(f"{name}: {content[:40]!r}", root, {str(path)}, *words, must=True)


@pytest.mark.parametrize("number", range(4))
def test_journals(run: Path, root: Path, number: int) -> None:
    """What a damaged line said is asked again, so that the tables come out as they were."""
    path = run / "store" / "judging" / "sim.jsonl"
    before = pd.read_parquet(run / "tables" / "judgments.parquet")
    how, content = broken_bytes(path.read_bytes(), f"journal {number}")
    path.write_bytes(content)
    assert not settle(how, root, set(), "judge", run, "--judge", "sim", writes=[run])
    pd.testing.assert_frame_equal(pd.read_parquet(run / "tables" / "judgments.parquet"), before)
