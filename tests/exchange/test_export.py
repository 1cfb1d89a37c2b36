"""What goes out is what the tools it is meant for read, and what annotators see says nothing of who wrote it."""

import csv
import json
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from exchange_run import PROMPTS, answered, compared
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.data.preference_rows import options_of, read_preferences
from apo_bench.errors import InputError
from apo_bench.exchange.export import SHEET, Exported, export_alpaca_eval, export_annotate, export_pairs, key_path, transcript
from apo_bench.formatting import inert
from apo_bench.types import Message, Prompt, Role, prompt_id

TEXTS = {
    ("apo_rjs", 0, 0): ["start"] * 3, ("rjs", 0, 0): ["start"] * 3, ("golden_refresh", 0, 0): ["start"] * 3,
    ("apo_rjs", 0, 1): ["wash it", "dry it", "no"], ("rjs", 0, 1): ["wash it", "boil", "yes"], ("golden_refresh", 0, 1): ["a", "b", "c"],
    ("apo_rjs", 0, 2): ["later", "still", "end"],
}  # fmt: skip


def judgment(place: int, judge: str, order: str, value: float, round_: str = "2/1", a: str = "apo_rjs", b: str = "rjs") -> tuple[Any, ...]:
    prompt = PROMPTS[place]
    return (a, b, 0, 0, round_, prompt.id, prompt.cluster_id, prompt.axis, judge, order, None, value, "", 1.0, 1.0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# AlpacaEval


def test_model_outputs_of_each_arm_and_seed_at_its_last_round(tmp_path: Path) -> None:
    """apo_rjs ended after round 2, the others after round 1; three prompts each."""
    exported = export_alpaca_eval(answered(tmp_path / "run", TEXTS), tmp_path / "out")
    assert (exported.n, exported.left_out) == (9, {"same instruction": 0})
    assert {path.relative_to(tmp_path / "out").as_posix() for path in exported.paths} == {
        f"{arm}/seed0/model_outputs.json" for arm in ("apo_rjs", "rjs", "golden_refresh")
    }
    rows = json.loads((tmp_path / "out" / "apo_rjs" / "seed0" / "model_outputs.json").read_text())
    assert [row["output"] for row in rows] == ["later", "still", "end"]
    assert [row["instruction"] for row in rows] == [prompt.messages[0].content for prompt in PROMPTS[:3]]
    assert {row["generator"] for row in rows} == {"apo_rjs-seed0-round2"}
    assert [row["dataset"] for row in rows] == [prompt.axis for prompt in PROMPTS[:3]]


def test_model_outputs_at_a_named_round(tmp_path: Path) -> None:
    folder = answered(tmp_path / "run", TEXTS)
    export_alpaca_eval(folder, tmp_path / "out", at=0)
    rows = json.loads((tmp_path / "out" / "apo_rjs" / "seed0" / "model_outputs.json").read_text())
    assert [row["output"] for row in rows] == ["start"] * 3
    with pytest.raises(InputError, match="no responses of round 7"):
        export_alpaca_eval(folder, tmp_path / "none", at=7)
    assert not (tmp_path / "none").exists()


def test_alpaca_eval_joins_two_files_row_by_row(tmp_path: Path) -> None:
    """As its `annotate_head2head` does: read_json, then an inner join by instruction, which must neither lose nor multiply rows."""
    export_alpaca_eval(answered(tmp_path / "run", TEXTS), tmp_path)
    ours, theirs = (pd.read_json(tmp_path / arm / "seed0" / "model_outputs.json") for arm in ("apo_rjs", "rjs"))
    joined = ours.merge(theirs, on=["instruction"], suffixes=("_1", "_2"))
    assert list(joined["output_1"]) == ["later", "still", "end"]
    assert list(joined["output_2"]) == ["wash it", "boil", "yes"]


def test_a_transcript_says_who_speaks_only_where_several_do() -> None:
    single_turn = Prompt("x", (Message("user", "hi"),), "helpful", "c")
    assert transcript(single_turn) == "hi"
    three = Prompt("x", (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "bye")), "helpful", "c")
    assert transcript(three) == "User: hi\n\nAssistant: yes?\n\nUser: bye"


