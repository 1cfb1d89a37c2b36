"""The task `preferences`: options, axes, golden responses, clusters, and what is left out, on files of our own."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apo_bench.data.preference_forms import FORMS
from apo_bench.data.preference_rows import options_of, read_preferences
from apo_bench.data.task import Task, load_task
from apo_bench.errors import InputError
from apo_bench.types import SPLITS, Pair

HH = Path(__file__).parents[3] / "shared" / "data" / "hh"
EVEN = {"rm": 0.25, "policy": 0.25, "gold": 0.25, "test": 0.25}
WORDS = "amber birch cedar dune ember fjord grove heath inlet jetty knoll ledge marsh nook oasis pond quarry ridge shoal tarn".split()


def question(i: int) -> str:
    """No two share five letters in a row but for their ending."""
    return f"{WORDS[i % 20]} {WORDS[(i // 20 + i) % 20]} {i * 7919 % 1000}?"


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": question(i), "chosen": f"good {i}", "rejected": f"bad {i}", "subset": f"{'a' if i % 2 else 'b'}/{i % 4}", **more}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest.fixture
def task(tmp_path: Path):
    """Loads the task on 200 pairs, with more rows or options."""

    def load(more: list[dict[str, Any]] | None = None, **options: Any) -> Task:
        name = write(tmp_path / "pairs.jsonl", [*map(row, range(200)), *(more or [])])
        return load_task("preferences", {"data_files": [name], **options}, base=tmp_path)

    return load


def pairs(task: Task) -> set[Pair]:
    return {pair for split in SPLITS for pair in task.pairs[split]}


def refuses(pattern: str, load: Any) -> None:
    with pytest.raises(InputError, match=pattern) as error:
        load()
    assert "\n" not in str(error.value)


def test_rows_become_pairs(task: Any) -> None:
    loaded = task()
    assert {(pair.prompt.messages[0].content, pair.chosen, pair.rejected) for pair in pairs(loaded)} == {
        (question(i), f"good {i}", f"bad {i}") for i in range(200)
    }
    assert loaded.axes == ("overall",)
    assert loaded.recognised == "pairs.jsonl: preference pairs: texts, the prompt in a column"
    assert loaded.golden == {pair.prompt.id: pair.chosen for pair in loaded.pairs["rm"]}
    assert loaded.provenance == "Preference data from local files (pairs.jsonl), split by conversation."


def test_names_are_mapped(tmp_path: Path, task: Any) -> None:
    rows = [{"q": question(i), "yes": f"good {i}", "no": f"bad {i}"} for i in range(200)]
    options = {"data_files": [write(tmp_path / "other.jsonl", rows)], "columns": {"prompt": "q", "chosen": "yes", "rejected": "no"}}
    assert load_task("preferences", options, base=tmp_path).fingerprint == task().fingerprint


@pytest.mark.parametrize(
    ("axis", "axes"),
    [
        ("helpful", ("helpful",)),
        ({"column": "subset", "values": {"a/*": "odd", "*": "even"}}, ("even", "odd")),
        ({"column": "subset"}, ("a/1", "a/3", "b/0", "b/2")),
    ],
)
def test_axes(task: Any, axis: Any, axes: tuple[str, ...]) -> None:
    assert task(axis=axis, splits=EVEN).axes == axes


def test_the_axis_of_rows_without_the_column_is_that_of_their_file_or_folder(tmp_path: Path) -> None:
    """A file's name counts before its folder's, and a row's own value before both."""
    (tmp_path / "harmless").mkdir()
    names = [
        write(tmp_path / "harmless" / name, [row(i) for i in places])
        for name, places in (("a.jsonl", range(2)), ("kind.jsonl", range(2, 5)))
    ]
    names.append(write(tmp_path / "b.jsonl", [row(5, kind="polite"), row(6)]))
    axis = {"column": "kind", "files": {"kind*": "helpful", "harm*": "harmless", "b*": "rest"}}
    loaded = read_preferences(
        options_of({"data_files": [f"harmless/{names[0]}", f"harmless/{names[1]}", names[2]], "axis": axis}), tmp_path
    )
    assert [item.axis for item in loaded.rows] == ["harmless", "harmless", "helpful", "helpful", "helpful", "polite", "rest"]
    refuses(
        r"b\.jsonl: options\.axis: no pattern of files fits",
        lambda: read_preferences(options_of({"data_files": names[2:], "axis": {"files": {}}}), tmp_path),
    )


