"""A whole run with prompts that are only asked: tables, tests, judges, refusals, page and plan, and that all else stays as without them."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import write_experiment
from tiny_world import smallest_tree, tiny_task

from apo_bench.analysis.prompt_sets import set_contrasts
from apo_bench.analysis.results import read_run
from apo_bench.config.load import load_experiment
from apo_bench.data.prompt_sets import second_id
from apo_bench.judging.refusals import declines
from apo_bench.plan.make_plan import plan
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.records import record_key
from apo_bench.run.validate import check_experiment
from apo_bench.stats import contrast_of_all_rows

pytestmark = pytest.mark.slow

JUDGE = '''
from dataclasses import dataclass

from apo_bench.judging.judge_protocol import Judge, Verdict


@dataclass(frozen=True)
class Longer:
    """Prefers the response with more letters."""

    def open(self, context):
        return OpenLonger()


class OpenLonger(Judge):
    identity = {"kind": "longer"}

    def verdicts(self, questions, attempt=0, spent_usd=0.0):
        for question in questions:
            more = len(question.first) - len(question.second)
            yield question, Verdict("first" if more > 0 else "second" if more < 0 else "tie")
'''
TURNS = [f"how do i {verb} the {noun}" for verb in ("boil", "fold", "rinse") for noun in ("lever", "edge")]


def tree(folder: Path) -> dict[str, Any]:
    """Two sets: questions of two turns in every round, and labelled prompts, one of which is a training prompt, with refusals."""
    (folder / "longer.py").write_text(JUDGE)
    turns = [json.dumps({"question_id": place, "category": "c", "turns": [text, "and then"]}) for place, text in enumerate(TURNS)]
    (folder / "question.jsonl").write_text("\n".join(turns))
    leaked = tiny_task().prompts["policy"][0].messages[0].content
    prompts = [*(("safe", text) for text in (TURNS[0], TURNS[3], leaked)), *(("unsafe", text) for text in (TURNS[1], TURNS[5]))]
    lines = ["id,prompt,type,label,focus,note", *(f"{place},{text},t,{label},f,n" for place, (label, text) in enumerate(prompts))]
    (folder / "xs.csv").write_text("\n".join(lines) + "\n")
    experiment = smallest_tree()
    experiment["judges"] = {"longer": {"use": "longer.py@Longer"}}
    experiment["judging"] = {"audit_pairs": 4, "attacks": False}
    experiment["evaluation"]["prompt_sets"] = [
        {"name": "mt", "data_files": "question.jsonl", "round": "all", "scorers": ["gold", "judge"]},
        {"name": "xs", "data_files": ["xs.csv"], "scorers": ["refusal", "gold"], "axis": "harmless"},
    ]
    return experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    return write_experiment(folder, tree(folder))


@pytest.fixture(scope="module")
def run_folder(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "with_sets"
    result = pipeline.run(resolve_experiment(experiment, None, folder), workers=1)
    assert result.failures == ()
    return folder


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / f"{name}.parquet")


def test_each_set_has_its_rows(run_folder: Path) -> None:
    """2 arms x 2 seeds; mt: 6 questions of 2 turns in rounds 0 and 1; xs: 5 prompts, each by gold, gold.0, length and refusal."""
    scores = table(run_folder, "set_scores")
    counts = scores.groupby(["axis", "scorer"]).size().to_dict()
    expected = {(f"mt.{turn}", scorer): 2 * 2 * 2 * 6 for turn in ("first", "second") for scorer in ("linear", "linear.0", "length")}
    expected |= {
        (f"xs.{label}", scorer): 2 * 2 * 2 * n
        for label, n in (("safe", 3), ("unsafe", 2))
        for scorer in ("linear", "linear.0", "length", "refusal")
    }
    assert counts == expected
    assert not set(scores["axis"]) & set(table(run_folder, "scores")["axis"])
    responses = table(run_folder, "set_responses").set_index(["arm", "seed", "round", "prompt_id"])["text"].to_dict()
    refused = scores[scores["scorer"] == "refusal"]
    assert all(declines(responses[row.arm, row.seed, row.round, row.prompt_id]) == row.value for row in refused.itertuples())


def test_the_tests_are_those_of_contrasts(run_folder: Path) -> None:
    """Recomputed from the tables with `contrast_of_all_rows`, and Holm's adjustment by its definition over the set."""
    run = read_run(run_folder)
    rows = set_contrasts(run)
    assert sorted(set(rows["prompt_set"])) == ["mt", "xs"]
    own = run.tables["set_scores"]
    for row in rows[~rows["scorer"].str.startswith("judge/")].to_dict("records"):
        chosen = own[(own["axis"] == row["axis"]) & (own["scorer"] == row["scorer"]) & (own["round"] == 1)]
        expected = contrast_of_all_rows(chosen, row["arm_a"], row["arm_b"])
        assert row["difference"] == pytest.approx(expected.difference, nan_ok=True)
        assert row["n_clusters"] == expected.n_clusters
    for _, group in rows.groupby("prompt_set"):
        known = group.dropna(subset=["p_value"]).sort_values("p_value", kind="stable")
        steps = [min(1.0, p * (len(known) - place)) for place, p in enumerate(known["p_value"])]
        assert known["p_adjusted"].tolist() == pytest.approx([max(steps[: place + 1]) for place in range(len(steps))])


