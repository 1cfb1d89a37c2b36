"""Tasks, splits and the leak check, on toy tasks, on both shipped ones and (where it is at hand) on real HH."""

import gzip
import hashlib
import importlib.util
import json
import math
import re
import string
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.data.splits import check_leaks, normalise, split_of
from apo_bench.data.task import load_task
from apo_bench.data.task_folder import find_task
from apo_bench.errors import InputError
from apo_bench.types import SPLITS, Message, Prompt, Split, prompt_id

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parents[3] / "shared" / "data" / "hh"
SHARES: dict[Split, float] = {"rm": 0.25, "policy": 0.08, "gold": 0.5, "dev": 0.05, "test": 0.12}
needs_hh = pytest.mark.skipif(not DATA.is_dir(), reason="the HH files are not beside the project (../shared/data/hh)")

WORDS = st.lists(st.text(string.ascii_letters + string.digits + "äéßøñж", min_size=1), min_size=1, max_size=6)


# normalise and split_of


def test_normalise_by_hand():
    """Full-width letters and the ligature fold by NFKC, ß by case folding; the dash, apostrophe, euro sign and zero-width space go."""
    assert normalise("  \uff37hat's\n\tTHE — \ufb01nal Straße,\u200b €5?! ") == "whats the final strasse 5"
    assert normalise("?!") == ""


@given(text=st.text(st.characters(max_codepoint=127)))
def test_normalise_of_ascii_is_that_of_the_same_text_with_a_letter_that_is_not(text: str):
    """The short way for ASCII against the long one, which a letter of another alphabet brings about."""
    assert normalise(f"{text} \u00e9") == f"{normalise(text)} \u00e9".strip()


@given(st.text(max_size=60))
def test_normalise_ignores_outer_and_doubled_space_and_marks(text: str):
    spaced = "  ...\n" + text.replace(" ", " \t ") + " ?!"
    assert normalise(spaced) == normalise(text)


@given(WORDS, st.lists(st.sampled_from([" ", "  ", "\n", " , ", "... ", " — "]), min_size=6, max_size=6), st.sampled_from(["a", "b"]))
def test_split_is_invariant_to_case_space_and_punctuation(words: list[str], gaps: list[str], salt: str):
    other = "".join(word.upper() + gap for word, gap in zip(words, gaps, strict=False)) + "?"
    assert normalise(other) == normalise(" ".join(words))
    assert split_of(other, SHARES, salt) == split_of(" ".join(words), SHARES, salt)


def test_split_by_hand():
    """The first 64 bits of sha256("hh\\0what is it") as a fraction lie where the cumulated shares .25 .33 .83 .88 1 put the split."""
    for text in ("what is it", "how do i sing", "name three rivers", "why"):
        place = int(hashlib.sha256(f"hh\0{text}".encode()).hexdigest()[:16], 16) / 16**16
        expected = next(split for split, edge in zip(SPLITS, (0.25, 0.33, 0.83, 0.88, 1), strict=True) if place < edge)
        assert split_of(text.title() + "?", SHARES, "hh") == expected


def test_splits_are_pinned():
    """Literals: a change of the hash would silently move conversations of published runs to other splits."""
    assert [split_of(f"request {n}", SHARES, "hh") for n in range(8)] == PINNED


PINNED: list[Split] = ["gold", "gold", "rm", "gold", "gold", "rm", "gold", "gold"]


def test_shares_are_approximated_and_the_salt_matters():
    """Of n = 20,000 clusters a share p gets np within 4.5 binomial standard deviations; another salt is an independent split."""
    n = 20_000
    ours, others = ([split_of(f"cluster {i}", SHARES, salt) for i in range(n)] for salt in ("one", "two"))
    for split, share in SHARES.items():
        assert abs(ours.count(split) - n * share) < 4.5 * math.sqrt(n * share * (1 - share))
    same = sum(share**2 for share in SHARES.values())  # chance agreement of two independent splits
    agreed = sum(a == b for a, b in zip(ours, others, strict=True))
    assert abs(agreed - n * same) < 4.5 * math.sqrt(n * same * (1 - same))