def test_a_golden_response_with_a_speaker_inside_is_left_out(tmp_path: Path) -> None:
    name = write(tmp_path / "pairs.jsonl", [row(i) for i in range(3)])
    texts = ["Good.", "Good.\n\nHuman: And?\n\nAssistant: More.", "Good.\n\nHuman: Thanks."]
    golden = write(tmp_path / "golden.jsonl", [{"prompt": question(i), "response": text} for i, text in enumerate(texts)])
    loaded = read_preferences(options_of({"data_files": [name], "golden": {"file": golden}}), tmp_path)
    assert [item.golden for item in loaded.rows] == ["Good.", None, "Good."]
    assert loaded.dropped == {"golden responses with a speaker's turn inside left out": 1}


def test_a_column_named_axis_is_the_axis(task: Any, tmp_path: Path) -> None:
    name = write(tmp_path / "own.jsonl", [row(i, axis="x" if i % 2 else "y") for i in range(200)])
    assert load_task("preferences", {"data_files": [name]}, base=tmp_path).axes == ("x", "y")


def test_rows_without_an_axis_are_counted(task: Any) -> None:
    more = [row(300, subset=None), row(301, subset="all"), row(302, subset="<b>")]
    loaded = task(more, axis={"column": "subset"}, splits=EVEN)
    assert loaded.counts["rows without subset, their axis, dropped"] == 1
    assert loaded.counts["rows whose axis is no name (letters, digits, blanks and .:/+-) dropped"] == 2
    odd = task(axis={"column": "subset", "values": {"a*": "odd"}}, max_dropped=0.5)
    assert odd.counts["rows whose subset fits no pattern of options.axis dropped"] == 100


def test_golden_responses(task: Any, tmp_path: Path) -> None:
    assert task(golden="none").golden == {}
    name = write(tmp_path / "ideal.jsonl", [row(i, ideal=f" best {i}" if i < 150 else None) for i in range(200)])
    in_column = load_task("preferences", {"data_files": [name], "golden": {"column": "ideal"}}, base=tmp_path)
    chosen = [int(pair.chosen.removeprefix("good ")) for pair in in_column.pairs["rm"]]
    assert sorted(in_column.golden.values()) == sorted(f"best {i}" for i in chosen if i < 150)
    answers = [{"prompt": question(i), "response": f"file {i} "} for i in range(100)]
    answers += [{"messages": [["user", question(100)]], "response": "file 100"}, {"prompt": "Never?", "response": "x"}]
    from_file = task(golden={"file": write(tmp_path / "golden.jsonl", answers)})
    ids = {prompt.messages[0].content: prompt.id for prompt in from_file.prompts["rm"]}
    assert from_file.golden == {ids[question(i)]: f"file {i}" for i in range(101) if question(i) in ids}
    assert from_file.counts["golden responses to unknown prompts left out"] == 1
    write(tmp_path / "twice.jsonl", [answers[0], answers[0]])
    refuses(r"twice\.jsonl: line 2: prompt: a second golden response", lambda: task(golden={"file": "twice.jsonl"}))


def test_golden_responses_of_a_minimum_score(tmp_path: Path) -> None:
    name = write(tmp_path / "scored.jsonl", [row(i, score_chosen=i % 10, score_rejected=0) for i in range(200)])
    loaded = load_task("preferences", {"data_files": [name], "golden": {"min_score": 8}}, base=tmp_path)
    assert {int(text.split()[1]) % 10 for text in loaded.golden.values()} == {8, 9}


def test_scored_responses_of_several_rows(tmp_path: Path) -> None:
    """HelpSteer: two rows a prompt; the better one is chosen, whichever comes first; a tie keeps its prompt only if that is wanted."""
    rows = [
        {"prompt": question(i), "response": f"{j} of {i}", "helpfulness": (i + j) % 2, "coherence": 4} for j in range(2) for i in range(200)
    ]
    name = write(tmp_path / "steer.jsonl", rows)
    loaded = load_task("preferences", {"data_files": [name]}, base=tmp_path)
    assert {(pair.chosen, pair.rejected) for pair in pairs(loaded)} == {(f"{(i + 1) % 2} of {i}", f"{i % 2} of {i}") for i in range(200)}
    refuses(r"rows: no rows are left", lambda: load_task("preferences", {"data_files": [name], "score": "coherence"}, base=tmp_path))
    kept = read_preferences(options_of({"data_files": [name], "score": "coherence", "drop_ties": False}), tmp_path)
    assert (len(kept.rows), kept.dropped) == (200, {"ties left out": 200})
    assert all(row.chosen is None for row in kept.rows)


