"""The judges of a run: which comparisons they get, what is made of their verdicts, and that nothing is asked twice."""

import json
from pathlib import Path

import pandas as pd
import pytest
from exchange_run import PROMPTS
from judged_run import SIMULATED, TEXTS, judged, run_folder
from tiny_world import tiny_task

from apo_bench.clients.journal import Journal
from apo_bench.config.load import load_experiment
from apo_bench.config.schema import JudgeChoice
from apo_bench.errors import InputError
from apo_bench.run import judges
from apo_bench.tables import TABLES

DOWN = '''
from dataclasses import dataclass
from pathlib import Path

from apo_bench.judging.judge_protocol import Judge, Verdict


@dataclass(frozen=True)
class Moody:
    """Answers only while the file `up` lies beside it."""

    def open(self, at):
        return Open(at.base)


@dataclass(frozen=True)
class Open(Judge):
    base: str

    @property
    def identity(self):
        return {"kind": "moody"}

    def verdicts(self, questions, attempt=0, spent_usd=0.0):
        up = (Path(self.base) / "up").exists()
        for one in questions:
            yield one, Verdict("first", text="A") if up else Verdict(None, "timed out", answered=False, calls=0)
'''


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "tables").iterdir() if path.name != "timings.parquet"}


def test_a_perfect_judge_says_what_the_truth_says(tmp_path: Path) -> None:
    """Every comparison is the sign of the difference in ground truth, recomputed here from texts and task; equal truth is a tie."""
    folder = run_folder(tmp_path / "run", judges={"sim": {"use": SIMULATED}})
    rows, unanswered = judged(folder)
    assert unanswered == []
    assert tuple(rows) == TABLES["judgments"].names
    assert len(rows) == 2 * 2 * 3 * 4  # orders x pairs x seeds x prompts
    truth = tiny_task().ground_truth
    assert truth is not None
    for row in rows.to_dict("records"):
        place = next(i for i, prompt in enumerate(PROMPTS) if prompt.id == row["prompt_id"])
        a, b = (truth(PROMPTS[place], TEXTS[row[side]][place]) for side in ("arm_a", "arm_b"))
        assert row["value"] == (0.5 if abs(a - b) < 1e-9 else float(a > b))
        first, second = (a, b) if row["order"] == "ab" else (b, a)
        assert row["verdict"] == ("tie" if abs(a - b) < 1e-9 else "first" if first > second else "second")
        assert (row["round"], row["seed_a"], row["failure"]) == ("1", row["seed_b"], "")
        assert row["length_a"] == len(TEXTS[row["arm_a"]][place].split())
        assert (row["cluster_id"], row["axis"]) == (PROMPTS[place].cluster_id, PROMPTS[place].axis)


def test_seeds_may_be_compared_with_the_next(tmp_path: Path) -> None:
    rows, _ = judged(run_folder(tmp_path / "run", {"seeds": "next"}, judges={"sim": {"use": SIMULATED}}))
    assert set(zip(rows["seed_a"], rows["seed_b"], strict=True)) == {(0, 1), (1, 2), (2, 0)}


def test_fewer_prompts_are_asked_the_same_for_all(tmp_path: Path) -> None:
    rows, _ = judged(run_folder(tmp_path / "run", {"prompts": 2}, judges={"sim": {"use": SIMULATED}}))
    assert len(set(rows["prompt_id"])) == 2
    assert len(rows) == 2 * 2 * 3 * 2