@pytest.mark.parametrize("shares", [{"rm": 0.5, "test": 0.4}, {"rm": 1.5, "test": -0.5}, {}, {"rm": float("nan")}])
def test_shares_must_sum_to_one(shares: dict[Split, float]):
    with pytest.raises(ValueError, match="sum to 1"):
        split_of("a", shares, "s")


def test_a_split_without_a_share_gets_nothing():
    assert {split_of(str(i), {"rm": 0.5, "gold": 0.0, "test": 0.5}, "s") for i in range(200)} == {"rm", "test"}


# A toy task whose rows are an option

TOY = {
    "axes": ["kind", "safe"],
    "splits": {"rm": 0.5, "test": 0.5},
    "salt": "toy",
    "rows": "toy.rows",
    "options": {"rows": [], "level": 0.5, "size": 1},
    "provenance": "Made up.",
}
TOY_PYTHON = """
def rows(*, rows, **_):
    return rows

def golden(**_):
    return lambda prompt: "gold for " + prompt.messages[-1].content

def number(**_):
    return lambda prompt: 3

def demonstrations(*, rows, **_):
    return [{"messages": row["messages"], "response": "yes", "axis": row["axis"], "cluster": row["cluster"]} for row in rows]

def ground_truth(*, level, **_):
    return lambda prompt, response: level * len(response)

def is_refusal(**_):
    return lambda text: text == "no"

def vocabulary(**_):
    return ["a", "b"]

def provenance(*, base, **_):
    return f"Made up in {base}."
"""


@pytest.fixture
def toy(tmp_path: Path):
    """A function that writes the toy task (with changed fields) and loads it."""

    def load(given: list[Any] | None = None, settings: dict[str, Any] | None = None, **fields: Any):
        folder = tmp_path / "tasks" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"task": "toy", "metadata": {"apo_bench": {**TOY, **fields}}}, sort_keys=False)
        (folder / "toy.yaml").write_text("custom_dataset: !function toy.nowhere\n" + text, encoding="utf-8")
        (folder / "toy.py").write_text(TOY_PYTHON, encoding="utf-8")
        return load_task("toy", {"rows": many() if given is None else given, **(settings or {})}, base=tmp_path)

    return load


def row(text: str, axis: str = "kind", chosen: str | None = "good", rejected: str | None = "bad", **more: Any) -> dict[str, Any]:
    return {"messages": [["user", text]], "axis": axis, "cluster": text, "chosen": chosen, "rejected": rejected, **more}


def many(n: int = 40) -> list[dict[str, Any]]:
    return [row(f"request {i}", axis) for i in range(n) for axis in ("kind", "safe")]


def test_a_conversation_lands_in_one_split_on_all_axes(toy: Any):
    rows = [row(text, axis) for i in range(40) for text in (f"Request {i}?", f"request  {i}") for axis in ("kind", "safe")]
    task = toy(rows)
    homes = defaultdict(set)
    for split, prompts in task.prompts.items():
        for prompt in prompts:
            homes[normalise(prompt.messages[0].content)].add((split, prompt.cluster_id))
    assert len(homes) == 40
    assert all(len(home) == 1 for home in homes.values())
    assert sum(task.counts[f"{split}.prompts"] for split in SPLITS) == 160
    assert sum(task.counts[f"{split}.clusters"] for split in SPLITS) == 40
    assert sum(task.counts[f"{split}.{axis}.clusters"] for split in SPLITS for axis in task.axes) == 80


def test_adding_rows_moves_nothing(toy: Any):
    few, more = ({prompt.id: split for split, prompts in toy(many(n)).prompts.items() for prompt in prompts} for n in (20, 40))
    assert len(few) == 40
    assert few.items() <= more.items()


def test_prompts_are_distinct_and_pairs_are_not_lost(toy: Any):
    task = toy([*many(), *(row(f"request {i}", chosen="better") for i in range(40))])
    prompts = [prompt for split in SPLITS for prompt in task.prompts[split]]
    pairs = [pair for split in SPLITS for pair in task.pairs[split]]
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 80
    assert len(pairs) == 120
    messages = (Message("user", "request 0"),)
    assert prompt_id("kind", messages) in {prompt.id for prompt in prompts}