def test_what_is_left_out_is_counted_and_shown(task: Any) -> None:
    loaded = task([row(300, rejected="good 300"), row(301, chosen=" "), row(302, chosen=5), row(303, rejected=None)])
    assert len(pairs(loaded)) == 200
    assert loaded.recognised.endswith(
        "; 1 identical pairs dropped; 1 empty-sided pairs dropped; 1 rows whose chosen is no text dropped; 1 rows without rejected dropped"
    )


def test_a_file_of_which_too_much_falls_out_is_refused(task: Any) -> None:
    wrong = [row(300 + i, chosen=None) for i in range(201)]
    message = r"pairs\.jsonl: 201 of 401 rows cannot be used \(options\.max_dropped: 0\.5\), read as .*: 201 rows without chosen dropped"
    refuses(message, lambda: task(wrong))
    assert len(pairs(task(wrong, max_dropped=0.6))) == 200


def test_max_rows_are_the_first_of_each_axis(task: Any) -> None:
    loaded = task(max_rows=90, axis={"column": "subset", "values": {"a*": "odd", "b*": "even"}})
    assert {pair.chosen for pair in pairs(loaded)} == {f"good {i}" for i in range(180)}


def test_near_duplicates_are_of_one_cluster(tmp_path: Path) -> None:
    long = "please tell me in a few words what the people of the town of {} eat on the first day of the year"
    near = [row(i, prompt=long.format(f"{chr(97 + i)}ford")) for i in range(8)]
    name = write(tmp_path / "near.jsonl", [*map(row, range(8, 208)), *near])
    options = {"data_files": [name], "max_rows": 208}

    def clusters(threshold: float) -> set[str]:
        rows = read_preferences(options_of({**options, "near_duplicates": threshold}), tmp_path)
        return {cluster for row, cluster in zip(rows.rows, rows.clusters, strict=True) if "town" in row.messages[0][1]}

    assert len(clusters(0.7)) == 1
    assert len(clusters(1.0)) == 8
    loaded = load_task("preferences", options, base=tmp_path)
    assert len({split for split in SPLITS for prompt in loaded.prompts[split] if "town" in prompt.messages[0].content}) == 1


def test_other_shares_of_the_splits(task: Any) -> None:
    loaded = task(splits={"rm": 0.5, "policy": 0.0, "gold": 0.25, "dev": 0.0, "test": 0.25})
    assert not loaded.prompts["policy"]
    assert len(loaded.prompts["rm"]) > 80
    refuses(r"options\.splits: shares are 0 or more and sum to 1", lambda: task(splits={"rm": 0.5}))
    refuses(r"options\.splits: ", lambda: task(splits={"valid": 1.0}))


def test_several_files_each_in_its_own_form(task: Any, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = [
        {"instruction": f"more {question(i)}", "output_1": "good", "output_2": "bad", "preference": 2 if i % 2 else 1} for i in range(40)
    ]
    write(tmp_path / "more" / "pairs.jsonl", other)
    write(tmp_path / "pairs.jsonl", [*map(row, range(200))])
    loaded = load_task("preferences", {"data_files": ["pairs.jsonl", "more/pairs.jsonl"]}, base=tmp_path)
    assert len(pairs(loaded)) == 240
    assert loaded.recognised.endswith("more/pairs.jsonl: AlpacaEval's annotations")
    refuses(
        r"data_files: .*pairs\.jsonl is named twice",
        lambda: load_task("preferences", {"data_files": ["pairs.jsonl", "./pairs.jsonl"]}, base=tmp_path),
    )


@pytest.mark.slow
def test_a_data_set_laid_out_like_the_hub_s(tmp_path: Path, task: Any) -> None:
    (tmp_path / "copy").mkdir()
    write(tmp_path / "copy" / "train.jsonl", [*map(row, range(200))])
    loaded = load_task("preferences", {"hub": str(tmp_path / "copy")}, base=None)
    assert loaded.fingerprint == task().fingerprint
    assert loaded.provenance.startswith("Preference data from the hub (")
    refuses(r"options\.hub: cannot read", lambda: load_task("preferences", {"hub": str(tmp_path / "copy"), "split": "x"}, base=None))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"data_files": None}, r"options\.data_files: either files or the option hub"),
        ({"hub": "a/b"}, r"options\.data_files: either files or the option hub"),
        ({"data_files": []}, r"options\.data_files: empty, at least 1 needed"),
        ({"data_files": ["absent.jsonl"]}, r"options\.data_files: absent\.jsonl: no such file"),
        ({"axis": "subset"}, r"options\.axis: subset is a column of pairs\.jsonl; write \{column: subset\}"),
        ({"axis": {"column": "topic"}}, r"options\.axis: no column 'topic'; columns: prompt, chosen"),
        ({"golden": {"column": "ideal"}}, r"options\.golden: no column 'ideal'"),
        ({"golden": "best"}, r"options\.golden: "),
        ({"columns": {"prompt": "question"}}, r"options\.columns: no column 'question'"),
        ({"max_rows": 0}, r"options\.max_rows: 1 or more is needed \(got 0\)"),
        ({"against": "next"}, r"options\.against: 'worst' or 'drawn' is needed \(got 'next'\)"),
        ({"near_duplicates": 0.0}, r"options\.near_duplicates: "),
        ({"rows": 3}, r"options\.rows: no such option"),
    ],
)
def test_bad_options(task: Any, options: dict[str, Any], pattern: str) -> None:
    refuses(pattern, lambda: task(**options))