def test_prompts_that_the_task_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = answered(tmp_path / "run", TEXTS)
    path = folder / "tables" / "responses.parquet"
    rows = pd.read_parquet(path)
    rows.loc[0, "prompt_id"] = "gone"
    rows.to_parquet(path)
    with pytest.raises(InputError, match=r"responses.parquet: prompt_id: gone is no test prompt of task sim_hh"):
        export_alpaca_eval(folder, tmp_path / "out")


# Pairs

VERDICTS = [
    *(judgment(0, "both", order, 1.0) for order in ("ab", "ba")),  # apo_rjs in both orders
    judgment(1, "both", "ab", 0.0), judgment(1, "both", "ba", 0.5),  # 1/4: rjs, and not wholly
    judgment(2, "both", "ab", 1.0), judgment(2, "both", "ba", float("nan")),  # an order without a verdict: missing
    *(judgment(2, "both", order, value, "1", "golden_refresh") for order, value in (("ab", 1.0), ("ba", 0.0))),  # orders disagree: a tie
    judgment(0, "human", "ba", 0.0), judgment(1, "human", "ab", 0.5),  # one order a comparison
]  # fmt: skip


def test_pairs_are_the_decided_comparisons(tmp_path: Path) -> None:
    """Decided: prompts 0 and 1 by `both`, prompt 0 by `human`. Ties: one each. Missing: one."""
    exported = export_pairs(answered(tmp_path / "run", TEXTS, VERDICTS), tmp_path / "out")
    assert exported == Exported((tmp_path / "out" / "both.jsonl", tmp_path / "out" / "human.jsonl"), 3, {"missing": 1, "ties": 2})
    by_prompt = {row["prompt_id"]: row for row in lines(exported.paths[0])}
    first, second = (by_prompt[PROMPTS[place].id] for place in (0, 1))
    assert first["prompt"] == [{"role": "user", "content": PROMPTS[0].messages[0].content}]
    assert (first["chosen"], first["rejected"]) == (
        [{"role": "assistant", "content": "later"}],
        [{"role": "assistant", "content": "wash it"}],
    )
    assert (first["chosen_arm"], first["rejected_arm"], first["value"], first["judge"]) == ("apo_rjs", "rjs", 1.0, "both")
    assert (second["chosen"][0]["content"], second["rejected"][0]["content"], second["value"]) == ("boil", "still", 0.75)
    assert [row["chosen"][0]["content"] for row in lines(exported.paths[1])] == ["wash it"]