def test_left_out_pairs_are_counted(toy: Any):
    odd = [row("x", chosen="same", rejected=" same "), row("y", rejected="  "), {"dropped": "torn"}, {"dropped": "torn"}]
    task = toy([*many(), *odd])
    assert (task.counts["identical pairs dropped"], task.counts["empty-sided pairs dropped"], task.counts["torn"]) == (1, 1, 2)
    assert sum(len(pairs) for pairs in task.pairs.values()) == 80


def test_prompt_only_rows(toy: Any):
    task = toy([*many(), *({"messages": [["user", f"only {i}"]], "axis": "kind", "cluster": f"only {i}"} for i in range(20))])
    assert sum(len(prompts) for prompts in task.prompts.values()) == 100
    assert sum(len(pairs) for pairs in task.pairs.values()) == 80


def test_golden_answers_only_prompts_of_the_rm_split(toy: Any):
    rm = {prompt.id: prompt for prompt in toy().prompts["rm"]}
    assert toy().golden == dict.fromkeys(rm, "good")
    assert toy(golden="rows").golden == {}
    assert toy(golden="rows").counts["rm prompts without a golden response"] == len(rm)
    assert toy([{**row, "golden": "best"} for row in many()]).golden == dict.fromkeys(rm, "best")
    assert toy(golden="toy.golden").golden == {key: f"gold for {prompt.messages[0].content}" for key, prompt in rm.items()}


def test_functions_of_the_task(toy: Any, tmp_path: Path):
    named = {key: f"toy.{key}" for key in ("ground_truth", "is_refusal", "vocabulary", "provenance", "demonstrations")}
    task = toy(settings={"level": 2.0}, **named)
    assert task.ground_truth(task.prompts["rm"][0], "four") == 8
    assert (task.is_refusal("no"), task.is_refusal("yes")) == (True, False)
    assert task.vocabulary == ("a", "b")
    assert task.provenance == f"Made up in {tmp_path}."
    assert {demonstration.prompt.id for demonstration in task.demonstrations} == {prompt.id for prompt in task.prompts["rm"]}
    assert task.counts["demonstrations of gold, dev and test clusters left out"] == len(task.prompts["test"])
    assert [path.name for path in task.source_files] == ["toy.yaml", "toy.py"]


def test_the_fingerprint_is_the_content(toy: Any):
    first = toy().fingerprint
    assert toy().fingerprint == first
    changed = [many(), many(), many()]
    changed[0][0]["chosen"] = "else"
    changed[1][0]["golden"] = "else"
    changed[2].append({"messages": [["user", "new"]], "axis": "kind", "cluster": "new"})
    assert len({first, *(toy(rows).fingerprint for rows in changed), toy(salt="other").fingerprint}) == 5


def test_an_axis_without_rows_is_not_claimed(toy: Any):
    task = toy([row(f"request {i}") for i in range(40)])
    assert task.axes == ("kind",)
    assert "test.safe.pairs" not in task.counts