def test_judges_compare_the_answers_and_second_turns_as_conversations(run_folder: Path) -> None:
    """2 seeds x 12 answers x 2 orders; of a second turn the longer conversation wins, recomputed here from both turns' answers."""
    verdicts = table(run_folder, "set_judgments")
    assert sorted(set(verdicts["axis"])) == ["mt.first", "mt.second"]
    assert len(verdicts) == 2 * 12 * 2
    assert not set(table(run_folder, "judgments")["axis"]) & {"mt.first", "mt.second"}
    rows = table(run_folder, "set_responses").to_dict("records")
    answers = {(row["arm"], row["seed"], row["round"], row["prompt_id"]): row["text"] for row in rows}
    first_of = {second_id(key[3]): key[3] for key in answers}
    for row in verdicts[verdicts["order"] == "ab"].to_dict("records"):
        length = []
        for arm, seed in ((row["arm_a"], row["seed_a"]), (row["arm_b"], row["seed_b"])):
            before = answers[arm, seed, 1, first_of[row["prompt_id"]]] if row["axis"] == "mt.second" else ""
            length.append(len(before) + len(answers[arm, seed, 1, row["prompt_id"]]))
        assert row["value"] == (length[0] > length[1]) + 0.5 * (length[0] == length[1])
    rates = set_contrasts(read_run(run_folder))
    assert set(rates.loc[rates["scorer"] == "judge/longer", "axis"]) == {"mt.first", "mt.second"}


def test_the_report_says_how_well_refusals_are_told_and_which_prompts_leak(run_folder: Path) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    assert manifest["prompt_sets"]["xs"]["leaks"] == ["xs.csv: line 4"]
    text = (run_folder / "report" / "report.md").read_text()
    quality = manifest["prompt_sets"]["xs"]["refusal"]
    assert quality["n_refusals"] >= 40
    assert quality["n_answers"] >= 40
    assert f"recall {quality['recall']:.3f}" in text
    assert f"false positives {quality['false_positives']:.3f}" in text
    assert "1 of them leak" in text
    assert "xs.safe" in text
    assert "xs.unsafe" in text
    assert (run_folder / "report" / "tables" / "prompt_set_contrasts.csv").exists()