def test_a_second_time_nothing_is_asked_and_the_tables_are_the_same_bytes(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", judges={"sim": {"use": SIMULATED, "noise": 0.5, "failure_rate": 0.2}})
    judged(folder)
    journal, before = folder / "store" / "judging" / "sim.jsonl", tables(folder)
    lines = journal.read_bytes()
    judged(folder)
    assert journal.read_bytes() == lines
    assert tables(folder) == before
    rows = pd.read_parquet(folder / "tables" / "judgments.parquet")
    assert set(rows.loc[rows["value"].isna(), "failure"]) == {"unparsable"}


def test_the_audit_stands_beside_the_verdicts(tmp_path: Path) -> None:
    """The perfect judge agrees with the truth, not with people, of whose labels it gets most right; without pairs there is no audit."""
    folder = run_folder(tmp_path / "run", {"attacks": False}, judges={"sim": {"use": SIMULATED}})
    judged(folder)
    audit = pd.read_parquet(folder / "tables" / "judge_audit.parquet")
    assert tuple(audit) == TABLES["judge_audit"].names
    row = audit[(audit["axis"] == "all") & (audit["metric"] == "accuracy")].iloc[0]
    assert (row["judge"], row["n"], row["n_missing"]) == ("sim", 20, 0)
    assert row["value"] > 0.7
    assert not audit["metric"].str.startswith("attack_").any()
    other = run_folder(tmp_path / "other", {"audit_pairs": 0}, judges={"sim": {"use": SIMULATED}})
    judged(other)
    assert not (other / "tables" / "judge_audit.parquet").exists()


def test_what_nobody_answered_is_said_and_asked_again(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "moody.py").write_text(DOWN)
    folder = run_folder(tmp_path / "run", {"audit_pairs": 0}, judges={"moody": {"use": "moody.py@Moody"}})
    rows, unanswered = judged(folder, beside)
    different = {json.dumps([row["prompt_id"], TEXTS[row["arm_a"]], TEXTS[row["arm_b"]]]) for row in rows.to_dict("records")}
    assert different
    n = int(rows.loc[rows["value"].isna(), "question"].nunique())
    assert str(unanswered[0]) == f"judge moody: {n} questions got no answer ({n} timed out); the same command asks again"
    assert json.loads((folder / "manifest.json").read_text())["judges"]["moody"]["unanswered"] == {"timed out": n}
    (beside / "up").touch()
    rows, unanswered = judged(folder, beside)
    assert unanswered == []
    assert rows["value"].notna().all()
    assert json.loads((folder / "manifest.json").read_text())["judges"]["moody"]["unanswered"] == {}


@pytest.mark.slow
def test_a_judge_is_added_and_stays_when_the_tables_are_made_anew(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", judges={"sim": {"use": SIMULATED}})
    before, _ = judged(folder)
    experiment, choice = load_experiment(folder / "experiment.yaml"), JudgeChoice(use=SIMULATED, noise=2.0)  # pyright: ignore[reportCallIssue]
    assert judges.add_judge(folder, "second", choice, experiment, tiny_task()) == []
    rows = pd.read_parquet(folder / "tables" / "judgments.parquet")
    assert set(rows["judge"]) == {"sim", "second"}
    pd.testing.assert_frame_equal(rows[rows["judge"] == "sim"].reset_index(drop=True), before)
    for name in ("judgments", "judge_audit"):
        (folder / "tables" / f"{name}.parquet").unlink()  # as a run does that writes its tables anew
    again, _ = judged(folder)
    pd.testing.assert_frame_equal(again, rows)
    timings = pd.read_parquet(folder / "tables" / "timings.parquet")
    assert set(timings["arm"]) >= {"_judge.sim", "_judge.second"}
    with pytest.raises(InputError, match=r"judges\.sim: .* has another judge of this name"):
        judges.add_judge(folder, "sim", choice, experiment, tiny_task())


def test_imported_verdicts_on_responses_that_are_gone_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a person's verdicts on six comparisons (two pairs of arms, three seeds) on the first prompt, those on a changed answer go."""
    folder = run_folder(tmp_path / "run", judges={"sim": {"use": SIMULATED}})
    rows, _ = judged(folder)
    human = rows[(rows["order"] == "ab") & (rows["prompt_id"] == PROMPTS[0].id)].assign(judge="human")
    (folder / "imported").mkdir()
    human.to_parquet(folder / "imported" / "human.parquet")
    again, _ = judged(folder)
    assert (again["judge"] == "human").sum() == len(human) == 6
    responses = pd.read_parquet(folder / "tables" / "responses.parquet")
    changed = (responses["arm"] == "rjs") & (responses["seed"] == 1)
    responses.loc[changed, "text"] += " then dip"
    responses.to_parquet(folder / "tables" / "responses.parquet")
    again, _ = judged(folder)
    assert (again["judge"] == "human").sum() == 5
    message = "1 of 6 imported verdicts are on responses that the run no longer has"
    assert f"judge human: {message}; left out" in capsys.readouterr().err
    assert json.loads((folder / "manifest.json").read_text())["judges"]["human"] == {"left_out": message}


def test_what_a_judge_took_is_all_of_its_journal(tmp_path: Path) -> None:
    """Calls are those of comparisons and audit together: an unparsable answer's retry is a second call."""
    folder = run_folder(tmp_path / "run", judges={"sim": {"use": SIMULATED, "noise": 0.5, "failure_rate": 0.2}})
    judged(folder)
    records = Journal(folder / "store" / "judging" / "sim.jsonl").records.values()
    calls = sum(record.get("calls", 0) for record in records)
    timings = pd.read_parquet(folder / "tables" / "timings.parquet").set_index("measure")["value"]
    assert timings["calls"] == calls > len([record for record in records if "choice" in record])


def test_a_damaged_line_is_left_out_and_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "run", judges={"sim": {"use": SIMULATED, "noise": 0.5}})
    judged(folder)
    path, before = folder / "store" / "judging" / "sim.jsonl", tables(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 30] ^= 1
    path.write_bytes(content)
    judged(folder)
    assert "left out 1 damaged lines" in capsys.readouterr().err
    assert tables(folder) == before
    assert Journal(path).n_damaged == 1