def test_where_a_task_is_found(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside the experiment first, then the working directory, then the shipped data; or by path."""
    toy()
    beside = tmp_path / "tasks" / "toy"
    monkeypatch.chdir(tmp_path / "tasks")
    assert find_task("toy", tmp_path) == beside
    assert find_task("toy", None) == beside  # ./toy is a path
    assert find_task(str(beside), None) == beside
    monkeypatch.chdir(tmp_path)
    assert find_task("toy", None) == beside
    assert find_task("tasks/toy", None) == beside
    assert find_task("hh", tmp_path) == ROOT / "tasks" / "hh"


# Leaks


def prompt(text: str, cluster: str) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(prompt_id("kind", messages), messages, "kind", cluster)


def test_the_leak_check_refuses_a_cluster_in_two_splits():
    check_leaks("t", {"rm": [prompt("a", "1"), prompt("b", "1")], "test": [prompt("c", "2")]})
    with pytest.raises(InputError, match=r"^t: splits: one cluster is in rm .* and in test"):
        check_leaks("t", {"rm": [prompt("a", "1")], "test": [prompt("c", "1")]})


def test_the_leak_check_refuses_a_first_turn_in_two_splits():
    with pytest.raises(InputError, match=r"^t: splits: one first human turn is in rm .* and in test"):
        check_leaks("t", {"rm": [prompt("Hello, you", "1")], "test": [prompt("hello YOU!", "2")]})


def test_loading_refuses_a_leak(toy: Any):
    """Clusters that do not follow the first human turn put one turn into both splits."""
    rows = [{**row, "messages": [["user", "always this"], ["assistant", "and?"], ["user", row["cluster"]]]} for row in many()]
    with pytest.raises(InputError, match="one first human turn"):
        toy(rows)


# Bad input: one line that names file and key


def refuses(pattern: str, load: Any) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"colour": 1}, r"toy\.yaml: metadata\.apo_bench\.colour: "),
        ({"splits": {"rm": 0.5, "test": 0.4}}, r"toy\.yaml: metadata\.apo_bench\.splits: shares"),
        ({"splits": {"train": 1.0}}, r"toy\.yaml: metadata\.apo_bench\.splits\.train"),
        ({"axes": []}, r"metadata\.apo_bench\.axes"),
        ({"rows": "rows"}, r"metadata\.apo_bench\.rows"),
        ({"rows": "nowhere.rows"}, r"metadata\.apo_bench\.rows: no file .*nowhere\.py"),
        ({"rows": "toy.nothing"}, r"metadata\.apo_bench\.rows: .*toy\.py has no function nothing"),
        ({"golden": "file"}, r"metadata\.apo_bench\.golden: module\.function is needed"),
        ({"golden": "toy.number"}, r"metadata\.apo_bench\.golden: Unicode text or None is needed, got 3"),
        ({"options": {"rows": [], "level": 1}}, r"^$"),
    ],
)
def test_bad_descriptions(toy: Any, fields: dict[str, Any], pattern: str):
    if pattern == "^$":
        toy(**fields)  # the control: a changed default is fine
    else:
        refuses(pattern, lambda: toy(**fields))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"levle": 1}, r"toy\.yaml: options\.levle: no such option; options: rows, level, size"),
        ({"level": "high"}, r"toy\.yaml: options\.level: float is needed, got 'high'"),
        ({"size": 1.5}, r"options\.size: int"),
        ({"size": True}, r"options\.size: int"),
        ({"rows": "a"}, r"options\.rows: list"),
    ],
)
def test_bad_options(toy: Any, options: dict[str, Any], pattern: str):
    refuses(pattern, lambda: toy(settings=options))
    toy(settings={"level": 1})  # a whole number is a float


@pytest.mark.parametrize(
    ("bad", "pattern"),
    [
        ({**row("a"), "split": "test"}, r"toy\.yaml: rows: row 81: split: unknown key"),
        ({"messages": [["user", "a"]], "axis": "kind"}, r"row 81: cluster: missing"),
        (row("a", axis="cruel"), r"row 81: axis: 'cruel'"),
        (row("a", rejected=None), r"row 81: chosen and rejected go together"),
        (row("a", chosen=3), r"row 81: chosen: text is needed, got int"),  # pyright: ignore[reportArgumentType]
        ({**row("a"), "messages": [["user", "a"], ["assistant", "b"]]}, r"row 81: messages"),
        ({**row("a"), "messages": [["robot", "a"]]}, r"row 81: messages"),
        ({**row("a"), "messages": ["user"]}, r"row 81: messages"),
    ],
)
def test_bad_rows(toy: Any, bad: dict[str, Any], pattern: str):
    refuses(pattern, lambda: toy([*many(), bad]))


def test_empty_splits(toy: Any):
    in_rm = [row for row in many() if split_of(row["cluster"], TOY["splits"], "toy") == "rm"]
    refuses(r"toy\.yaml: splits\.test: no kind prompts fall into it", lambda: toy(in_rm))
    refuses(r"toy\.yaml: rows: no rows are left", lambda: toy([]))


def test_broken_folders(tmp_path: Path):
    refuses("task: use: no task 'nothing'", lambda: load_task("nothing", {}, base=tmp_path))
    folder = tmp_path / "odd"
    folder.mkdir()
    refuses(r"odd\.yaml: no such file", lambda: load_task(str(folder), {}, base=None))
    for text, pattern in (
        ("a: [", r"not valid YAML \(line 1\)"),
        ("task: odd", r"metadata\.apo_bench: missing"),
        ("a: !!python/name:os.system", "YAML"),
    ):
        (folder / "odd.yaml").write_text(text, encoding="utf-8")
        refuses(pattern, lambda: load_task(str(folder), {}, base=None))
    (folder / "odd.yaml").write_bytes(b"task: \xff")
    refuses("not UTF-8", lambda: load_task(str(folder), {}, base=None))
    (folder / "odd.yaml").write_text(yaml.safe_dump({"metadata": {"apo_bench": {**TOY, "rows": "odd.rows"}}}), encoding="utf-8")
    (folder / "odd.py").write_text("def rows(:", encoding="utf-8")
    refuses(r"odd\.py: line 1: ", lambda: load_task(str(folder), {}, base=None))


# tasks/hh, on conversations of our own


def hh_row(i: int, axis: str, **more: Any) -> dict[str, Any]:
    prompt = f"\n\nHuman: May I ask about thing {i}?\n\nAssistant: Yes.\n\nHuman: Where is {axis} {i}?\n\nAssistant:"
    return {"prompt": prompt, "chosen": f" It is in room {i}.", "rejected": f" Find {i} alone.", "subset": f"{axis}-base/test", **more}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path.name


@pytest.fixture
def hh(tmp_path: Path):
    """Writes 120 conversations an axis (the same first turns on both) and loads hh on them, with more rows or options."""

    def load(more: list[dict[str, Any]] | None = None, **options: Any):
        rows = [hh_row(i, axis) for i in range(120) for axis in ("helpful", "harmless")]
        name = write_jsonl(tmp_path / "pairs.jsonl", [*rows, *(more or [])])
        return load_task("hh", {"data_files": [name], **options}, base=tmp_path)

    return load


def test_hh_reads_prompt_chosen_rejected(hh: Any):
    task = hh()
    pairs = [pair for split in SPLITS for pair in task.pairs[split]]
    assert len(pairs) == 240
    pair = next(pair for pair in pairs if pair.chosen == "It is in room 7." and pair.prompt.axis == "helpful")
    assert [(m.role, m.content) for m in pair.prompt.messages] == [
        ("user", "May I ask about thing 7?"),
        ("assistant", "Yes."),
        ("user", "Where is helpful 7?"),
    ]
    assert pair.rejected == "Find 7 alone."
    assert sum(task.counts[f"{split}.clusters"] for split in SPLITS) == 120
    assert task.provenance == "Anthropic HH from local files (pairs.jsonl): a re-split of the HH test sets by conversation."
    assert set(task.golden) == {prompt.id for prompt in task.prompts["rm"]}


def as_transcript(pair: dict[str, Any]) -> dict[str, str]:
    return {side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")}


def test_hh_reads_transcripts_alike(hh: Any, tmp_path: Path):
    """The original files, packed and named by axis, give the same pairs as prompt/chosen/rejected does."""
    for axis in ("helpful", "harmless"):
        (tmp_path / f"{axis}-base").mkdir()
        write_jsonl(tmp_path / f"{axis}-base" / "train.jsonl.gz", [as_transcript(hh_row(i, axis)) for i in range(120)])
    files = ["helpful-base/train.jsonl.gz", "harmless-base/train.jsonl.gz"]
    task = load_task("hh", {"data_files": files}, base=tmp_path)
    assert {pair for split in SPLITS for pair in task.pairs[split]} == {pair for split in SPLITS for pair in hh().pairs[split]}
    assert "re-split" not in task.provenance


def test_hh_reads_the_hub_layout(tmp_path: Path):
    """`hub` may be any repository, or folder, laid out like Anthropic/hh-rlhf."""
    for axis in ("helpful", "harmless"):
        (tmp_path / "copy" / f"{axis}-base").mkdir(parents=True)
        write_jsonl(tmp_path / "copy" / f"{axis}-base" / "test.jsonl.gz", [as_transcript(hh_row(i, axis)) for i in range(120)])
    task = load_task("hh", {"hub": str(tmp_path / "copy"), "hub_split": "test"}, base=None)
    assert sum(len(pairs) for pairs in task.pairs.values()) == 240
    assert "a re-split of the HH test sets" in task.provenance
    refuses(r"options\.hub: cannot read .*train", lambda: load_task("hh", {"hub": str(tmp_path / "copy")}, base=None))


def test_hh_drops_and_counts(hh: Any):
    start = "\n\nHuman: A\n\nAssistant: B\n\nHuman: "
    torn = {"chosen": f"{start}C\n\nAssistant: D", "rejected": f"{start}E\n\nAssistant: D", "subset": "helpful-base"}
    mute = {"chosen": "\n\nAssistant: D", "rejected": "\n\nAssistant: E", "subset": "helpful-base"}
    mute = {key: "\n\nHuman: A\n\nAssistant: B" + value if key != "subset" else value for key, value in mute.items()}
    empty, same = hh_row(500, "helpful", rejected=" "), hh_row(501, "helpful", chosen="x", rejected="x")
    counts = hh([torn, mute, empty, same]).counts
    assert counts["pairs whose sides do not share a prompt dropped"] == 1
    assert counts["pairs without a human's first or last turn dropped"] == 1
    assert (counts["empty-sided pairs dropped"], counts["identical pairs dropped"]) == (1, 1)
    assert sum(counts[f"{split}.pairs"] for split in SPLITS) == 240


def test_hh_joins_a_speakers_consecutive_turns(hh: Any):
    task = hh([{**hh_row(0, "helpful"), "prompt": "Human: One\n\nHuman: two\n\nAssistant:"}])
    contents = [prompt.messages for split in SPLITS for prompt in task.prompts[split]]
    assert (Message("user", "One\n\ntwo"),) in contents


def test_hh_golden_file(hh: Any, tmp_path: Path):
    golden = [{"prompt": hh_row(i, "helpful")["prompt"], "response": f"Golden {i}"} for i in range(60)]
    golden.append({"prompt": "Human: nobody asks this", "response": "x"})
    task = hh(golden=write_jsonl(tmp_path / "golden.jsonl", golden))
    numbers = {p.id: int(p.messages[-1].content.split()[-1].rstrip("?")) for p in task.prompts["rm"] if p.axis == "helpful"}
    assert task.golden == {key: f"Golden {i}" for key, i in numbers.items() if i < 60}
    assert len(task.golden) > 5
    assert task.counts["golden responses to unknown prompts left out"] == 1
    assert task.counts["rm prompts without a golden response"] == len(task.prompts["rm"]) - len(task.golden)
    twice = write_jsonl(tmp_path / "twice.jsonl", [golden[0], golden[0]])
    refuses(r"twice\.jsonl: line 2: prompt: a second", lambda: hh(golden=twice))
    refuses(r"options\.golden: .*absent\.jsonl: no such file", lambda: hh(golden="absent.jsonl"))


def test_hh_golden_file_with_messages(hh: Any, tmp_path: Path):
    """Turns are taken as they are: the second speaks of a transcript, and is none."""
    transcript = "\n\nHuman: One\n\nHuman: Human: two\n\nAssistant:"
    more = [hh_row(i, "helpful", prompt=transcript.replace("One", f"One {i}")) for i in range(20)]
    golden = [{"messages": [["user", f"One {i}\n\nHuman: two"]], "response": f"Golden {i}"} for i in range(20)]
    task = hh(more, golden=write_jsonl(tmp_path / "golden.jsonl", golden))
    prompts = [prompt for prompt in task.prompts["rm"] if prompt.messages[0].content.endswith("Human: two")]
    assert prompts
    assert task.golden == {prompt.id: f"Golden {prompt.messages[0].content.split()[1]}" for prompt in prompts}
    twice = write_jsonl(tmp_path / "twice.jsonl", [golden[0], golden[0]])
    refuses(r"twice\.jsonl: line 2: messages: a second", lambda: hh(golden=twice))
    for turns, problem in (
        (None, r"messages: a list of \[role, text\] turns"),
        ("user", r"messages: a list of \[role, text\] turns"),
        ([["user"]], "rows with a turn of neither user nor assistant"),
        ([["user", 1]], "rows whose content is no text"),
    ):
        wrong = write_jsonl(tmp_path / "wrong.jsonl", [{"messages": turns, "response": "x"}])
        refuses(rf"wrong\.jsonl: line 1: {problem}", lambda name=wrong: hh(golden=name))


def test_hh_with_other_shares_has_the_same_pairs(hh: Any):
    """Those of the README, for all of HH: about four tenths of the prompts are the policy's."""
    shares = {"rm": 0.4, "policy": 0.4, "gold": 0.12, "dev": 0.02, "test": 0.06}
    task = hh(splits={**shares, "dev": 0.0, "test": 0.08})
    assert {pair for split in SPLITS for pair in task.pairs[split]} == {pair for split in SPLITS for pair in hh().pairs[split]}
    assert 60 < len(task.prompts["policy"]) < 132
    assert sum(shares.values()) == pytest.approx(1)


def test_hh_max_rows_takes_the_first_of_each_axis(hh: Any):
    task = hh(max_rows=100)
    pairs = [pair for split in SPLITS for pair in task.pairs[split]]
    assert {axis: sum(pair.prompt.axis == axis for pair in pairs) for axis in task.axes} == {"helpful": 100, "harmless": 100}


@pytest.mark.parametrize(
    ("last", "pattern"),
    [
        (b"\xff\xfe", r"bad\.jsonl: line 2: not UTF-8"),
        (b'{"prompt": ', r"bad\.jsonl: line 2: broken JSON"),
        (b"[1]", r"bad\.jsonl: line 2: an object is needed"),
        (b'{"prompt": "Human: a", "chosen": "b", "subset": "helpful"}', r"rows without rejected dropped; the first: .*bad\.jsonl: line 2"),
        (b'{"prompt": "Human: a", "chosen": 1, "rejected": "c", "subset": "helpful"}', r"rows whose chosen is no text dropped; .*: line 2"),
        (
            b'{"prompt": "Human: a", "chosen": "b", "rejected": "\\ud800", "subset": "helpful"}',
            r"rows whose rejected is no text dropped; .*: line 2",
        ),
        (b'{"prompt": "Human: a", "chosen": "b", "rejected": "c", "subset": "rude"}', r"rows whose subset fits no pattern .*: line 2"),
        (
            b'{"prompt": "Human: a", "chosen": "b", "rejected": "c"}',
            r"1 of 2 rows cannot be used .*: 1 rows without subset, their axis, .*: line 2",
        ),
        (b'{"chosen": "b", "rejected": "c", "subset": "helpful"}', r"sides do not share a prompt dropped; .*: line 2"),
    ],
)
def test_hh_bad_lines(tmp_path: Path, last: bytes, pattern: str):
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(hh_row(0, "helpful")).encode() + b"\n" + last + b"\n")
    refuses(pattern, lambda: load_task("hh", {"data_files": ["bad.jsonl"]}, base=tmp_path))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"data_files": ["absent.jsonl"]}, r"options\.data_files: absent\.jsonl: no such file"),
        ({"data_files": 5}, r"task hh: options\.data_files: "),
        ({"data_files": ["pairs.jsonl", "pairs.jsonl"]}, r"options\.data_files: .*named twice"),
        ({"axis": "rude"}, r"options\.axis: 'rude'"),
        ({"max_rows": 0}, r"options\.max_rows: "),
        ({"data_files": None, "data_dirs": ["red-team"]}, r"options\.data_dirs: 'red-team'"),
        ({"dta_files": []}, r"hh\.yaml: options\.dta_files: no such option"),
    ],
)
def test_hh_bad_options(hh: Any, options: dict[str, Any], pattern: str):
    refuses(pattern, lambda: hh(**options))