def test_the_sample_browser_has_the_sets(run_folder: Path) -> None:
    page = (run_folder / "report" / "report.html").read_text()
    block = re.search(r'<script[^>]*type="[^"]*"[^>]*>\s*([A-Za-z0-9+/=]{200,})\s*</script>', page)
    assert block is not None
    data = json.loads(gzip.decompress(base64.b64decode(block[1])))
    assert {"mt.first", "mt.second", "xs.safe", "xs.unsafe"} <= set(data["axes"])
    second = data["axes"].index("mt.second")
    prompt = data["prompts"]["axis"].index(second)
    assert [role for role, _ in data["prompts"]["turns"][prompt]] == ["user", "assistant", "user"]
    assert prompt in data["responses"]["prompt"]
    assert prompt in data["verdicts"]["prompt"]


def test_check_and_plan_count_them(experiment: Path) -> None:
    """Each of 2 arm-seeds x 2 arms answers 12 + 5 prompts after its round, and each seed's initial policy does once."""
    notes = [note for note in check_experiment(experiment) if "prompt_sets" in note]
    assert [note.partition(": ")[0] for note in notes] == [f"evaluation.prompt_sets.{place}" for place in (0, 1, 1)]
    assert "6 mt.first, 6 mt.second" in notes[0]
    assert "1 of its prompts stand" in notes[2]
    resolved = resolve_experiment(experiment)
    with_sets = plan(resolved.experiment, resolved.task, base=resolved.base)
    bare = resolved.experiment.model_copy(update={"evaluation": resolved.experiment.evaluation.model_copy(update={"prompt_sets": ()})})
    without = plan(bare, resolved.task, base=resolved.base)
    used = [each.used()["_bench"]["sampled_responses"] for each in (with_sets, without)]
    assert used[0] - used[1] == 2 * 17 * (1 + 1 + 2)  # seeds x prompts x (initial policy, rjs, best of 2)
    assert any(note.startswith("Prompt set mt: 12 answers") for note in with_sets.notes)


def test_a_set_changes_no_other_table_and_no_other_key(experiment: Path, run_folder: Path, tmp_path: Path) -> None:
    """The same experiment without sets: equal rows wherever both have a table, and the evaluations of rounds keep their keys."""
    folder = tmp_path / "without"
    bare = write_experiment(tmp_path, {**tree(tmp_path), "evaluation": without_sets(tree(tmp_path)["evaluation"])})
    assert pipeline.run(resolve_experiment(bare, None, folder), workers=1).failures == ()
    for path in sorted((folder / "tables").glob("*.parquet")):
        if path.stem not in ("timings", "ledger", "plan"):
            pd.testing.assert_frame_equal(pd.read_parquet(path), table(run_folder, path.stem))
    assert "prompt_sets" not in (folder / "experiment.yaml").read_text()
    assert "prompt_sets" not in json.loads((folder / "manifest.json").read_text())
    keys = {path.name for path in (folder / "store" / "evaluations").iterdir()}
    assert keys <= {path.name for path in (run_folder / "store" / "evaluations").iterdir()}


def without_sets(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in evaluation.items() if name != "prompt_sets"}


def test_a_records_key_holds_the_content_of_a_set(experiment: Path, tmp_path: Path) -> None:
    """A changed line gives another key, another place of the files does not, nor does what tells refusals."""

    def key(**changes: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        settings = tree(folder)
        settings["evaluation"]["prompt_sets"][1] |= changes
        if changes.get("data_files"):
            (folder / changes["data_files"]).write_text((folder / "xs.csv").read_text().replace("0,", "7,", 1))
        resolved = resolve_experiment(write_experiment(folder, settings), None, folder / "run")
        return record_key(resolved.job("rjs", 0), resolved)

    first = key()
    assert key() == first
    assert key(scorers=["gold"]) == first
    assert len({first, key(data_files="other.csv"), key(axis="helpful"), key(prompts=3), key(scorers=["refusal"])}) == 5


def test_experiments_without_sets_are_written_as_before(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, smallest_tree())
    assert "prompt_sets" not in load_experiment(path).evaluation.model_dump()