def test_the_task_preferences_reads_the_pairs_back(tmp_path: Path) -> None:
    """Prompts with the ids that they had, sides as they were, axes from the column; and the same once more from TRL's other forms."""
    (path, _) = export_pairs(answered(tmp_path / "run", TEXTS, VERDICTS), tmp_path / "out").paths
    rows = lines(path)
    expected = [(row["prompt_id"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    implicit = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} | {"axis": row["axis"]} for row in rows]
    (tmp_path / "implicit.json").write_text(json.dumps(implicit))
    for name, where in ((path, "a column"), (tmp_path / "implicit.json", "both sides")):
        read = read_preferences(options_of({"data_files": str(name)}), None)
        assert list(read.forms.values()) == [f"preference pairs: conversations, the prompt in {where}"]
        ids = [prompt_id(row.axis, tuple(Message(cast(Role, role), text) for role, text in row.messages)) for row in read.rows]
        assert [(id_, row.chosen, row.rejected) for id_, row in zip(ids, read.rows, strict=True)] == expected
        assert not read.dropped


def test_pairs_at_rounds_that_differ_from_seed_to_seed(tmp_path: Path) -> None:
    """apo_rjs is best on dev after round 1 with seed 0 and after round 2 with seed 1, rjs after round 1: the label is "1+2/1"."""
    texts = {(arm, seed, round_): [f"{arm} {seed} {round_}"] for arm in ("apo_rjs", "rjs") for seed in (0, 1) for round_ in (0, 1, 2)}
    dev = {("apo_rjs", 0): [0, 5, 4], ("apo_rjs", 1): [0, 1, 2], ("rjs", 0): [0, 9, 1], ("rjs", 1): [0, 9, 1]}
    first = judgment(0, "human", "ab", 1.0, "1+2/1")
    folder = answered(tmp_path / "run", texts, [first, (*first[:2], 1, 1, *first[4:])], dev)
    pairs = lines(export_pairs(folder, tmp_path / "out").paths[0])
    assert [row["chosen"][0]["content"] for row in pairs] == ["apo_rjs 0 1", "apo_rjs 1 2"]
    assert [row["rejected"][0]["content"] for row in pairs] == ["rjs 0 1", "rjs 1 1"]
    outputs = export_alpaca_eval(folder, tmp_path / "alpaca").paths
    assert {json.loads(path.read_text())[0]["generator"] for path in outputs} == {
        "apo_rjs-seed0-round1", "apo_rjs-seed1-round2", "rjs-seed0-round1", "rjs-seed1-round1",
    }  # fmt: skip
    export_alpaca_eval(folder, tmp_path / "alpaca", at="final")
    assert json.loads(outputs[0].read_text())[0]["generator"] == "apo_rjs-seed0-round2"


def test_pairs_of_responses_that_are_gone(tmp_path: Path) -> None:
    folder = answered(tmp_path / "run", TEXTS, [judgment(0, "human", "ab", 1.0, "9")])
    with pytest.raises(InputError, match=r"round 9: apo_rjs, seed 0, has no response to prompt"):
        export_pairs(folder, tmp_path / "out")


def test_pairs_of_one_judge(tmp_path: Path) -> None:
    folder = answered(tmp_path / "run", TEXTS, VERDICTS)
    assert export_pairs(folder, tmp_path / "out", judge="human") == Exported(
        (tmp_path / "out" / "human.jsonl",), 1, {"missing": 0, "ties": 1}
    )
    with pytest.raises(InputError, match="no verdicts of judge 'other'; judges: both, human"):
        export_pairs(folder, tmp_path / "out", judge="other")


def test_a_run_without_verdicts_has_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no comparison is decided: 0 comparisons, 0 without a verdict"):
        export_pairs(answered(tmp_path / "run", TEXTS), tmp_path / "out")


@pytest.mark.slow
def test_trl_reads_the_pairs_and_trains_on_them(tmp_path: Path, tiny_policy: Any) -> None:
    """One step of TRL's DPOTrainer on the file, as datasets loads it."""
    trl = pytest.importorskip("trl")
    import datasets
    import torch
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    from apo_bench.models.policy import load_policy

    path = export_pairs(answered(tmp_path / "run", TEXTS, VERDICTS), tmp_path / "out", judge="both").paths[0]
    dataset = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert all(is_conversational(row) for row in dataset)
    model, tokenizer = load_policy(tiny_policy[0])
    chosen = [maybe_apply_chat_template(row, tokenizer)["chosen"] for row in dataset]
    assert sorted(word for text in chosen for word in ("later", "boil") if word in text) == ["boil", "later"]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "dpo"), use_cpu=True, report_to=[], per_device_train_batch_size=2, max_steps=1, max_length=64, bf16=False,
        learning_rate=1e-2, save_strategy="no",
    )  # fmt: skip
    before = [weight.detach().clone() for weight in model.parameters()]
    trl.DPOTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer).train()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


# The sheet


def read(sheet: Path) -> list[dict[str, str]]:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


PAIRS = [
    compared(place, f"apo {place} of {seed}", f"plain {place} of {seed}", seed, arms)
    for arms in (("apo_rjs", "rjs"), ("apo_rjs", "golden_refresh"))
    for seed in (0, 1)
    for place in range(10)
]