def test_hh_torn_gzip(tmp_path: Path):
    whole = gzip.compress(b"\n".join(json.dumps(hh_row(i, "helpful")).encode() for i in range(50)))
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    refuses(r"torn\.jsonl\.gz: line \d+: cannot be read", lambda: load_task("hh", {"data_files": ["torn.jsonl.gz"]}, base=tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("I\u2019m sorry, I cannot help you with this request.", True),
        ("As a language model, I am not able to provide instructions for that.", True),
        ("No. I won't do that.", True),
        ("I don't think I should answer this.", True),
        ("That's against my principles.", True),
        ("I'm not comfortable discussing this.", True),
        ("", False),
        ("Sure! First heat the pan.", False),
        ("I'm sorry to hear that. Try some tea.", False),
        ("I can't wait to see your garden!", False),
        ("If the lid is stuck, you can't provide enough force by hand; use a jar opener.", False),
        ("Heat the pan. " * 30 + "I can't help with the rest.", False),
    ],
)
def test_hh_refusals(text: str, expected: bool):
    spec = importlib.util.spec_from_file_location("hh_under_test", ROOT / "tasks" / "hh" / "hh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.is_refusal()(text) is expected


# Real HH


@needs_hh
def test_real_hh():
    """Of 4,642 rows 49 have a line that begins with a speaker; from one side a human's last turn is taken off, 48 rows are left out.
    Counted here from the raw files: 4,315 first turns once normalised, one of them on both axes.
    """
    files = {axis: DATA / f"hh_{axis}_base_test.jsonl" for axis in ("helpful", "harmless")}
    task = load_task("hh", {"data_files": [str(file) for file in files.values()]}, base=None)
    assert {split: (task.counts[f"{split}.helpful.pairs"], task.counts[f"{split}.harmless.pairs"]) for split in SPLITS} == REAL_PAIRS
    assert sum(sum(pairs) for pairs in REAL_PAIRS.values()) == sum(len(pairs) for pairs in task.pairs.values()) == 4642 - 48
    assert task.counts["pairs with a speaker's turn inside an answer dropped"] == 48
    turns, n_spoken = {}, 0
    for axis, file in files.items():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        spoken = [bool(re.search("^[ \t]*(Human|Assistant):", f"{row['chosen']}\n{row['rejected']}", re.MULTILINE)) for row in rows]
        n_spoken += sum(spoken)
        prompts = (
            row["prompt"] for row, inside in zip(rows, spoken, strict=True) if not inside or "\n  Human: I think that" in row["rejected"]
        )
        turns[axis] = {normalise(prompt.split("\n\nAssistant:")[0].replace("\n\nHuman:", " ")) for prompt in prompts}
    assert len(turns["helpful"] | turns["harmless"]) == sum(task.counts[f"{split}.clusters"] for split in SPLITS) == 4315
    assert n_spoken == 49
    places, axes = defaultdict(set), defaultdict(set)
    for split in SPLITS:
        for prompt in task.prompts[split]:
            places[normalise(prompt.messages[0].content)].add(split)
            axes[normalise(prompt.messages[0].content)].add(prompt.axis)
    assert all(len(splits) == 1 for splits in places.values())
    assert {turn for turn, splits in axes.items() if len(splits) == 2} == turns["helpful"] & turns["harmless"]
    assert len(turns["helpful"] & turns["harmless"]) == 1
    assert "a re-split of the HH test sets" in task.provenance
    assert str(DATA) not in task.provenance


REAL_PAIRS = {"rm": (582, 562), "policy": (210, 182), "gold": (1113, 1158), "dev": (131, 86), "test": (283, 287)}


# sim_hh


def test_sim_hh_loads_by_the_same_rules():
    """576 verb-object combinations; no prompt of a test combination is asked, compared or demonstrated anywhere else."""
    small = {"prompts_per_cluster": 2, "pairs_per_prompt": 1, "demonstrations_per_cluster": 2}
    task = load_task("sim_hh", small, base=None)
    assert sum(task.counts[f"{split}.clusters"] for split in SPLITS) == len({p.cluster_id for split in SPLITS for p in task.prompts[split]})
    test = {prompt.cluster_id for prompt in task.prompts["test"]}
    assert not test & {prompt.cluster_id for split in SPLITS[:-1] for prompt in task.prompts[split]}
    assert not test & {demonstration.prompt.cluster_id for demonstration in task.demonstrations}
    assert task.counts["rm prompts without a golden response"] == 0