def test_columns_of_no_form_are_named(tmp_path: Path) -> None:
    name = write(tmp_path / "odd.jsonl", [{"prompt": "a", "answer": "b"}])
    options = {"data_files": [name]}
    pattern = r"odd\.jsonl: columns prompt, answer are no known form \(chosen rejected \| "
    refuses(pattern, lambda: load_task("preferences", options, base=tmp_path))
    write(tmp_path / "odd.jsonl", [])
    refuses(r"odd\.jsonl: no rows", lambda: load_task("preferences", {"data_files": [name]}, base=tmp_path))


def test_two_labels_a_pair_are_two_axes(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": question(i), "response_0": f"kind {i}", "response_1": f"rude {i}",
            "better_response_id": i % 2, "safer_response_id": 0,
        }
        for i in range(200)
    ]  # fmt: skip
    name = write(tmp_path / "pku.jsonl", rows)
    loaded = load_task("preferences", {"data_files": [name]}, base=tmp_path)
    assert loaded.axes == ("harmless", "helpful")
    assert {pair.chosen.split()[0] for pair in pairs(loaded) if pair.prompt.axis == "harmless"} == {"kind"}
    assert len(pairs(loaded)) == 400
    refuses(
        r"options\.axis: pku\.jsonl has two labels", lambda: load_task("preferences", {"data_files": [name], "axis": "x"}, base=tmp_path)
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | st.just("\n\nHuman: a\n\nAssistant: b"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("role content from value response annotations overall_score text type".split()), inner)
        | st.just({"role": "user", "content": "a"})
        | st.just({"role": "assistant", "content": "b"})
    ),
    max_leaves=8,
)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_are_read_or_dropped(form: Any, data: st.DataObject, tmp_path: Path) -> None:
    keys = [*sorted(form.columns), "prompt", "axis", "score_chosen", "helpfulness", "annotator2"]
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(keys, VALUES)), min_size=1, max_size=4))
    name = write(tmp_path / "any.jsonl", rows)
    preferences = read_preferences(options_of({"data_files": [name], "max_dropped": 1.0}), tmp_path)
    assert all(row.messages[0][0] == row.messages[-1][0] == "user" for row in preferences.rows)


@pytest.mark.slow
@pytest.mark.skipif(not HH.is_dir(), reason="the HH files are not beside the project (../shared/data/hh)")
def test_hh_is_read_as_its_own_task_reads_it() -> None:
    files = {"data_files": [str(HH / f"hh_{axis}_base_test.jsonl") for axis in ("helpful", "harmless")]}
    axis = {"column": "subset", "values": {"helpful*": "helpful", "harmless*": "harmless"}}
    here, there = load_task("preferences", {**files, "axis": axis}, base=None), load_task("hh", files, base=None)
    assert {(pair.id, pair.prompt.id) for pair in pairs(here)} == {(pair.id, pair.prompt.id) for pair in pairs(there)}
    assert here.counts["pairs with a speaker's turn inside an answer dropped"] == 48