def test_the_sheet_is_blind_and_the_key_opens_it(tmp_path: Path) -> None:
    exported = export_annotate(PAIRS, tmp_path / "sheet.csv")
    assert exported == Exported((tmp_path / "sheet.csv", tmp_path / "sheet.key.json"), 40, {"identical responses": 0, "not drawn": 0})
    rows, key = read(tmp_path / "sheet.csv"), json.loads(key_path(tmp_path / "sheet.csv").read_text())["shown"]
    text = (tmp_path / "sheet.csv").read_text()
    assert not any(name in text for name in ("apo_rjs", "rjs", "golden", *(prompt.id for prompt in PROMPTS[:10])))
    assert tuple(rows[0]) == SHEET
    assert {row["preference"] for row in rows} == {""}
    by_content = {(pair.arm_b, pair.seed_a, pair.prompt.id): pair for pair in PAIRS}
    assert len({row["id"] for row in rows}) == len(key) == 40
    for row in rows:
        shown = key[row["id"]]
        pair = by_content.pop((shown["arm_b"], shown["seed_a"], shown["prompt_id"]))
        assert row["prompt"] == pair.prompt.messages[0].content
        assert (row["response_1"], row["response_2"]) == ((pair.a, pair.b) if shown["order"] == "ab" else (pair.b, pair.a))
        assert (shown["length_a"], shown["length_b"], shown["round"], shown["axis"]) == (4.0, 4.0, "1", pair.prompt.axis)


def test_rows_and_sides_are_shuffled_by_the_seed_alone(tmp_path: Path) -> None:
    """Of 40 fair sides fewer than 8 or more than 32 on one side has probability below 2e-4; here it is fixed by the seed."""
    sheets = {}
    for name, seed, pairs in (("a", 0, PAIRS), ("b", 0, PAIRS[::-1]), ("c", 1, PAIRS)):
        export_annotate(pairs, tmp_path / f"{name}.csv", seed=seed)
        sheets[name] = read(tmp_path / f"{name}.csv")
    assert sheets["a"] == sheets["b"]
    assert [row["response_1"] for row in sheets["a"]] != [row["response_1"] for row in sheets["c"]]
    assert {row["id"] for row in sheets["a"]}.isdisjoint(row["id"] for row in sheets["c"])
    assert 8 <= sum(row["response_1"].startswith("apo") for row in sheets["a"]) <= 32
    prompts = [row["prompt"] for row in sheets["a"][::4]]
    assert [row["prompt"] for row in sheets["a"]] == [prompt for prompt in prompts for _ in range(4)]  # 2 pairs x 2 seeds together
    assert prompts != [pair.prompt.messages[0].content for pair in PAIRS[:10]]


def test_at_most_n_rows_a_pair_on_prompts_with_all_their_seeds(tmp_path: Path) -> None:
    """7 rows allow 3 prompts x 2 seeds, for each of two pairs, and the pairs share their prompts."""
    exported = export_annotate(PAIRS, tmp_path / "sheet.csv", per_pair=7)
    assert (exported.n, exported.left_out["not drawn"]) == (12, 28)
    shown = json.loads(key_path(tmp_path / "sheet.csv").read_text())["shown"].values()
    assert len({entry["prompt_id"] for entry in shown}) == 3
    assert len({(entry["arm_b"], entry["seed_a"], entry["prompt_id"]) for entry in shown}) == 12
    with pytest.raises(InputError, match="nothing to annotate: no prompt, in all its seeds, fits into 1 rows"):
        export_annotate(PAIRS, tmp_path / "other.csv", per_pair=1)


def test_identical_responses_are_left_out_and_counted(tmp_path: Path) -> None:
    exported = export_annotate([compared(0, "same", "same"), compared(1, "same", "other")], tmp_path / "sheet.csv")
    assert (exported.n, exported.left_out["identical responses"]) == (1, 1)
    assert [entry["prompt_id"] for entry in json.loads(key_path(tmp_path / "sheet.csv").read_text())["identical"]] == [PROMPTS[0].id]
    with pytest.raises(InputError, match="no two responses differ"):
        export_annotate([compared(0, "same", "same")], tmp_path / "none.csv")


def test_a_sheet_that_may_be_filled_in_is_not_overwritten(tmp_path: Path) -> None:
    export_annotate(PAIRS, tmp_path / "sheet.csv")
    with pytest.raises(InputError, match=r"sheet.csv: exists"):
        export_annotate(PAIRS, tmp_path / "sheet.csv")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", " =1", "\n\n+1", "'=1", "'", "\uff1d1", "\tplain"])
def test_formulas_are_made_inert(text: str) -> None:
    assert inert(text) == f"'{text}"


@given(st.text())
def test_what_is_made_inert_can_be_undone(text: str) -> None:
    assert inert(text).removeprefix("'") == text
    assert not inert(text).lstrip().startswith(("=", "+", "-", "@"))
